"""Which processes a stop may kill: every disagreement of the kernel's answers, with lock holders instead of servers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from harness import TIMEOUT
from holders import HOLDER, Hold, Holder

from flask_ctl import AccessDenied, ConfigurationError, ControlClient
from flask_ctl.client import targets
from flask_ctl.client.targets import Targets, targets_at, targets_of
from flask_ctl.client.trust import Trust
from flask_ctl.system.processes import ProcessHandle, inner_pid, open_parent, open_process, owner_of, parent_of

ME = os.getpid()
LISTENER = "locks.take(descriptor, 0)"
HUB = f"{LISTENER}; locks.take(descriptor, locks.hub_byte({ME}))"
WORKER = f"p = presence.Presence({ME}); p.be_at([path[:-5]])"
"""A worker of a hub; its parent, and so its master, is this process."""


@pytest.fixture
def path(short_path: pathlib.Path) -> str:
    return str(short_path / "x.sock")


@pytest.fixture
def hold(path: str) -> Iterator[Hold]:
    holders = []

    def start(todo: str) -> Holder:
        holders.append(Holder(path + ".lock", todo))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()


def connection(path: str | None, pid: Any) -> Any:
    """What `targets_of` asks of a connection with a listener of that pid."""
    return SimpleNamespace(
        endpoint=path or "tcp://1.2.3.4:5", path=path, peer_pid=lambda: pid, peer=lambda: open_process(pid)
    )


Way = Callable[[], Targets | None]


@contextlib.contextmanager
def found(what: Targets | None) -> Iterator[Any]:
    """Targets that are closed."""
    assert what is not None
    with contextlib.closing(what):
        yield what


def pids(processes: list[ProcessHandle]) -> list[int]:
    return [process.pid for process in processes]


def tells(it: Targets, words: str) -> bool:
    """Whether the server can't be killed, for a reason with these words."""
    return isinstance(it.obstacle, ConfigurationError) and bool(re.search(words, it.obstacle.message))


def test_a_single_process_is_its_listener(path: str, hold: Hold) -> None:
    server = hold(LISTENER)
    ways: list[Way] = [lambda: targets_of(connection(path, server.pid)), lambda: targets_at(path, Trust())]
    for way in ways:
        with found(way()) as it:
            assert (it.pid, pids(it.server), it.hub) == (server.pid, [server.pid], None)
            assert (it.workers, it.obstacle) == ([], None)


def test_behind_a_hub_the_master_is_the_workers_parent(path: str, hold: Hold) -> None:
    hub, one, two = hold(HUB), hold(WORKER), hold(WORKER)
    ways: list[Way] = [lambda: targets_of(connection(path, hub.pid)), lambda: targets_at(path, Trust())]
    for way in ways:
        with found(way()) as it:
            assert (it.pid, pids(it.server), it.hub.pid) == (ME, [ME], hub.pid)
            assert set(pids(it.workers)) == {one.pid, two.pid}
            assert it.obstacle is None


def test_where_the_hub_has_died_the_workers_tell_of_their_master(path: str, hold: Hold) -> None:
    worker = hold(WORKER)
    with found(targets_at(path, Trust())) as it:
        assert (pids(it.server), it.hub, pids(it.workers)) == ([ME], None, [worker.pid])


def test_a_process_without_a_master_is_its_own(path: str, hold: Hold) -> None:
    hub = hold(f"{LISTENER}; master = os.getppid()")
    alone = hold("p = presence.Presence(os.getpid()); p.be_at([path[:-5]])")
    hub.do(f"locks.take(descriptor, locks.hub_byte({alone.pid}))")
    with found(targets_of(connection(path, hub.pid))) as it:
        assert (it.pid, pids(it.server), it.hub.pid) == (alone.pid, [alone.pid], hub.pid)


def test_orphans_that_nobody_can_replace_are_killed_themselves_and_not_their_new_parent(path: str, hold: Hold) -> None:
    orphan = hold("p = presence.Presence(99); p.be_at([path[:-5]])")
    with found(targets_at(path, Trust())) as it:
        assert (it.pid, pids(it.server), it.obstacle) == (orphan.pid, [orphan.pid], None)
        it.kill()
    assert orphan.process.wait(TIMEOUT) == -signal.SIGKILL


OBSTACLES = {
    "the hub knows no worker": ([HUB], "no worker .* holds a lock"),
    "the workers are another master's": (
        [HUB.replace(str(ME), "99"), WORKER.replace(str(ME), "99")],
        "parent of worker .* is not the master",
    ),
}


@pytest.mark.parametrize(("todo", "words"), OBSTACLES.values(), ids=OBSTACLES)
def test_where_the_master_is_not_certain_nobody_is_killed(path: str, hold: Hold, todo: list[str], words: str) -> None:
    hub, *_ = [hold(code) for code in todo]
    with found(targets_of(connection(path, hub.pid))) as it:
        assert (it.server, it.hub.pid) == ([], hub.pid)
        assert tells(it, words)


REFUSALS = {
    "over TCP": (None, ME + 1, "does not name the process"),
    "a listener in another PID namespace": ("path", None, "does not name the process"),
    "process 1": ("path", 1, "run it from outside, or docker stop"),
    "this very process": ("path", ME, "this process belongs to the server"),
    "a listener without the lock": ("path", "other", "may only forward a socket"),
}


@pytest.mark.parametrize(("where", "pid", "words"), REFUSALS.values(), ids=REFUSALS)
def test_where_the_kernel_does_not_name_the_server_there_is_an_obstacle(
    path: str, hold: Hold, where: str | None, pid: int | str | None, words: str
) -> None:
    hold(LISTENER)
    if pid == "other":
        pid = hold("1").pid
    with found(targets_of(connection(where and path, pid))) as it:
        assert it.watched == []
        assert tells(it, words)


