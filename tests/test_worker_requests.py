"""What a worker does at its hub's requests: every order in which a stop and a reload can ask for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flask_ctl.dispatch.limits import Limits
from flask_ctl.dispatch.policy import Policy
from flask_ctl.lifecycle.app import ServedApp
from flask_ctl.servers.base import PreforkWorker
from flask_ctl.servers.middleware import RequestCounter
from flask_ctl.transports.factory import CurveFiles
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


class Worker:
    """The requests of one worker, and what it has sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.server = FakeWorker()
        app = ServedApp(
            name="sample", root_path="/srv", endpoints=[], required=False, grace=30.0, preflight_timeout=60.0,
            versions={}, policy=Policy(), limits=Limits(), curve=CurveFiles(), commands=[], stop_hooks=[],
            reload_hooks=[], requests=RequestCounter(lambda environ, start_response: []),
            run_command=lambda function, arguments: function(**arguments), run_hook=lambda hook: hook(),
        )  # fmt: skip
        self.requests = HubRequests(self.server, [app], Presence(1), self.sent.append, lambda: None)

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


def test_a_request_of_a_later_version_is_ignored() -> None:
    worker = Worker()
    worker.requests.handle("later", {}, 1)
    assert worker.sent == []


def test_a_request_with_unknown_parameters_is_answered_with_an_error() -> None:
    assert "error" in Worker().ask("drain", later=True)
