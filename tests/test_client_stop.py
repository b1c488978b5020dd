"""The client's side of a stop, over a connection and processes of our own: every order of answers, ends and kills."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import pytest

from flask_ctl import (
    AccessDenied,
    CommandError,
    ConfigurationError,
    ControlError,
    RemoteProtocolError,
    ServerReloaded,
    TimedOut,
)
from flask_ctl.client import stopping
from flask_ctl.client.connection import Connection
from flask_ctl.client.stop import FOLLOW, StopTimes, StopWaiter, Unanswered, kill_unreached
from flask_ctl.client.targets import Targets
from flask_ctl.protocol.jsonrpc import decode, encode, result_object
from flask_ctl.system.processes import ProcessHandle

NO_PID = 2**22
"""From here on the kernel gives no pids."""

RESULT = {"outcome": "drained", "drained": 2, "cut": 0, "elapsed": 0.1, "pid": 4711}


class Process(ProcessHandle):
    """A process that ends when a script says so, or when it is killed; `immortal` ones do not."""

    def __init__(self, name: str, pid: int, immortal: bool = False) -> None:
        read, self._write = os.pipe()
        super().__init__(pid, read)
        self.name, self.immortal = name, immortal
        self.killed = False

    def ended(self) -> bool:
        return self._write < 0

    def end(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def kill(self) -> None:
        self.killed = True
        if not self.immortal:
            self.end()

    def close(self) -> None:
        self.end()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Foreign(Process):
    def kill(self) -> NoReturn:
        raise PermissionError


class Fake(Connection):
    """A server that does what a script says: a step is a message, or a function that changes something.

    After the script it is silent, so that the caller's time passes at once.
    """

    endpoint = "/fake.sock"
    path: str | None = "/fake.sock"

    def __init__(self, *script: Any) -> None:
        super().__init__()
        self.script = list(script)
        self.sent: list[Any] = []
        self.stuck = False

    def peer_pid(self) -> None:
        return None

    def peer(self) -> None:
        return None

    def peer_has_ended(self) -> bool:
        return self.ended

    def close(self) -> None:
        pass

    def _transmit(self, messages: list[bytes], deadline: float | None) -> None:
        if self.stuck:
            raise TimedOut("does not read")
        self.sent += [decode(message) for message in messages]

    def _wait(self, deadline: float | None, watched: Sequence[ProcessHandle]) -> bool:
        if any(process.ended() for process in watched):
            return False
        return not self.ended and bool(self.script)

    def _fill(self) -> None:
        step = self.script.pop(0)
        if callable(step):
            step()
        elif step == "end":
            self.ended = True
        else:
            self._say(*step)
            # What ends with an answer has ended when its reader goes on.
            while step[0] == "stop" and self.script and callable(self.script[0]):
                self.script.pop(0)()

    def _say(self, method: str, value: Any) -> None:
        if method == "progress":
            params = {"id": self._id_of("stop"), **value}
            self._note(encode({"jsonrpc": "2.0", "method": "progress", "params": params}))
        elif isinstance(value, (CommandError, ServerReloaded)):
            error = {"code": value.code, "message": value.message}
            self._note(encode({"jsonrpc": "2.0", "id": self._id_of(method), "error": error}))
        else:
            self._note(encode(result_object(self._id_of(method), value)))

    def _id_of(self, method: str) -> Any:
        return next(message["id"] for message in self.sent if message["method"] == method)


class World(NamedTuple):
    """The processes of a server that may take part in a script, by their names."""

    single: Process
    reloader: Process
    master: Process
    hub: Process
    worker: Process
    foreign: Process
    immortal: Process

    def killed(self) -> set[str]:
        return {process.name for process in self if process.killed}


@pytest.fixture
def world() -> Iterator[World]:
    kinds = {"foreign": Foreign}
    processes = [kinds.get(name, Process)(name, NO_PID + n, name == "immortal") for n, name in enumerate(World._fields)]
    yield World(*processes)
    for process in processes:
        process.close()


def single(world: World) -> Targets:
    return Targets(4711, server=[world.single])


def reloaded(world: World) -> Targets:
    return Targets(4711, server=[world.single, world.reloader])


def staff(world: World) -> Targets:
    return Targets(4711, server=[world.master], hub=world.hub, workers=[world.worker])


def nobody(world: World) -> Targets:
    return Targets(obstacle=ConfigurationError("the kernel names nobody"))


def remote(world: World) -> Targets:
    return Targets(obstacle=ConfigurationError("over TCP"))


def init(world: World) -> Targets:
    return Targets(1, ConfigurationError("run it from outside, or docker stop"), unobservable=True)


def not_yours(world: World) -> Targets:
    return Targets(4711, AccessDenied("not yours"), server=[world.single])


def foreign(world: World) -> Targets:
    return Targets(4711, server=[world.foreign])


def immortal(world: World) -> Targets:
    return Targets(4711, server=[world.immortal])


PROGRESS = ("progress", {"phase": "drain", "in_flight": 3, "remaining": 5.0})
HOOKS = ("progress", {"phase": "hooks", "in_flight": 0, "remaining": 0.0})
ANSWER = ("stop", RESULT)


class Case(NamedTuple):
    targets: Callable[[World], Targets]
    script: list[Any]
    expected: tuple[Any, str] | None
    """Outcome and proof, or an exception with a part of its message."""

    kill: bool = False
    killed: frozenset[str] = frozenset()


def raises(kind: type[Exception], words: str) -> tuple[type[Exception], str]:
    return kind, words


CASES = {
    # What ends by itself
    "an answer, and the end": Case(single, [PROGRESS, ANSWER, "single"], ("drained", "process")),
    "an answer, and the ends of child and reloader": Case(
        reloaded, [ANSWER, "single", "reloader"], ("drained", "process")
    ),
    "an answer, then master and hub end": Case(staff, [ANSWER, "master", "hub"], ("drained", "process")),
    "an answer, then the master ends and the hub hangs": Case(staff, [ANSWER, "master"], ("drained", "process")),
    "an answer in a bigger program": Case(
        single, [("stop", {**RESULT, "embedded": True}), "end"], ("drained", "connection")
    ),
    "an answer, and the connection ends where nobody is named": Case(
        nobody, [ANSWER, "end"], ("drained", "connection")
    ),
    "an answer of process 1 is all that can be had": Case(init, [ANSWER], ("drained", "answer")),
    # What ends otherwise
    "a process that is killed by somebody": Case(single, [PROGRESS, "single"], ("died", "process")),
    "a connection that ends with its process": Case(single, ["connection and single"], ("died", "process")),
    "a connection that ends where nobody is named": Case(nobody, ["end"], raises(Unanswered, "the server goes on")),
    "a connection that ends on another machine": Case(remote, ["end"], ("died", "connection")),
    "a master that is killed by somebody": Case(staff, ["master"], ("died", "process")),
    "a hub that is killed by somebody": Case(staff, ["hub"], raises(Unanswered, "the server goes on")),
    "a hub that is killed in the drain": Case(staff, [PROGRESS, "hub"], raises(Unanswered, "the server goes on")),
    "a hub that is killed with its server": Case(staff, ["hub and master"], ("died", "process")),
    "perhaps a hub, for one who can't know": Case(
        not_yours, ["connection and single"], raises(Unanswered, "the server goes on")
    ),
    "a stop that a reload has lost": Case(single, ["lost"], raises(Unanswered, "was reloaded before it answered stop")),
    "a stop that a reload has lost, of a server to be killed": Case(
        single, ["lost"], raises(Unanswered, "was reloaded before it answered stop"), True
    ),
    "a stop that is lost where another server may have answered": Case(
        remote, ["lost"], raises(ServerReloaded, "before stop was answered, which may have run")
    ),
    "a connection to a hub that ends on another machine": Case(
        remote, [("ping", {"pid": 4711, "hub": 4712}), "end"], raises(ControlError, "the outcome is not known")
    ),
    "a refusal": Case(single, [("stop", CommandError("no", code=-32002))], raises(CommandError, "no")),
    "an answer without an outcome": Case(single, [("stop", {})], raises(RemoteProtocolError, "no outcome")),
    # Too late
    "silence": Case(single, [], raises(TimedOut, "pid 4711 has not ended .* still there$")),
    "silence of what can't be killed": Case(
        nobody, [], raises(TimedOut, "the server at /fake.sock has not ended .* still there$")
    ),
    "silence of process 1": Case(init, [], raises(TimedOut, "pid 1 has not ended .* still there$")),
    "silence with requests in flight": Case(single, [PROGRESS], raises(TimedOut, "3 in flight")),
    "silence in the hooks": Case(single, [HOOKS], raises(TimedOut, "on_stop hooks run")),
    # Killed
    "killed out of silence": Case(single, [], ("killed", "process"), True, frozenset({"single"})),
    "killed with requests in flight": Case(single, [PROGRESS], ("killed", "process"), True, frozenset({"single"})),
    "killed after the answer": Case(single, [ANSWER], ("killed", "process"), True, frozenset({"single"})),
    "killed with its reloader": Case(reloaded, [], ("killed", "process"), True, frozenset({"single", "reloader"})),
    "killed with its workers, without the hub": Case(
        staff, [], ("killed", "process"), True, frozenset({"master", "worker"})
    ),
    "its hub has died before it was asked, so the next one is": Case(
        staff, ["hub"], raises(Unanswered, "the server goes on"), True
    ),
    "killed after its hub has died": Case(
        staff, [PROGRESS, "hub"], ("killed", "process"), True, frozenset({"master", "worker"})
    ),
    "not killed because it ends in time": Case(single, [ANSWER, "single"], ("drained", "process"), True),
    "not killed because its master ends in time": Case(staff, [ANSWER, "master"], ("drained", "process"), True),
    "not killed because it dies before": Case(single, ["single"], ("died", "process"), True),
    "nobody to kill": Case(nobody, [], raises(ConfigurationError, "names nobody"), True),
    "process 1 is not killed": Case(init, [], raises(ConfigurationError, "docker stop"), True),
    "nobody to kill without permission": Case(not_yours, [], raises(AccessDenied, "not yours"), True),
    "the kernel does not permit the kill": Case(foreign, [], raises(AccessDenied, "another user"), True),
}


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end is waited for this long."""
    monkeypatch.setattr("flask_ctl.client.stop.MARGIN", 0.02)
    monkeypatch.setattr("flask_ctl.client.stop.STATUS_TIMEOUT", 0.02)
    monkeypatch.setattr("flask_ctl.client.stop.HUB_MARGIN", 0.02)
    monkeypatch.setattr("flask_ctl.client.stop.END_DELAY", 0.02)


