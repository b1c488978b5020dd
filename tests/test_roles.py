"""Who may do what with a real server: as real other users where the machine lets us, else with a substituted peer."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import pwd
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import PYTHON, Program, Serve, as_user, raw, read_all, until

from flask_ctl import AccessDenied, ConfigurationError, ControlClient, InsecureConfiguration, ReloadFailed
from flask_ctl.dispatch.peer import Peer, peer_of
from flask_ctl.dispatch.policy import FileAccess
from flask_ctl.system.files import open_to
from flask_ctl.transports.socketfile import SocketFile

NOBODY, GROUP = (65534 if os.geteuid() == 0 else os.geteuid() + 1), 54321
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or give files away")

SUBSTITUTE = """
import flask_ctl.transports.unix as unix, os
from flask_ctl.dispatch.peer import Peer
unix.peer_of = lambda sock: Peer(42, {uid}, {gid}, {groups})
import sample
sample.app.run(port=0)
"""


class Stranger:
    """Another user, and a server whose app has a CTL_ALLOW."""

    def __init__(self, server: Any, real: bool, groups: tuple[int, ...]) -> None:
        self.server, self.real, self.groups = server, real, groups

    def send(self, data: bytes, *, answers: bool = True) -> bytes:
        """All that the server answers to what one connection sends, which is waited for."""

        def talk() -> bytes:
            with raw(self.server.socket) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock) if answers else b""

        return as_user(NOBODY, NOBODY, self.groups, talk) if self.real else talk()

    def call(self, method: str, **params: Any) -> Any:
        """The result, or the error's code."""
        answer = json.loads(self.send(encoded(method, id=1, **params)))
        return answer["error"]["code"] if "error" in answer else answer["result"]


