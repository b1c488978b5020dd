"""Whom a client believes before it sends anything: who put the socket there, who listens, who could have."""

from __future__ import annotations

import contextlib
import grp
import os
import pathlib
import pwd
import signal
import socket
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from harness import TIMEOUT, run_cli
from wires import Peer, ipc_wire, unix_wire

from flask_ctl import AccessDenied, ConfigurationError, ControlClient, NotRunning
from flask_ctl.client.trust import Trust, make_trust

NOBODY = pwd.getpwuid(65534)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give files away; the table below needs no root"
)

FORMS = {"unix": "{}", "ipc": "ipc://{}"}


@pytest.fixture
def directory(short_path: pathlib.Path) -> pathlib.Path:
    directory = short_path / "place"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture(params=[unix_wire, ipc_wire], ids=list(FORMS))
def peer(request: pytest.FixtureRequest, directory: pathlib.Path, free_port: int) -> Iterator[Peer]:
    """A server of our own, in a directory of its own."""
    peer = Peer(request.param(directory, free_port))
    yield peer
    peer.close()


def path_of(peer: Peer) -> str:
    return str(peer.wire.target).removeprefix("ipc://")


def refused(address: str, words: str, **options: Any) -> None:
    """By the Python client and by the command line."""
    with ControlClient(address, **options) as client, pytest.raises(AccessDenied, match=words):
        client.ping()
    done = run_cli("ping", "--socket", address)
    assert done.returncode == 5, done.stderr


def test_our_own_socket_is_believed_in(peer: Peer) -> None:
    assert peer.answers()


def test_a_symlink_is_not_followed(peer: Peer, directory: pathlib.Path) -> None:
    link = directory / "link"
    link.symlink_to(path_of(peer))
    refused(peer.wire.target.replace(path_of(peer), str(link)), "is a symbolic link, which may lead anywhere")


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o733, 0o702])
def test_a_directory_that_others_can_write_to_is_refused(peer: Peer, directory: pathlib.Path, mode: int) -> None:
    directory.chmod(mode)
    refused(peer.wire.target, f"others can write to {directory} .mode 0{mode:o}., .*chmod go-w")
    directory.chmod(0o755)
    assert peer.answers()


def test_where_only_owners_remove_files_all_may_write(peer: Peer, directory: pathlib.Path) -> None:
    """As in /tmp."""
    directory.chmod(0o1777)
    assert peer.answers()


def _has_private_group() -> bool:
    user = pwd.getpwuid(os.geteuid())
    group = grp.getgrgid(user.pw_gid)
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@pytest.mark.skipif(not _has_private_group(), reason="this user has no group of its own")
def test_a_group_that_is_its_owners_alone_may_write(peer: Peer, directory: pathlib.Path) -> None:
    os.chown(directory, -1, pwd.getpwuid(os.geteuid()).pw_gid)
    directory.chmod(0o770)
    assert peer.answers()


@needs_root
def test_a_group_of_others_may_not_write(peer: Peer, directory: pathlib.Path) -> None:
    os.chown(directory, 0, NOBODY.pw_gid)
    directory.chmod(0o770)
    refused(peer.wire.target, "others can write to")


@needs_root
@pytest.mark.parametrize("what", ["socket", "directory"])
def test_what_belongs_to_somebody_else_is_refused_unless_that_is_said(
    peer: Peer, directory: pathlib.Path, what: str
) -> None:
    os.chown(path_of(peer) if what == "socket" else directory, NOBODY.pw_uid, -1)
    refused(peer.wire.target, f"belongs to {NOBODY.pw_name}, neither you nor root; .*: --owner {NOBODY.pw_name}")
    refused(peer.wire.target, "belongs to", owner=54321)
    for owner in (NOBODY.pw_name, NOBODY.pw_uid, str(NOBODY.pw_uid)):
        with ControlClient(peer.wire.target, owner=owner) as client:
            assert client.ping()["pong"]
    assert run_cli("ping", "--owner", NOBODY.pw_name, "--socket", peer.wire.target).returncode == 0
    env = {"FLASK_CTL_OWNER": NOBODY.pw_name}
    assert run_cli("ping", "--socket", peer.wire.target, env=env).returncode == 0