def call_of(world: World, case: Case) -> tuple[StopWaiter, Fake, Targets]:
    """A StopWaiter, its connection and its targets."""
    connection = Fake()
    steps = {process.name: process.end for process in world}

    def both() -> None:
        connection.ended = True
        world.single.end()

    def all_of_it() -> None:
        world.hub.end()
        world.master.end()

    def lose() -> None:
        connection.ended = connection.lost = True

    steps |= {"connection and single": both, "hub and master": all_of_it, "lost": lose}
    connection.script = [steps.get(step, step) if isinstance(step, str) else step for step in case.script]
    targets = case.targets(world)
    if case.targets is remote:
        connection.path = None
    call = StopWaiter(connection, targets, StopTimes(time.monotonic(), 0.02, 0.01 if case.kill else None))
    return call, connection, targets


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stop_ends_with_the_truth(world: World, case: Case) -> None:
    call, _, targets = call_of(world, case)
    assert case.expected is not None
    expectation: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if not isinstance(case.expected[0], str):
        expectation = pytest.raises(case.expected[0], match=case.expected[1])
    with contextlib.closing(targets), expectation:
        call.ask({"mode": "graceful", "delay": 0.0})
        result = call.until_gone()
        assert (result["outcome"], result["proof"]) == case.expected
    assert world.killed() == case.killed


