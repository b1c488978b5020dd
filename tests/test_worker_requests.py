"""What a worker does at its hub's requests: every order in which a stop and a reload can ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from fakes import Gate
from harness import TIMEOUT, Pending, until
from prometheus_client.core import CounterMetricFamily

from flask_ctl.dispatch.commands import command_from
from flask_ctl.dispatch.limits import Limits
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.pool import SIZE
from flask_ctl.inspection.exceptions import ExceptionTable
from flask_ctl.inspection.levels import LogLevels
from flask_ctl.inspection.metrics import LEFT_OUT, family, unpack
from flask_ctl.inspection.registries import Registries
from flask_ctl.lifecycle.app import ServedApp
from flask_ctl.servers.base import PreforkWorker
from flask_ctl.servers.middleware import RequestCounter
from flask_ctl.transports.factory import CurveFiles
from flask_ctl.workers.agent.agent import _counted
from flask_ctl.workers.agent.executor import GreenletExecutor, ThreadExecutor
from flask_ctl.workers.agent.presence import Presence
from flask_ctl.workers.agent.requests import HubRequests


class FakeWorker(PreforkWorker):
    """A worker with one connection that has not sent a byte, whenever it is asked."""

    name = "fake"

    def __init__(self) -> None:
        super().__init__("1", 1, 1, {})
        self.accepting = True
        self.closed_silent = 0

    listeners: Any = ()

    def obstacle(self) -> None:
        return None

    def start_directory(self, given: str | None) -> Any:
        raise NotImplementedError

    def preflight(self) -> None:
        return None

    def set_accepting(self, accept: bool) -> bool:
        self.accepting = accept
        return True

    def _listening(self) -> list[Any]:
        return []

    def silent(self) -> int:
        return 1

    def close_silent(self) -> None:
        self.closed_silent += 1


class Moving(FakeWorker):
    """A worker whose only connection is accepted, and its request read, after so many questions."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience

    def _is_at(self, place: str) -> int:
        self.patience -= 1
        return int(place == ("backlog" if self.patience >= 0 else "begun"))

    def waiting(self) -> int:
        return self._is_at("backlog")

    def silent(self) -> int:
        return self._is_at("silent")

    def begun(self) -> int:
        return self._is_at("begun")


class Worker:
    """The requests of one worker, and what it has sent. `ran` are its hooks; `on_drain` can hang, and commands do."""

    def __init__(self, server: FakeWorker | None = None) -> None:
        self.on_drain, self.command = Gate(), Gate()
        self.ran: list[str] = []
        self.sent: list[Any] = []
        self.server = server or FakeWorker()
        app = ServedApp(
            name="sample", root_path="/srv", endpoints=[], required=False, grace=30.0, preflight_timeout=60.0,
            versions={}, policy=Policy(), limits=Limits(), curve=CurveFiles(),
            commands=[command_from(self._hang, name="hang")], stop_hooks=[lambda: self.ran.append("on_stop")],
            drain_hooks=[self._drain_hook], reload_hooks=[],
            exceptions=ExceptionTable(), registries=Registries(),
            requests=RequestCounter(lambda environ, start_response: []),
            run_command=lambda function, arguments: function(**arguments), run_hook=lambda hook: hook(),
        )  # fmt: skip
        self.requests = HubRequests(self.server, [app], Presence(1), self.sent.append, lambda: None)

    def _drain_hook(self) -> None:
        self.on_drain()
        self.ran.append("on_drain")

    def _hang(self) -> None:
        self.command()

    def hang(self) -> None:
        """Stop being ready, with a hook for that which hangs."""
        self.on_drain.shut()
        self.requests.set_state("running", ready=True)
        self.requests.set_state("stopping", ready=False)
        assert self.on_drain.reached.wait(TIMEOUT)

    def run_stop_hooks(self, patience: float) -> Pending:
        """As the hub asks for it, its answer."""
        self.sent.clear()
        self.requests.handle("run_stop_hooks", {"patience": patience}, 1)

        def answer() -> Any:
            until(lambda: len(self.sent) == 2, "a receipt, and the answer")
            return json.loads(self.sent[1])["result"]

        return Pending.call(answer)

    def ask(self, method: str, **params: Any) -> Any:
        self.requests.handle(method, params, 1)
        return json.loads(self.sent.pop())


ORDERS: dict[str, tuple[list[str], bool, int]] = {
    "no request": ([], True, 0),
    "a stop": (["drain"], False, 1),
    "a stop that no longer waits for silent connections": (["drain", "close_silent"], False, 0),
    "a reload": (["pause"], False, 0),
    "a reload whose signal has been sent": (["pause", "resume"], True, 0),
    "a stop that calls a reload off": (["pause", "drain", "resume"], False, 1),
}


@pytest.mark.parametrize(("methods", "accepting", "silent"), ORDERS.values(), ids=ORDERS)
def test_after_these_requests_a_worker_accepts_and_counts(methods: list[str], accepting: bool, silent: int) -> None:
    worker = Worker()
    for method in methods:
        assert "result" in worker.ask(method)
    assert worker.server.accepting == accepting
    assert worker.ask("figures")["result"]["silent"] == silent


@pytest.mark.parametrize("patience", range(4))
def test_a_connection_that_goes_on_while_it_is_counted_is_not_missed(patience: int) -> None:
    """Or the master ends a worker that has just accepted it."""
    worker = Worker(Moving(patience))
    worker.ask("drain")
    worker.server.patience = patience  # type: ignore[attr-defined]
    figures = worker.ask("figures")["result"]
    assert figures["waiting"] or figures["silent"] or figures["begun"]


