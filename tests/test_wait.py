"""Waiting for an instance to be ready, gone, drained, idle, or of a generation."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Clock
from flask import Flask
from harness import TIMEOUT, Done, Pending, Serve, Site, run_cli
from manyworkers import hub, kill
from servers import SERVERS

from flask_ctl import (
    AccessDenied,
    BackgroundServer,
    Control,
    ControlClient,
    ControlError,
    LocalProtocolError,
    NotRunning,
    ServerDied,
    TimedOut,
)
from flask_ctl.client import wait
from flask_ctl.client.targets import Targets
from flask_ctl.client.trust import Trust
from flask_ctl.client.wait import Condition, InstanceId, Waiter
from flask_ctl.client.wait import Site as Asked

FIRST, SECOND = "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:05.000Z"
NOTHING, SILENT, DIED = NotRunning("nothing"), TimedOut("silent"), ServerDied("died")


def told(state: str = "running", pid: int = 7, started: str = FIRST, busy: int = 0, generation: int = 1) -> Any:
    """What `status` answers."""
    requests = {"in_flight": busy}
    return {"pid": pid, "started_at": started, "state": state, "generation": generation, "requests": requests}


def scripted(*answers: Any) -> Asked:
    """A server that answers `status` so; the last answer is for ever."""
    left = list(answers)

    def status(seconds: float) -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def connect(seconds: float) -> Any:
        raise AssertionError("only gone connects by itself")

    return Asked(connect, lambda: None, status, lambda: None, Trust())


# What is waited for, what the server answers one after another, and what comes of it.
TABLE: list[tuple[Condition, list[Any], Any]] = [
    ("ready", [told()], "ready"),
    ("ready", [NOTHING, NOTHING, told("starting"), told()], "ready"),
    ("ready", [told("stopping"), NOTHING, told(pid=8, started=SECOND)], "ready"),
    ("ready", [told("reloading"), SILENT, DIED, told(generation=2)], "ready"),
    ("ready", [NOTHING], NotRunning),
    ("ready", [told("starting"), DIED], NotRunning),
    ("ready", [told("starting")], TimedOut),
    ("ready", [told("draining")], TimedOut),
    ("ready", [SILENT], TimedOut),
    ("ready", [AccessDenied("no")], AccessDenied),
    ("idle", [told(busy=2), told(busy=1), told()], "idle"),
    ("idle", [told(busy=1), SILENT, told()], "idle"),
    ("idle", [told("stopping", busy=1), told("stopping")], "idle"),
    ("idle", [told(busy=1)], TimedOut),
    ("idle", [NOTHING], NotRunning),
    ("idle", [told(busy=1), NOTHING], NotRunning),
    ("idle", [told(busy=1), DIED], NotRunning),
    ("idle", [told(busy=1), told(pid=8, started=SECOND)], NotRunning),
    ("idle", [told(busy=1), told(started=SECOND)], NotRunning),
    ("idle", [told(busy=1), told(started="2026-01-01T00:00:00.004Z")], "idle"),
    ("drained", [told(), told("draining", busy=1), told("draining")], "drained"),
    ("drained", [told()], TimedOut),
    ("drained", [told("stopping")], TimedOut),
    ("drained", [told("draining", busy=1)], TimedOut),
    ("drained", [told("draining", busy=1), NOTHING], NotRunning),
    ("generation", [told(), told("reloading"), told("starting", generation=3), told(generation=3)], "generation 3"),
    ("generation", [told(generation=4)], "generation 3"),
    ("generation", [told(generation=2)], TimedOut),
    ("generation", [told(generation=2), told(pid=8, generation=3)], NotRunning),
]


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits takes no time."""
    monkeypatch.setattr(wait, "time", Clock())


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize(("condition", "answers", "expected"), TABLE)
def test_it_ends_as_the_table_says(condition: Condition, answers: list[Any], expected: Any) -> None:
    waiter = Waiter(scripted(*answers), 30.0)
    number = 3 if condition == "generation" else None
    if isinstance(expected, str):
        assert waiter.until(condition, number)["reached"] == expected
    else:
        with pytest.raises(ControlError) as error:
            waiter.until(condition, number)
        assert type(error.value) is expected


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("condition", ["ready", "idle"])
def test_a_last_question_without_time_for_an_answer_hides_no_answer_before(condition: Condition) -> None:
    for timeout, said in ((0.1, "is not"), (30.0, "silent")):
        with pytest.raises(TimedOut, match=said):
            Waiter(scripted(told("draining", busy=1), SILENT), timeout).until(condition)