@pytest.mark.parametrize("targets", [nobody, init, not_yours], ids=lambda kind: kind.__name__)
def test_who_is_not_to_be_killed_is_not_even_asked_to_stop(world: World, targets: Callable[[World], Targets]) -> None:
    call, connection, opened = call_of(world, Case(targets, [], None, kill=True))
    with pytest.raises((ConfigurationError, AccessDenied)):
        call.ask({"mode": "graceful", "delay": 0.0})
    assert connection.sent == []
    opened.close()


def test_a_server_that_does_not_even_read_is_killed(world: World) -> None:
    call, connection, targets = call_of(world, Case(single, [], None, kill=True))
    connection.stuck = True
    call.ask({"mode": "graceful", "delay": 0.0})
    assert call.until_gone()["outcome"] == "killed"
    targets.close()


def test_a_killed_process_that_stays_is_told_and_no_second_kill_is_advised(world: World) -> None:
    call, _, targets = call_of(world, Case(immortal, [], None, kill=True))
    call.ask({"mode": "graceful", "delay": 0.0})
    with pytest.raises(TimedOut, match="was killed, but is still there") as late:
        call.until_gone()
    assert late.value.data["can_be_killed"] is False
    targets.close()


def test_where_the_kernel_names_nobody_the_pid_is_the_servers_own_word_and_kills_nobody(world: World) -> None:
    call, connection, targets = call_of(world, Case(nobody, [("ping", {"pid": os.getpid()}), PROGRESS], None))
    call.ask({"mode": "graceful", "delay": 0.0})
    assert [message["method"] for message in connection.sent] == ["ping", "stop"]
    accepted = call.until_accepted()
    assert (accepted["accepted"], accepted["pid"]) == (True, os.getpid())
    assert world.killed() == set()
    targets.close()