def test_silent_connections_that_are_accepted_later_are_closed_too() -> None:
    worker = Worker()
    worker.ask("drain")
    worker.ask("close_silent")
    worker.ask("figures")
    assert worker.server.closed_silent == 2


def test_a_worker_that_ends_while_it_is_paused_leaves_its_connections_to_the_next() -> None:
    worker = Worker()
    worker.ask("pause")
    worker.requests.begin_end()
    assert worker.server.accepting


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.on_drain.open()
    worker.command.open()
    for executor in (worker.requests._executor, worker.requests._hooks_executor):
        assert isinstance(executor, ThreadExecutor)
        executor._pool.close()


def test_hooks_of_a_stop_follow_those_of_the_drain(worker: Worker) -> None:
    worker.hang()
    answer = worker.run_stop_hooks(patience=TIMEOUT)
    assert worker.ran == []
    worker.on_drain.open()
    assert answer.result() is None
    worker.requests.finish()
    assert worker.ran == ["on_drain", "on_stop"]


def test_hooks_of_a_drain_that_hang_are_named_and_left_behind(worker: Worker) -> None:
    worker.hang()
    assert worker.run_stop_hooks(patience=0.05).result() == "_drain_hook"
    # Nor does the end of the worker wait for them once more.
    worker.requests.finish()
    assert worker.ran == ["on_stop"]


def test_a_worker_that_ends_meanwhile_runs_its_hooks_of_a_stop_once(worker: Worker) -> None:
    worker.hang()
    answer = worker.run_stop_hooks(patience=TIMEOUT)
    worker.requests.grace = 0.05
    worker.requests.finish()
    assert worker.ran == ["on_stop"]
    worker.on_drain.open()
    assert answer.result() is None
    assert worker.ran == ["on_stop", "on_drain"]


def test_hooks_run_though_every_thread_of_commands_hangs(worker: Worker) -> None:
    worker.command.shut()
    for id in range(SIZE):
        worker.requests.handle("call", {"app": next(iter(worker.requests.by_key)), "name": "hang"}, id)
    worker.requests.set_state("running", ready=True)
    assert worker.requests.set_state("stopping", ready=False).result(TIMEOUT)["hooks_run"] == 1
    assert worker.requests.count().commands == SIZE
    assert worker.run_stop_hooks(patience=TIMEOUT).result() is None
    assert worker.ran == ["on_drain", "on_stop"]


def test_chores_of_ours_wait_behind_hanging_commands_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    (key, app), *_ = worker.requests.by_key.items()
    registry = OrderRegistry(Gate())
    app.registries.add(registry, {})
    monkeypatch.setattr(LogLevels, "due", lambda _: True)
    worker.command.shut()
    for id in range(SIZE):
        worker.requests.handle("call", {"app": key, "name": "hang"}, id)
    for id in (10, 11, 12):
        worker.requests.handle("collect", {"app": key}, id)
        worker.requests.expire_levels()
    assert worker.requests.count().commands == SIZE + 2
    worker.command.open()
    until(lambda: not worker.requests.count().commands, "all have run")
    answers = {line["id"]: line["result"] for line in map(json.loads, worker.sent) if line.get("id", 0) >= 10}
    assert [unpack(answers[id]).families[0]["name"] for id in (10, 11, 12)] == ["orders"] * 3
    # And then once more.
    for id in (13, 14):
        worker.requests.handle("collect", {"app": key}, id)
        until(lambda: not worker.requests.count().commands, "it has run")


def test_a_greenlet_counts_until_its_result_has_been_told() -> None:
    executor = GreenletExecutor(0)
    told: list[Any] = []
    executor.submit(lambda: "result", lambda result: told.append((result, executor.unfinished)))
    executor.wait(TIMEOUT)
    assert told == [("result", 1)]
    assert executor.unfinished == 0
    gevent.get_hub().destroy(destroy_loop=True)


class OrderRegistry:
    """An app's orders, in a registry whose collector can hang."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.orders = 0

    def collect(self) -> Iterator[Any]:
        self._gate()
        yield CounterMetricFamily("orders", "", self.orders)


def test_a_collector_that_hangs_does_not_keep_a_worker_from_its_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (app,) = worker.requests.by_key.values()
    registry = OrderRegistry(worker.command)
    app.registries.add(registry, {})

    def left() -> Any:
        worker.sent.clear()
        worker.requests.leave()
        last = json.loads(worker.sent[0])["params"]
        assert last["last"] is True
        return unpack(last["registered"]).families[0]["samples"][0][2]

    registry.orders = 3
    assert left() == 3
    monkeypatch.setattr("flask_ctl.workers.agent.requests.COLLECT_TIMEOUT", 0.05)
    registry.orders = 4
    worker.command.shut()
    assert left() == 3
    assert "the last metrics of sample can't be collected: TimedOut" in caplog.text


def test_samples_without_room_in_the_answer_to_a_view_are_counted() -> None:
    told = [family(LEFT_OUT, "gauge", "", [["", {}, 2]]), family("orders", "gauge", "", [["", {}, 1]])]
    assert _counted(told, 5)[0]["samples"] == [[LEFT_OUT, {}, 7]]


def test_a_request_of_a_later_version_is_ignored() -> None:
    worker = Worker()
    worker.requests.handle("later", {}, 1)
    assert worker.sent == []


def test_a_request_with_unknown_parameters_is_answered_with_an_error() -> None:
    assert "error" in Worker().ask("drain", later=True)