class Ended:
    """A connection to a server that is embedded in a process, whose end is that of the connection."""

    path, ended = None, True

    def receive(self, deadline: float | None) -> None:
        raise AssertionError("it has ended")


@pytest.mark.usefixtures("_clock")
def test_gone_asks_again_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer to the connection, then none to `status`, is no end."""
    steps: list[Any] = [SILENT, Ended(), Ended(), NOTHING]

    def connect(seconds: float) -> Any:
        step = steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    monkeypatch.setattr(wait, "targets_of", lambda connection: Targets())
    site = scripted(SILENT, told())._replace(connect=connect)
    result = Waiter(site, 30.0).until_gone()
    assert (result["pid"], result["proof"], steps) == (7, "absence", [])
    steps[:] = [SILENT] * 1000
    with pytest.raises(TimedOut, match="silent"):
        Waiter(site, 0.1).until_gone()


def test_only_the_process_of_a_given_pid_is_the_instance() -> None:
    with pytest.raises(NotRunning, match="the instance there is pid 7, not pid 9"):
        Waiter(scripted(told()), 30.0, pid=9).until("idle")
    assert Waiter(scripted(told(), told(pid=9)), 30.0, pid=9).until_ready()["pid"] == 9


@pytest.mark.usefixtures("_clock")
def test_a_restart_waits_for_another_instance_of_the_same_pid_or_another() -> None:
    former = InstanceId.of(told())
    after = [told(), told("stopping"), NOTHING, told("starting", started=SECOND), told(started=SECOND)]
    assert Waiter(scripted(*after), 30.0).until_ready(former)["started_at"] == SECOND
    with pytest.raises(TimedOut, match="it is still the instance from before"):
        Waiter(scripted(told()), 0.1).until_ready(former)


@pytest.mark.parametrize("wrong", [{"condition": "generation"}, {"condition": "idle", "generation": 2}])
def test_only_a_generation_has_a_number(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match="generation"):
        ControlClient("/nothing").wait(**wrong)


# Real servers

Gone = Callable[[str], Pending]


def waiting(*arguments: str) -> Pending:
    """`wait --json` in the background."""
    return Pending.call(lambda: run_cli("wait", "--json", *arguments))


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Pending]:
    """Begin to wait for the end of the instance at an address; when this returns, it is watched."""

    def begin(address: str) -> Pending:
        begun = threading.Event()

        class Announced(Waiter):
            def _wait_for_end(self, *args: Any) -> bool:
                begun.set()
                return super()._wait_for_end(*args)

        monkeypatch.setattr(wait, "Waiter", Announced)

        def until_gone() -> dict[str, Any]:
            with ControlClient(address) as client:
                return client.wait("gone", timeout=TIMEOUT)

        pending = Pending.call(until_gone)
        assert begun.wait(TIMEOUT)
        return pending

    return begin


def code_and_result(done: Done) -> tuple[int, Any]:
    return done.returncode, json.loads(done.stdout)


def test_gone_is_the_end_of_the_process_and_ready_its_successor(serve: Serve, gone: Gone) -> None:
    """Another instance that has come to the address does not hold it up."""
    server = serve()
    held = server.begin("/hold/a")
    assert run_cli("wait", "idle", "--timeout", "0", "-s", server.socket).returncode == 4
    watch, idle = gone(server.socket), waiting("idle", "-s", server.socket)
    server.release("a")
    assert idle.result().returncode == 0
    assert held.result() == (200, b"held a")
    assert run_cli("wait", "gone", "--timeout", "0.1", "-s", server.socket).returncode == 4
    with server.client() as client:
        client.stop()
    result = watch.result()
    assert (result["reached"], result["pid"], result["proof"]) == ("gone", server.pid, "process")

    done = run_cli("wait", "gone", "-s", server.socket)
    assert (done.returncode, done.stdout) == (0, "nothing is running\n")
    for condition in (["ready", "--timeout", "0.1"], ["idle"], ["drained"], ["generation", "1"]):
        assert run_cli("wait", *condition, "-s", server.socket).returncode == 3

    ready = waiting("ready", "-s", server.socket)
    other = serve(socket=server.socket)
    code, result = code_and_result(ready.result())
    assert (code, result["pid"], result["state"]) == (0, other.pid, "running")
    done = run_cli("wait", "gone", "--pid", str(server.pid), "-s", server.socket)
    assert (done.returncode, done.stdout) == (0, f"pid {server.pid} is gone; another instance serves there\n")


def test_a_suspended_process_is_not_gone_until_it_is_killed(serve: Serve, gone: Gone) -> None:
    server = serve().suspend()
    assert run_cli("wait", "gone", "--timeout", "0.1", "-s", server.socket).returncode == 4
    assert run_cli("wait", "ready", "--timeout", "0.1", "-s", server.socket).returncode == 4
    watch = gone(server.socket)
    os.kill(server.pid, signal.SIGKILL)
    assert watch.result()["pid"] == server.pid


def test_a_generation_is_reached_by_a_reload_and_is_no_end(serve: Serve, gone: Gone) -> None:
    server = serve("flask-ctl run")
    reached, watch = waiting("generation", "2", "-s", server.socket), gone(server.socket)
    server.reload()
    assert code_and_result(reached.result())[1]["generation"] == 2
    assert not watch.done
    with server.client() as client:
        client.stop()
    assert watch.result()["proof"] == "process"


def test_workers_are_gone_with_their_master_not_with_their_hub(start: Serve, gone: Gone) -> None:
    server = start(SERVERS["gunicorn sync"])
    watch = gone(server.socket)
    kill(hub(server))
    assert code_and_result(run_cli("wait", "ready", "--json", "-s", server.socket))[1]["pid"] == server.pid
    with server.client() as client:
        client.stop()
    assert watch.result()["pid"] == server.pid


@pytest.mark.parametrize(
    "site", [pytest.param(name, marks=pytest.mark.full) for name in ("ipc", "tcp with CURVE")], indirect=True
)
def test_over_zeromq_too(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    with server.client() as client:
        assert client.wait("ready")["pid"] == server.pid
        ended = Pending.call(lambda: run_cli("wait", "gone", "-s", server.socket, env=site.client_env))
        client.stop()
        assert client.wait("gone")["proof"] == "absence"
    assert ended.result().returncode == 0


def test_a_server_in_this_process_is_gone_when_its_socket_is(short_path: pathlib.Path, gone: Gone) -> None:
    app = Flask("embedded")
    app.config["CTL_SOCKET"] = "off"
    Control(app)
    path = str(short_path / "x.sock")
    with BackgroundServer(app, socket=path):
        watch = gone(path)
    assert watch.result()["proof"] == "absence"


def test_without_an_address_it_searches_until_there_is_an_instance(short_path: pathlib.Path) -> None:
    assert run_cli("wait", "ready", "--timeout", "0", cwd=short_path).returncode == 3
    assert run_cli("wait", "gone", cwd=short_path).returncode == 0


def test_a_wrong_number_is_wrong_usage() -> None:
    for words in (["generation"], ["idle", "3"], ["generation", "0"], ["nothing"]):
        assert run_cli("wait", *words, "-s", "/nothing").returncode == 2