def test_where_the_kernel_names_somebody_nothing_else_is_asked(world: World) -> None:
    call, connection, targets = call_of(world, Case(single, [PROGRESS], None))
    call.ask({"mode": "graceful", "delay": 0.0})
    assert [message["method"] for message in connection.sent] == ["stop"]
    assert call.until_accepted()["pid"] == 4711
    targets.close()


def test_a_stop_that_is_followed_lasts_as_long_as_its_progress_tells(world: World) -> None:
    connection = Fake(("progress", {"remaining": 60.0}))
    targets = single(world)
    call = StopWaiter(connection, targets, StopTimes(time.monotonic(), FOLLOW))
    call.ask({"mode": "graceful", "delay": 0.0})
    assert call.until_accepted()["remaining"] == 60.0
    assert (call._until() or 0) > time.monotonic() + 59
    targets.close()


@pytest.mark.parametrize(("remaining", "least"), [(0.0, 29), (60.0, 59)])
def test_a_stop_that_a_reload_cuts_off_waits_for_the_next_image_as_long_as_that_may_import(
    world: World, remaining: float, least: int
) -> None:
    targets = single(world)
    params = {"mode": "graceful", "delay": 0.0}
    call = StopWaiter(
        Fake(("progress", {"remaining": remaining}), ("stop", ServerReloaded.before("stop"))),
        targets,
        StopTimes(time.monotonic(), FOLLOW),
    )
    call.ask(params)
    with pytest.raises(Unanswered):
        call.until_gone()
    assert (call.times.to_connect(5.0) or 0) > least
    again = StopWaiter(Fake(), targets, call.times)
    again.ask(params)
    assert (again._until() or 0) > time.monotonic() + least
    targets.close()


def test_a_server_that_could_not_be_asked_is_killed_or_the_reason_is_raised(world: World) -> None:
    result = kill_unreached(single(world), time.monotonic())
    assert (result["outcome"], result["pid"], result["proof"]) == ("killed", 4711, "process")
    assert world.killed() == {"single"}
    with pytest.raises(ConfigurationError):
        kill_unreached(nobody(world), time.monotonic())


def test_a_stop_by_the_supervisor_is_followed_first_and_each_progress_is_told_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "targets_of", lambda connection: single(world))
    connection = Fake(ANSWER, world.single.end)
    told: list[int] = []
    params = {"mode": "graceful", "delay": 0.0, "_progress": True}
    result = stopping.stop_server(
        lambda times: connection,
        lambda: None,
        params,
        StopTimes(time.monotonic(), 60.0),
        killed_at=None,
        wait=True,
        on_progress=None,
        tell=lambda: told.append(len(connection.sent)),
    )
    assert (result["outcome"], told) == ("drained", [1])
    assert [message["params"] for message in connection.sent] == [
        {**params, "begin": False, "_progress": False},
        params,
    ]
