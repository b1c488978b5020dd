"""A socket at which nothing listens: whether nothing runs, or only the hub has been killed."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import TIMEOUT, Pending, Serve, Server, as_user, first_quick, raw, run_cli, suspend, until
from holders import Hold, Holder
from manyworkers import hub, is_alive, kill, workers
from servers import SERVERS

from flask_ctl import ControlClient, ControlError, NotRunning, ServerDied, TimedOut
from flask_ctl.client import absence
from flask_ctl.client.absence import Absence
from flask_ctl.client.trust import Trust
from flask_ctl.client.unix import UnixConnection
from flask_ctl.system import locks

NOBODY = pwd.getpwnam("nobody").pw_uid
SYNC = SERVERS["gunicorn sync"]
ONE = SERVERS["gunicorn sync, 1 worker"]


# The hub is killed


@pytest.mark.parametrize("form", first_quick(["{}", "ipc://{}"]), ids=["unix", "ipc"])
def test_no_question_goes_unanswered_because_the_hub_was_killed(
    start: Serve, short_path: pathlib.Path, form: str
) -> None:
    server = start(ONE, socket=form.format(short_path / "x.sock"))
    for _ in range(3):
        kill(hub(server))
        with server.client() as client:
            assert client.ping()["pid"] == server.pid


def test_a_stop_just_after_the_hub_was_killed_ends_the_server(start: Serve) -> None:
    """It does not say that there was nothing to stop."""
    server = start(ONE)
    kill(hub(server))
    done = run_cli("stop", "--missing-ok", "--json", "-s", server.socket)
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (0, "drained")
    assert server.wait() == 0


@pytest.fixture
def headless(start: Serve) -> Iterator[tuple[Server, list[int]]]:
    """A server whose hub is dead, and whose workers are suspended, so that nobody brings it back."""
    server = start(SYNC)
    pids, dead = workers(server), hub(server)
    for pid in pids:
        suspend(pid)
    kill(dead)
    yield server, pids
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)


def test_while_a_worker_lives_the_server_is_still_there_and_a_stop_waits_for_the_next_hub(
    headless: tuple[Server, list[int]],
) -> None:
    server, pids = headless
    for method in ("ping", "status", "stop"):
        with server.client() as client, pytest.raises(TimedOut, match="still there") as late:
            getattr(client, method)(timeout=0.2)
        assert set(late.value.data["pids"]) == set(pids)
    done = run_cli("stop", "--missing-ok", "--timeout", "0.2", "-s", server.socket)
    assert (done.returncode, done.stdout) == (4, "")
    stop = Pending.call(lambda: server.client().stop(timeout=TIMEOUT))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that is set when a client has sent something."""
    event, transmit = threading.Event(), UnixConnection._transmit

    def observed(self: UnixConnection, messages: list[bytes], deadline: float | None) -> None:
        transmit(self, messages, deadline)
        event.set()

    monkeypatch.setattr(UnixConnection, "_transmit", observed)
    return event


def ask_and_kill(server: Server, sent: threading.Event, call: Callable[[], Any]) -> Any:
    """The outcome of a call whose question a suspended hub has got, when it was killed."""
    dead = hub(server)
    suspend(dead)
    sent.clear()
    pending = Pending.call(call)
    assert sent.wait(TIMEOUT)
    kill(dead)
    return pending.result()


def test_a_harmless_question_is_asked_again_when_the_hub_was_killed_over_it(
    start: Serve, sent: threading.Event
) -> None:
    server = start(ONE)
    with server.client(timeout=TIMEOUT) as client:
        assert ask_and_kill(server, sent, client.status)["pid"] == server.pid


def test_of_any_other_command_it_is_told_that_it_may_have_run(start: Serve, sent: threading.Event) -> None:
    server = start(ONE)
    with server.client() as client:
        client.ping()
        with pytest.raises(ControlError, match="before it answered greet, which may have been done; the") as failure:
            ask_and_kill(server, sent, lambda: client.call("greet", name="ann", timeout=TIMEOUT))
    assert not isinstance(failure.value, ServerDied)
    assert failure.value.data == {"may_have_run": True}


# Nothing is left


def nobody_listens(path: str) -> bool:
    try:
        with raw(path):
            pass
    except ConnectionRefusedError:
        return True
    return False


def test_when_the_last_worker_has_ended_nothing_is_running(headless: tuple[Server, list[int]]) -> None:
    server, pids = headless
    for pid in [server.pid, *pids]:
        os.kill(pid, signal.SIGKILL)
    server.wait()
    until(lambda: not any(is_alive(pid) for pid in pids), "their end")
    assert os.path.exists(server.socket)
    assert os.path.exists(server.socket + ".lock")
    until(lambda: nobody_listens(server.socket), "the end of the hub's threads, which is after that of its main one")
    with server.client() as client, pytest.raises(NotRunning):
        client.status()
    assert run_cli("stop", "--missing-ok", "-s", server.socket).returncode == 0