@contextlib.contextmanager
def foreign_listener(path: str, heard: list[bytes]) -> Iterator[None]:
    """A process of `nobody` that listens at our own socket, answers a ping, and writes down what it has heard."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY.pw_gid)
        os.setuid(NOBODY.pw_uid)
        listener.listen()
        os.write(write, b"ready")
        while True:
            with listener.accept()[0] as sock, contextlib.suppress(OSError):
                if data := sock.recv(65536):
                    os.write(write, data)
                    sock.sendall(b'{"jsonrpc":"2.0","result":{"pong":true,"protocol":1},"id":1}\n')
    listener.close()
    os.close(write)
    assert os.read(read, 5) == b"ready"
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(read, "rb") as pipe:
            heard.append(pipe.read())


@needs_root
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_foreign_listener_hears_nothing(directory: pathlib.Path, form: str) -> None:
    """Though directory and socket are ours."""
    path = str(directory / "x.sock")
    heard: list[bytes] = []
    with foreign_listener(path, heard):
        refused(form.format(path), f"there listens {NOBODY.pw_name}, neither you nor root")
    assert heard == [b""]


@needs_root
def test_a_foreign_listener_is_believed_in_if_that_is_said(directory: pathlib.Path) -> None:
    path = str(directory / "x.sock")
    heard: list[bytes] = []
    with foreign_listener(path, heard), ControlClient(path, owner=NOBODY.pw_name) as client:
        assert client.ping()["pong"]
    assert b'"ping"' in heard[0]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("what", ["nothing", "a dead socket", "no directory"])
def test_where_nobody_listens_nothing_is_running(directory: pathlib.Path, form: str, what: str) -> None:
    path = directory / "x.sock"
    if what == "a dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif what == "no directory":
        path = directory / "no" / "x.sock"
    with ControlClient(form.format(path)) as client, pytest.raises(NotRunning, match="nothing is running at"):
        client.ping(timeout=TIMEOUT)


# The same without root: what would be seen, as a table.

ME, OTHER = os.geteuid(), 54321
PEERS = {
    "ourselves": (Trust(), ME, True),
    "root": (Trust(), 0, True),
    "somebody else": (Trust(), OTHER, False),
    "the owner that is believed in": (Trust(owner=OTHER), OTHER, True),
    "ourselves beside that": (Trust(owner=OTHER), ME, True),
    "yet another one": (Trust(owner=OTHER), OTHER + 1, False),
    "nobody knows who": (Trust(owner=OTHER), None, False),
}


@pytest.mark.parametrize(("trust", "uid", "believed"), PEERS.values(), ids=PEERS)
def test_a_listener_is_believed_in_by_its_uid(trust: Trust, uid: int | None, believed: bool) -> None:
    with contextlib.nullcontext() if believed else pytest.raises(AccessDenied, match="/x"):
        trust.check_peer("/x", uid)


def test_the_checks_touch_nothing(directory: pathlib.Path) -> None:
    path = directory / "x.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        before = os.lstat(path)
        Trust().check_file(str(path))
        assert os.lstat(path) == before
        assert stat.S_ISSOCK(before.st_mode)


def test_an_owner_may_be_a_name_a_number_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_trust(owner=NOBODY.pw_name).owner == make_trust(owner="65534").owner == NOBODY.pw_uid
    assert make_trust(owner=0).owner == 0
    assert make_trust().owner is None
    monkeypatch.setenv("FLASK_CTL_OWNER", NOBODY.pw_name)
    assert make_trust().owner == NOBODY.pw_uid
    assert make_trust(owner=1).owner == 1
    with pytest.raises(ConfigurationError, match="there is no user 'no-such-user'; give a name or a uid"):
        make_trust(owner="no-such-user")