def test_without_a_lock_file_nobody_is_killed(path: str, hold: Hold) -> None:
    other = hold("os.unlink(path)")
    with found(targets_of(connection(path, other.pid))) as it:
        assert isinstance(it.obstacle, ConfigurationError)
    assert targets_at(path, Trust()) is None


def test_a_lock_that_nobody_holds_is_no_server(path: str, hold: Hold) -> None:
    hold("1")
    assert targets_at(path, Trust()) is None


def test_a_client_that_may_not_read_the_lock_file_can_not_kill_but_watches_the_listener(
    path: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hold(LISTENER)

    def unreadable(path: str) -> NoReturn:
        raise PermissionError(path)

    monkeypatch.setattr(targets, "LockFile", unreadable)
    with found(targets_of(connection(path, server.pid))) as it:
        assert isinstance(it.obstacle, AccessDenied)
        assert pids(it.watched) == [server.pid]
    with found(targets_at(path, Trust())) as it:
        assert isinstance(it.obstacle, AccessDenied)


def test_processes_of_another_user_than_the_lock_files_are_not_killed(
    path: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, worker = hold(HUB), hold(WORKER)
    monkeypatch.setattr(targets, "owner_of", lambda pid: os.geteuid() + 1)
    with found(targets_of(connection(path, hub.pid))) as it:
        assert (it.server, it.workers) == ([], [])
        assert isinstance(it.obstacle, ConfigurationError)
    with found(targets_at(path, Trust())) as it:
        assert tells(it, f"pid {hub.pid} serves .* owner of its lock file")
    assert worker.process.poll() is None


def test_a_master_of_another_user_is_not_killed(path: str, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, worker = hold(HUB), hold(WORKER)
    owners = {ME: os.geteuid() + 1}
    monkeypatch.setattr("flask_ctl.system.processes.owner_of", lambda pid: owners.get(pid, os.geteuid()))
    with found(targets_of(connection(path, hub.pid))) as it:
        assert (it.server, pids(it.workers)) == ([], [worker.pid])
        assert isinstance(it.obstacle, ConfigurationError)


def test_who_is_neither_the_owner_nor_root_is_told_before_anything_is_sent(
    path: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hold(LISTENER)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with found(targets_of(connection(path, server.pid))) as it:
        assert isinstance(it.obstacle, AccessDenied)


def test_the_lock_file_of_somebody_who_is_not_trusted_names_nobody(
    path: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(LISTENER)
    monkeypatch.setattr(Trust, "accepts", lambda self, uid: False)
    with pytest.raises(AccessDenied, match="belongs to"):
        targets_at(path, Trust())


def test_the_hub_of_a_killed_master_is_not_killed(path: str, hold: Hold) -> None:
    master = hold("import subprocess, sys; child = None")
    code = f"{LISTENER}; locks.take(descriptor, locks.hub_byte({master.pid}))"
    hub = hold(code)
    start = (
        f"child = subprocess.Popen([sys.executable, '-c', {HOLDER!r}, path, 'p = presence.Presence({master.pid});"
        " p.be_at([path[:-5]])'], stdin=subprocess.PIPE, stdout=subprocess.PIPE); child.stdout.readline()"
    )
    master.do(start)
    with found(targets_of(connection(path, hub.pid))) as it:
        assert it.pid == master.pid
        [worker] = pids(it.workers)
        it.kill()
        assert master.process.wait(TIMEOUT) == -signal.SIGKILL
        assert hub.process.poll() is None
        assert worker != master.pid


def test_what_the_kernel_tells_of_processes(hold: Hold) -> None:
    child = hold("1")
    assert (parent_of(child.pid), inner_pid(child.pid), owner_of(child.pid)) == (ME, child.pid, os.geteuid())
    handle = open_process(child.pid)
    assert handle is not None
    parent = open_parent(handle)
    assert parent is not None
    assert parent.pid == ME
    child.process.kill()
    child.process.wait()
    assert (parent_of(child.pid), owner_of(child.pid), open_parent(handle)) == (None, None, None)
    parent.close()
    handle.close()


def told(path: str, listener: Holder, pid: int, parent: int | None = None) -> int | None:
    """The process that a supervisor is told of, for a server that claims to be `pid`, and the child of `parent`."""
    client = ControlClient(path)
    client._connection = connection(path, listener.pid)
    supervisor = {"kind": "systemd", "unit": "shop.service", "restart": "unknown"}
    status = {"supervisor": supervisor, "pid": pid, "parent": parent, "control": {"hub": listener.pid}}
    manager = client._manager(status)
    return None if manager is None else manager.pid


def test_a_supervisor_is_told_of_no_process_but_the_one_that_the_kernel_names(path: str, hold: Hold) -> None:
    server, other = hold(LISTENER), hold("")
    assert told(path, server, server.pid) == server.pid
    assert [told(path, server, ME), told(path, server, server.pid, ME), told(path, server, 1)] == [None] * 3
    assert told(path, other, other.pid) is None, "it may only forward the socket"


def test_behind_a_hub_a_supervisor_is_told_of_the_master_by_the_lock(path: str, hold: Hold) -> None:
    hub, worker = hold(HUB), hold(WORKER)
    assert told(path, hub, ME) == ME
    assert [told(path, hub, hub.pid), told(path, hub, worker.pid), told(path, hub, ME, worker.pid)] == [None] * 3
