"""Who owns the path of a control socket, and how its file comes and goes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import PYTHON, Serve, Server, first_quick, until

from flask_ctl import ConfigurationError, ControlClient, NotRunning
from flask_ctl.transports.socketfile import SocketFile


@pytest.fixture
def path(short_path: pathlib.Path) -> pathlib.Path:
    return short_path / "x.sock"


@contextlib.contextmanager
def owned(path: pathlib.Path) -> Iterator[tuple[SocketFile, socket.socket]]:
    """A socket file of this process."""
    file = SocketFile(str(path))
    with file.acquire() as listener:
        yield file, listener
    file.release()


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_only_its_owner_may_connect_at_every_instant(path: pathlib.Path, umask: int) -> None:
    path.with_name("x.sock.lock").touch(mode=0o600)
    before = os.umask(umask)
    try:
        with owned(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_released_the_socket_is_gone_and_the_lock_stays(path: pathlib.Path) -> None:
    with owned(path) as (file, _):
        assert file.in_place()
    assert not path.exists()
    assert path.with_name("x.sock.lock").exists()
    file.release()


def test_a_live_owner_is_refused_and_named(path: pathlib.Path) -> None:
    with owned(path), pytest.raises(ConfigurationError, match=f"in use by pid {os.getpid()}"):
        SocketFile(str(path)).acquire()


def test_a_live_listener_without_a_lock_is_refused_and_named(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(ConfigurationError, match=f"in use by pid {os.getpid()}"):
            SocketFile(str(path)).acquire()
    assert path.exists()


def test_a_dead_socket_is_replaced(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with owned(path) as (file, _):
        assert file.in_place()


@pytest.mark.parametrize("why", ["in use by", "is not a file of ours"])
def test_a_hub_that_finds_its_address_taken_leaves_the_text_of_the_lock_file(
    path: pathlib.Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = path.with_name("x.sock.lock")
    lock.write_text("the other hub's master")
    with lock.open() as other:
        if why == "in use by":
            fcntl.flock(other, fcntl.LOCK_EX)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: lock.stat().st_uid + 1)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(ConfigurationError, match=why):
            SocketFile(str(path), master=os.getpid()).acquire()
        assert os.listdir("/proc/self/fd") == before
    assert lock.read_text() == "the other hub's master"


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_refused_and_left_alone(path: pathlib.Path, kind: str) -> None:
    make: dict[str, Callable[[], Any]] = {
        "file": lambda: path.write_text("precious"),
        "directory": path.mkdir,
        "symlink": lambda: path.symlink_to("/x"),
    }
    make[kind]()
    before = os.lstat(path)
    with pytest.raises(ConfigurationError, match="is no socket"):
        SocketFile(str(path)).acquire()
    assert os.lstat(path) == before


def test_a_lock_that_is_a_symlink_is_refused(path: pathlib.Path) -> None:
    path.with_name("x.sock.lock").symlink_to(path.with_name("elsewhere"))
    with pytest.raises(ConfigurationError, match="FLASK_CTL_SOCKET"):
        SocketFile(str(path)).acquire()
    assert not path.with_name("elsewhere").exists()


def test_what_somebody_else_put_there_is_not_removed(path: pathlib.Path) -> None:
    with owned(path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_names_the_remedy(short_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match="107 bytes; give a shorter path by FLASK_CTL_SOCKET"):
        SocketFile(str(short_path / ("x" * 108))).acquire()


def test_a_directory_that_is_not_there_names_the_remedy(short_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match="FLASK_CTL_SOCKET"):
        SocketFile(str(short_path / "no" / "x.sock")).acquire()


def test_after_a_failure_the_lock_is_free(path: pathlib.Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigurationError):
        SocketFile(str(path)).acquire()
    path.unlink()
    with owned(path) as (file, _):
        assert file.in_place()


def test_after_kill_9_the_next_start_takes_the_path(serve: Serve, path: pathlib.Path) -> None:
    first = serve(socket=path)
    first.process.kill()
    first.wait()
    assert path.exists()
    second = serve(socket=path)
    assert second.status()["pid"] == second.pid


def says(server: Server, text: str) -> None:
    until(lambda: text in server.output, lambda: f"{text} in {server.output}")


def pid_at(path: pathlib.Path) -> int | None:
    """The process that listens there; None if nothing does."""
    try:
        with ControlClient(path) as client:
            pid: int = client.ping()["pid"]
            return pid
    except NotRunning:
        return None


@pytest.mark.parametrize("count", first_quick([5, 20]))
def test_of_those_that_race_for_a_stale_socket_one_wins(
    short_path: pathlib.Path, path: pathlib.Path, count: int
) -> None:
    """The others say whose it is, and serve without."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    code = "import logging, sample; logging.basicConfig(); sample.app.run(port=0)"
    starters = [
        Server([*PYTHON, "-c", code], short_path / f"{n}", env={"FLASK_CTL_SOCKET": str(path)}) for n in range(count)
    ]
    try:
        for starter in starters:
            says(starter, "Running on")
        # The stale file is there from the beginning.
        winner = until(lambda: pid_at(path), "a winner")
        losers = [starter for starter in starters if starter.pid != winner]
        assert len(losers) == count - 1
        for loser in losers:
            says(loser, f"in use by pid {winner};")
    finally:
        for starter in starters:
            starter.kill()