def _connects(path: str) -> bool:
    """Whether somebody listens there, who has opened the file to others."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0 and mode_of(path)[0] != 0o600


def encoded(method: str, id: Any = None, **params: Any) -> bytes:
    message = {"jsonrpc": "2.0", "method": method, "params": params, **({} if id is None else {"id": id})}
    return json.dumps(message).encode() + b"\n"


MakeStranger = Callable[..., Stranger]
MakeFile = Callable[..., SocketFile]


@pytest.fixture(
    params=[
        pytest.param(True, id="real", marks=only_root),
        pytest.param(False, id="substituted", marks=pytest.mark.full if os.geteuid() == 0 else ()),
    ]
)
def stranger(request: pytest.FixtureRequest, serve: Serve, short_path: pathlib.Path) -> MakeStranger:
    """Make a stranger to whom `allow` gives something: `stranger({"observe": […]}, groups=(…))`."""

    def make(allow: dict[str, list[str]], groups: tuple[int, ...] = ()) -> Stranger:
        os.chmod(short_path, 0o755)
        code = SUBSTITUTE.format(uid=NOBODY, gid=NOBODY, groups=groups)
        if not request.param:
            # Mode 0666: without root there may be no group to give the file to.
            allow = {**allow, "observe": [*allow.get("observe", []), "uid:12345"]}
        env = {"FLASK_CTL_ALLOW": json.dumps(allow)}
        server = serve(env=env, command=None if request.param else [*PYTHON, "-c", code], ready=False)
        until(lambda: os.path.exists(server.socket) and _connects(server.socket), "it listens")
        return Stranger(server, request.param, groups)

    return make


OBSERVE = {
    "ping": True,
    "status": True,
    "commands": True,
    "look": True,
    "routes": True,
    "exceptions": False,
    "describe": False,
    "stacks": False,
    "greet": False,
    "stop": False,
    "reload": False,
}
WAYS = {
    "a user": ({"observe": [f"uid:{NOBODY}"]}, ()),
    "the primary group beside a user": ({"observe": [f"gid:{NOBODY}", "uid:12345"]}, ()),
    "a supplementary group alone": ({"observe": [f"gid:{GROUP}"]}, (1, GROUP)),
}


@pytest.mark.parametrize(("allow", "groups"), WAYS.values(), ids=WAYS)
def test_who_may_observe_may_look_and_nothing_else(
    stranger: MakeStranger, allow: dict[str, list[str]], groups: Any
) -> None:
    other = stranger(allow, groups)
    for method, allowed in OBSERVE.items():
        assert (other.call(method) == -32003) is not allowed, method
    assert other.call("nothing") == -32601


@pytest.mark.parametrize("role", ["observe", "operate"])
def test_the_role_holds_in_plain_text_batches_and_notifications(stranger: MakeStranger, role: str) -> None:
    other = stranger({role: [f"uid:{NOBODY}"]})
    denied = role == "observe"
    assert (b"may observe this server but not operate it" in other.send(b"greet name=a")) is denied
    batch = b"[" + encoded("greet", 1, name="a").strip() + b"," + encoded("ping", 2).strip() + b"]\n"
    assert [("error" in answer) for answer in json.loads(other.send(batch))] == [denied, False]
    held = other.server.begin("/hold/gate") if not denied else None
    assert other.send(encoded("release", name="gate")) == b""
    if held is not None:
        assert held.result() == (200, b"held gate")


def test_who_may_operate_stops_the_server_and_status_says_who_it_was(stranger: MakeStranger) -> None:
    other = stranger({"operate": [f"uid:{NOBODY}"]})
    assert other.call("greet", name="a") == {"greeting": "hello a"}
    held = other.server.begin("/hold/a")
    assert other.send(encoded("reload", 1, grace=0)).startswith(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32005')
    by = other.server.status()["last_reload"]["by"]
    assert (by["uid"], by["gid"]) == (NOBODY, NOBODY)
    assert other.send(encoded("stop"), answers=False) == b""
    stopping = until(lambda: other.server.status()["stopping"], "a stop")
    assert stopping["by"]["uid"] == NOBODY
    other.server.release("a")
    assert held.result() == (200, b"held a")
    assert other.server.wait() == 0


@pytest.mark.parametrize("allow", [{"observe": ["uid:12345"]}, {"operate": ["gid:12345", "uid:12345"]}])
def test_who_is_not_named_learns_nothing(stranger: MakeStranger, allow: dict[str, list[str]]) -> None:
    other = stranger(allow)
    for method in ("ping", "status", "commands", "stop", "nothing"):
        answer = json.loads(other.send(encoded(method, 1)))
        assert answer["error"]["code"] == -32003, method
        assert answer["error"]["message"].startswith(f"uid {NOBODY} may not use this server"), method
    assert (
        other.send(b"nothing") == b"error: uid %d may not use this server; CTL_ALLOW of the app gives more\n" % NOBODY
    )


@only_root
def test_a_client_that_may_not_gets_access_denied(serve: Serve, short_path: pathlib.Path) -> None:
    os.chmod(short_path, 0o755)
    server = serve(env={"FLASK_CTL_ALLOW": json.dumps({"observe": [f"uid:{NOBODY}"]})})

    def stop() -> bytes:
        try:
            with ControlClient(server.socket) as client:
                client.stop()
        except AccessDenied as error:
            return error.message.encode()
        return b"stopped"

    assert b"may observe this server but not operate it" in as_user(NOBODY, NOBODY, (), stop)
    assert server.status()["state"] == "running"


# The socket's file


@pytest.fixture
def file(short_path: pathlib.Path) -> Iterator[MakeFile]:
    made = []

    def make(access: FileAccess, directory: str = "") -> SocketFile:
        made.append(SocketFile(str(short_path / directory / "x.sock"), access))
        return made[-1]

    yield make
    for file in made:
        file.release()


def mode_of(path: Any) -> tuple[int, int]:
    info = os.lstat(path)
    return stat.S_IMODE(info.st_mode), info.st_gid


@only_root
def test_for_one_group_the_file_is_the_groups(file: MakeFile) -> None:
    shared = file(FileAccess(0o660, GROUP))
    with shared.acquire():
        assert mode_of(shared.path) == (0o660, GROUP)


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_for_anybody_the_file_is_open_whatever_the_umask(file: MakeFile, short_path: pathlib.Path, umask: int) -> None:
    (short_path / "x.sock.lock").touch(mode=0o600)
    before = os.umask(umask)
    try:
        shared = file(FileAccess(0o666))
        with shared.acquire():
            assert mode_of(shared.path)[0] == 0o666
    finally:
        os.umask(before)


def test_it_is_private_until_it_listens_and_is_checked_once_more_before_it_is_opened(
    file: MakeFile, short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "flask_ctl.transports.socketfile.open_to", lambda path, *rest: seen.append((mode_of(path)[0], *rest[1:]))
    )
    with file(FileAccess(0o660, GROUP)).acquire():
        assert seen == [(0o600, 0o660, GROUP)]


@pytest.mark.parametrize("kind", ["symlink", "file", "another socket"])
def test_what_took_its_place_is_not_opened(short_path: pathlib.Path, kind: str) -> None:
    path, precious = short_path / "x", short_path / "precious"
    precious.touch(mode=0o600)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        ours = (path.stat().st_dev, path.stat().st_ino)
        path.rename(short_path / "moved")
        if kind == "symlink":
            path.symlink_to(short_path / "moved")
        elif kind == "file":
            path.touch(mode=0o600)
        else:
            precious.unlink()
            with socket.socket(socket.AF_UNIX) as foreign:
                foreign.bind(str(path))
                os.chmod(path, 0o600)
        before = {entry.name: mode_of(entry) for entry in os.scandir(short_path)}
        with pytest.raises(FileNotFoundError, match="replaced"):
            open_to(str(path), ours, 0o666, None)
        assert {entry.name: mode_of(entry) for entry in os.scandir(short_path)} == before


OPEN = {
    "0666, sticky": (0o1777, FileAccess(0o666), True),
    "0666, everybody's": (0o777, FileAccess(0o666), True),
    "0660, sticky": (0o1777, FileAccess(0o660, os.getegid()), False),
    "0660, everybody's": (0o777, FileAccess(0o660, os.getegid()), True),
    "0600, sticky": (0o1777, FileAccess(0o600), False),
    "0666, ours": (0o755, FileAccess(0o666), False),
}


@pytest.mark.parametrize(("mode", "access", "refused"), OPEN.values(), ids=OPEN)
def test_an_open_socket_in_everybodys_directory_is_refused(
    file: MakeFile, short_path: pathlib.Path, mode: int, access: FileAccess, refused: bool
) -> None:
    (short_path / "d").mkdir()
    os.chmod(short_path / "d", mode)
    if refused:
        with pytest.raises(InsecureConfiguration, match="a directory that all can write to; give a path"):
            file(access, "d").acquire()
        assert list((short_path / "d").iterdir()) == []
    else:
        with file(access, "d").acquire():
            assert mode_of(short_path / "d" / "x.sock")[0] == access.mode


def test_an_app_whose_socket_would_be_insecure_does_not_start(serve: Serve, short_path: pathlib.Path) -> None:
    (short_path / "d").mkdir()
    os.chmod(short_path / "d", 0o1777)
    server = serve(env={"FLASK_CTL_ALLOW": '{"observe": ["uid:12345"]}'}, socket=short_path / "d" / "x", ready=False)
    assert server.wait() == 1
    assert "InsecureConfiguration" in server.output
    assert "a directory that all can write to" in server.output
    assert not os.path.exists(server.socket)


def test_an_app_with_a_faulty_policy_does_not_start(serve: Serve) -> None:
    server = serve(env={"FLASK_CTL_ALLOW": '{"observe": ["anybody"]}'}, ready=False)
    assert server.wait() == 1
    assert "'anybody' names nobody; write uid:1001" in server.output


@only_root
def test_a_group_that_we_do_not_belong_to_is_a_configuration_error_with_the_remedy(short_path: pathlib.Path) -> None:
    os.chown(short_path, NOBODY, NOBODY)

    def acquire() -> bytes:
        file = SocketFile(str(short_path / "x.sock"), FileAccess(0o660, GROUP))
        try:
            file.acquire()
        except ConfigurationError as error:
            return error.message.encode()
        return b"acquired"

    assert as_user(NOBODY, NOBODY, (), acquire).endswith(
        b"can't be given to the group 54321: uid 65534 does not belong to it; add it to the group, or name users in"
        b" CTL_ALLOW"
    )
    assert [entry.name for entry in short_path.iterdir() if entry.name.startswith("x")] == ["x.sock.lock"]


def test_a_directory_that_the_others_can_not_enter_costs_one_warning(serve: Serve, short_path: pathlib.Path) -> None:
    server = serve(env={"FLASK_CTL_ALLOW": '{"observe": ["uid:12345"]}'})
    os.unlink(server.socket)
    until(lambda: "it is back" in server.output, "it is back")
    assert server.output.count(f"they can't all enter {os.path.realpath(short_path)};") == 1


def test_put_back_it_is_as_open_as_before(serve: Serve, short_path: pathlib.Path) -> None:
    os.chmod(short_path, 0o755)
    server = serve(env={"FLASK_CTL_ALLOW": '{"observe": ["uid:12345"]}'})
    assert mode_of(server.socket)[0] == 0o666
    os.unlink(server.socket)
    until(lambda: "it is back" in server.output, "it is back")
    assert mode_of(server.socket)[0] == 0o666


@pytest.mark.parametrize(
    ("before", "after"), [('["uid:12345"]', "[]"), pytest.param("[]", '["uid:12345"]', marks=pytest.mark.full)]
)
def test_a_reload_opens_or_closes_the_file_as_the_new_code_says(
    serve: Serve, program: Program, before: str, after: str
) -> None:
    modes = {"[]": 0o600, '["uid:12345"]': 0o666}
    code = "app.config['CTL_ALLOW'] = {'observe': %s}"
    program.edit("first", code % before)
    server = serve(cwd=program.directory)
    assert mode_of(server.socket)[0] == modes[before]
    program.edit("second", code % after)
    assert server.reload()["generation"] == 2
    assert mode_of(server.socket)[0] == modes[after]


FAULTY = {
    "a faulty policy": ("app.config['CTL_ALLOW'] = {'observe': ['anybody']}", "names nobody"),
    "a faulty limit": ("app.config['CTL_MAX_QUEUE'] = 0", "CTL_MAX_QUEUE has to be"),
    "an insecure socket": ("app.config['CTL_ALLOW'] = {'observe': ['uid:12345']}", "a directory that all can write to"),
}


def test_a_reload_to_settings_that_would_not_start_is_refused_and_the_old_code_serves(
    serve: Serve, program: Program, short_path: pathlib.Path
) -> None:
    (short_path / "d").mkdir()
    os.chmod(short_path / "d", 0o1777)
    server = serve(cwd=program.directory, socket=short_path / "d" / "x")
    for what, (code, message) in FAULTY.items():
        program.edit("second", code)
        with pytest.raises(ReloadFailed) as caught:
            server.reload()
        assert message in caught.value.data["traceback"], what
        assert server.status()["generation"] == 1, what


@only_root
def test_without_a_policy_another_user_can_not_even_connect(serve: Serve, short_path: pathlib.Path) -> None:
    os.chmod(short_path, 0o755)
    server = serve()

    def connect() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            return str(sock.connect_ex(server.socket)).encode()

    assert as_user(NOBODY, NOBODY, (0,), connect) == str(errno.EACCES).encode()


@only_root
def test_a_connection_carries_the_groups_of_the_other_end(short_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_path / "x"))
        listener.listen()
        os.chmod(short_path / "x", 0o666)
        os.chmod(short_path, 0o755)

        def connect() -> bytes:
            with raw(str(short_path / "x")):
                return str(os.getpid()).encode()

        pid = int(as_user(NOBODY, 7, (5, 6), connect))
        with listener.accept()[0] as sock:
            assert peer_of(sock) == Peer(pid, NOBODY, 7, (5, 6))


@only_root
def test_of_more_groups_than_the_kernel_can_be_asked_for_the_user_database_knows(short_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_path / "x"))
        listener.listen()
        os.chmod(short_path / "x", 0o666)
        os.chmod(short_path, 0o755)

        def connect() -> bytes:
            with raw(str(short_path / "x")):
                return b"connected"

        assert as_user(NOBODY, 7, tuple(range(1000, 1300)), connect) == b"connected"
        with listener.accept()[0] as sock:
            assert peer_of(sock).groups == tuple(os.getgrouplist(pwd.getpwuid(NOBODY).pw_name, 7))