def test_a_single_process_that_was_killed_is_missed_at_once(serve: Serve) -> None:
    server = serve()
    server.process.kill()
    server.wait()
    with server.client(timeout=None) as client, pytest.raises(NotRunning, match="nothing listens"):
        client.status()


def test_a_single_process_that_is_killed_over_a_question_has_died(serve: Serve, sent: threading.Event) -> None:
    server = serve().suspend()
    sent.clear()
    with server.client(timeout=TIMEOUT) as client:
        ask = Pending.call(client.status)
        assert sent.wait(TIMEOUT)
        server.process.kill()
        with pytest.raises(ServerDied):
            ask.result()


# The lock file, without a server


@pytest.fixture
def path(short_path: pathlib.Path) -> pathlib.Path:
    """A socket that is dead."""
    path = short_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


@pytest.fixture
def hold(path: pathlib.Path) -> Iterator[Hold]:
    """Hold the lock of the socket in another process."""
    holders = []

    def start(todo: str = "locks.take(descriptor, 0)") -> Holder:
        holders.append(Holder(f"{path}.lock", todo))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()


def test_a_lock_that_was_left_behind_means_nothing(path: pathlib.Path) -> None:
    path.with_name("x.sock.lock").touch(mode=0o600)
    with ControlClient(path, timeout=TIMEOUT) as client, pytest.raises(NotRunning):
        client.ping()


def test_the_holder_is_named(path: pathlib.Path, hold: Hold) -> None:
    holder = hold()
    with ControlClient(path, timeout=0.1) as client, pytest.raises(TimedOut, match=f"is held by pid {holder.pid}"):
        client.ping()


def test_a_worker_knows_that_its_own_server_is_there(path: pathlib.Path) -> None:
    """It must not open the lock file, or it would release its lock."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    locks.take(descriptor, 1)
    with ControlClient(path, timeout=0.1) as client, pytest.raises(TimedOut, match=f"is held by pid {os.getpid()}"):
        client.ping()
    locks.close(descriptor)


def test_when_the_holder_ends_nothing_is_running(path: pathlib.Path, hold: Hold) -> None:
    holder = hold()
    ask = Pending.call(lambda: ControlClient(path, timeout=TIMEOUT).ping())
    holder.process.kill()
    holder.process.wait()
    with pytest.raises(NotRunning):
        ask.result()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_lock_of_somebody_who_is_not_trusted_holds_up_nobody(path: pathlib.Path, hold: Hold) -> None:
    hold()
    os.chown(f"{path}.lock", NOBODY, -1)
    with ControlClient(path, timeout=None) as client, pytest.raises(NotRunning):
        client.ping()


class Unreadable:
    """Stands for a lock file that may not be read."""

    def __init__(self, path: pathlib.Path) -> None:
        raise PermissionError(path)


def test_who_may_not_read_the_lock_file_tries_for_a_while(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence, "LockFile", Unreadable)
    monkeypatch.setattr(absence, "BLIND_TIME", 0.05)
    with ControlClient(path, timeout=TIMEOUT) as client, pytest.raises(NotRunning):
        client.ping()


def test_who_may_not_read_the_lock_file_meets_the_next_listener(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    class Tried(Unreadable):
        def __init__(self, path: pathlib.Path) -> None:
            tried.set()
            super().__init__(path)

    monkeypatch.setattr(absence, "LockFile", Tried)
    monkeypatch.setattr(absence, "BLIND_TIME", TIMEOUT)
    with ControlClient(path) as client, socket.socket(socket.AF_UNIX) as listener:
        connect = Pending.call(lambda: client.endpoint)
        assert tried.wait(TIMEOUT)
        path.unlink()
        listener.bind(str(path))
        listener.listen()
        assert connect.result() == str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the test above needs no root")
def test_another_user_who_is_let_in_gets_an_answer_though_the_hub_was_just_killed(
    start: Serve, short_path: pathlib.Path
) -> None:
    place = short_path / "open"
    place.mkdir(mode=0o755)
    os.chmod(short_path, 0o711)
    server = start(ONE, socket=place / "x.sock", env={"FLASK_CTL_ALLOW": json.dumps({"observe": [f"uid:{NOBODY}"]})})
    kill(hub(server))
    said = as_user(NOBODY, NOBODY, (), lambda: str(ControlClient(server.socket, owner=0).ping()["pid"]).encode())
    assert said == str(server.pid).encode()


def test_the_time_that_is_left_never_gets_below_zero() -> None:
    late = Absence("/x", 0.0, Trust())
    assert late.left() == 0.0
    assert Absence("/x", None, Trust()).left() is None