def test_a_socket_file_that_is_removed_is_back_while_it_runs(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    os.unlink(server.socket)
    until(lambda: os.path.exists(server.socket), "it is back")
    until(lambda: "it is back" in server.output, "a warning")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert not os.path.exists(server.socket)


def test_a_default_directory_that_is_removed_is_back_while_it_runs(serve: Serve, short_path: pathlib.Path) -> None:
    server = serve(env={"FLASK_CTL_SOCKET": ""}, ready=False)
    directory = short_path / "run" / "flask-ctl"
    until(lambda: list(directory.glob("sample-*.sock")), "the default socket")
    (name,) = directory.glob("sample-*.sock")
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()
    until(name.exists, "it is back")
    with ControlClient(name) as client:
        assert client.stop()["pid"] == server.pid


def test_what_took_the_place_of_a_removed_socket_is_left_alone(serve: Serve, path: pathlib.Path) -> None:
    server = serve(socket=path)
    path.unlink()
    path.write_text("precious")
    until(lambda: "something else is there" in server.output, "a warning")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "address", first_quick(["{dir}/no/x.sock", "{dir}/" + "x" * 120, "nonsense:x", "{dir}/file"], 2)
)
@pytest.mark.parametrize("mode", first_quick(["app.run", "flask run"]))
def test_an_address_that_cannot_be_used_costs_one_warning_and_the_app_serves(
    serve: Serve, short_path: pathlib.Path, mode: str, address: str
) -> None:
    (short_path / "file").write_text("precious")
    env = {"FLASK_CTL_SOCKET": address.format(dir=short_path)}
    server = serve(mode, env=env, ready=False)
    until(lambda: "Running on" in server.output, "it serves")
    until(lambda: "serves without a control socket" in server.output, "a warning")
    assert server.output.count("serves without a control socket") == 1
    [port] = re.findall(r"Running on http://127.0.0.1:(\d+)", server.output)
    assert server.get("/", ("127.0.0.1", int(port))) == (200, b"hello")
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0


def test_an_app_that_requires_its_socket_does_not_serve_without(serve: Serve, short_path: pathlib.Path) -> None:
    code = "import sample; sample.app.config['CTL_REQUIRED'] = True; sample.app.run(port=0)"
    server = serve(command=[sys.executable, "-c", code], env={"FLASK_CTL_SOCKET": "/no/such/x.sock"}, ready=False)
    assert server.wait() == 1
    assert "can't listen at /no/such/x.sock" in server.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_can_not_connect(serve: Serve, short_path: pathlib.Path) -> None:
    """As `nobody`, with the directory open to all: the file's mode is what refuses."""
    server = serve()
    os.chmod(short_path, 0o711)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as sock:
            os._exit(sock.connect_ex(server.socket))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EACCES
    assert server.status()["pid"] == server.pid


def test_the_environments_address_is_the_first_apps_and_others_use_their_defaults(
    short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask import Flask

    from flask_ctl import Control

    monkeypatch.setenv("FLASK_CTL_SOCKET", str(short_path / "env.sock"))
    one, two = Flask("one"), Flask("two")
    control = Control(one)
    control.init_app(two)
    assert control.sockets(one) == [str(short_path / "env.sock")]
    assert control.sockets(two)[0].startswith(str(short_path / "run" / "flask-ctl" / "two-"))
