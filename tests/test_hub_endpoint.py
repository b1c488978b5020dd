"""What the hub takes from its workers: whatever they send, it answers or ignores, and never fails."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_ctl.dispatch.limits import Limits
from flask_ctl.dispatch.peer import Peer, this_process
from flask_ctl.dispatch.policy import Policy
from flask_ctl.transports.factory import CurveFiles
from flask_ctl.transports.reactor import Reactor
from flask_ctl.workers import messages
from flask_ctl.workers.hub.endpoint import WorkerEndpoint
from flask_ctl.workers.hub.table import Worker, Workers
from flask_ctl.workers.messages import AppRecord, Figures, Hello, Loaded, Tally, Welcome

INVALID_REQUEST, INVALID_PARAMS, NO_METHOD = -32600, -32602, -32601

APP = AppRecord(
    key="a", name="app", root_path="/srv", endpoints=[], required=False, grace=30.0, preflight_timeout=60.0,
    versions={"python": "3"}, commands={}, policy=Policy({"observe": (("uid", 1001),)}), limits=Limits(1),
    curve=CurveFiles(),
)  # fmt: skip
LEFT = {
    "id": "1", "type": "E", "message": "", "count": 1, "first": 1.0, "last": 2, "origin": "hook", "traceback": "",
    "route": None,
}  # fmt: skip
RECORD: list[Any] = [1.0, 30, "shop", "sold out", "MainThread", None, None]
HELLO = Hello(
    "0.1", os.getpid(), 1, Loaded(1, 0.5), 2, "/", {"name": "gunicorn"}, {"stop": 15}, False, None, [APP],
    Figures({"a": Tally(1, 0.5, 3, 0)}),
)  # fmt: skip


class FakeHub:
    """What the gate tells the hub."""

    def __init__(self) -> None:
        self.workers = Workers()
        self.told: list[Any] = []

    def generation_of(self, hello: Hello) -> int:
        return 1

    def welcome(self, worker: Worker) -> Welcome:
        return Welcome([], [], False, True)

    def changed(self) -> None:
        # What the hub does with figures: they are added up.
        self.told.append(("changed", sum(worker.figures.in_flight for worker in self.workers)))

    def ended(self, worker: Worker) -> None:
        self.told.append(("ended", worker.pid))

    def stop_asked(self, mode: Any, grace: float, peer: Peer) -> None:
        self.told.append(("stop", mode, grace))


class Link:
    """The worker's connection."""

    def send(self, message: bytes) -> None:
        pass

    def keep(self, reply: Any) -> None:
        pass

    def subscribe(self, stream: Any, *, plain: bool = False) -> int:
        raise AssertionError("the workers have no streams")

    def cancel(self, subscription: int) -> bool:
        return False


class Conversation:
    """One worker's messages to the gate of a hub."""

    def __init__(self, reactor: Reactor) -> None:
        self.hub = FakeHub()
        self.gate = WorkerEndpoint(
            self.hub.workers, generation_of=self.hub.generation_of, on_hello=self.hub.welcome,
            on_report=self.hub.changed, on_end=self.hub.ended, on_stop=self.hub.stop_asked,
            on_read_metrics=lambda key: Future(),
        )  # fmt: skip
        self.gate.attach(reactor)

    def say(self, value: Any) -> Any:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        answer = self.gate.handle(data, this_process(), lambda _: None, Link())
        assert answer is None or isinstance(answer, bytes)
        return None if answer is None else json.loads(answer)

    def code(self, value: Any) -> int | None:
        """The error's code, None where there is none."""
        answer = self.say(value)
        return None if answer is None or "error" not in answer else answer["error"]["code"]

    def hello(self) -> Conversation:
        assert self.code({"method": "hello", "id": 0, "params": messages.as_json(HELLO)}) is None
        return self

    def close(self) -> None:
        for worker in self.hub.workers:
            worker.close()


@contextlib.contextmanager
def conversation() -> Iterator[Conversation]:
    with contextlib.closing(Reactor()) as reactor, contextlib.closing(Conversation(reactor)) as talk:
        yield talk


@pytest.fixture
def worker() -> Iterator[Conversation]:
    with conversation() as talk:
        yield talk.hello()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff", -32700),
        (b"{", -32700),
        ([], INVALID_REQUEST),
        ({}, INVALID_REQUEST),
        ({"method": "nothing"}, NO_METHOD),
        ({"method": []}, NO_METHOD),
        ({"method": None}, NO_METHOD),
        ({"method": "received"}, INVALID_PARAMS),
        ({"method": "received", "params": []}, INVALID_PARAMS),
        ({"method": "received", "params": {"id": []}}, INVALID_PARAMS),
        ({"method": "received", "params": {"id": "1"}}, INVALID_PARAMS),
        ({"method": "stop"}, INVALID_PARAMS),
        ({"method": "stop", "params": {"mode": "fast"}}, INVALID_PARAMS),
        ({"method": "stop", "params": {"mode": "gently", "grace": 1}}, INVALID_PARAMS),
        ({"method": "stop", "params": {"mode": {}, "grace": 1}}, INVALID_PARAMS),
        ({"method": "stop", "params": {"mode": "fast", "grace": "1"}}, INVALID_PARAMS),
        ({"method": "stop", "params": {"mode": "fast", "grace": -1}}, INVALID_PARAMS),
        ({"method": "stop", "params": {"mode": "fast", "grace": True}}, INVALID_PARAMS),
        ({"method": "report"}, INVALID_PARAMS),
        ({"method": "report", "params": {"figures": []}}, INVALID_PARAMS),
        ({"method": "report", "params": {"figures": {"commands": "1"}}}, INVALID_PARAMS),
        ({"method": "report", "params": {"figures": {"apps": []}}}, INVALID_PARAMS),
        ({"method": "report", "params": {"figures": {"apps": {"a": {"in_flight": None}}}}}, INVALID_PARAMS),
        ({"method": "report", "params": {"figures": {"apps": {"a": {"oldest": "x"}}}}}, INVALID_PARAMS),
        ({"method": "exceptions"}, INVALID_PARAMS),
        ({"method": "exceptions", "params": {"app": "a", "exceptions": [{}]}}, INVALID_PARAMS),
        ({"method": "exceptions", "params": {"app": "a", "exceptions": [{**LEFT, "last": None}]}}, INVALID_PARAMS),
        ({"method": "exceptions", "params": {"app": "a", "exceptions": [{**LEFT, "last": 1e300}]}}, INVALID_PARAMS),
        ({"method": "exceptions", "params": {"app": "b", "exceptions": [LEFT]}}, INVALID_PARAMS),
        ({"method": "left", "params": {"logs": []}}, INVALID_PARAMS),
        ({"method": "left", "params": {"logs": {"last": 1, "items": [[1, []]]}}}, INVALID_PARAMS),
        ({"method": "left", "params": {"logs": {"last": 1, "items": [[1, [None, *RECORD[1:]]]]}}}, INVALID_PARAMS),
        ({"method": "left", "params": {"logs": {"last": 1, "items": [[1, [1e300, *RECORD[1:]]]]}}}, INVALID_PARAMS),
        ({"method": "left", "params": {"events": {"last": 1, "items": [[1, RECORD]]}}}, INVALID_PARAMS),
        ({"method": "hello"}, INVALID_PARAMS),
        ({"method": "hello", "params": []}, INVALID_PARAMS),
        ({"method": "hello", "params": {**messages.as_json(HELLO), "apps": "x"}}, INVALID_PARAMS),
        ({"method": "hello", "params": {**messages.as_json(HELLO), "apps": 1}}, INVALID_PARAMS),
        ({"method": "hello", "params": {**messages.as_json(HELLO), "apps": [{"key": 1}]}}, INVALID_PARAMS),
        (
            {
                "method": "hello",
                "params": {**messages.as_json(HELLO), "apps": [{**messages.as_json(APP), "commands": {"slow": 5}}]},
            },
            INVALID_PARAMS,
        ),
        ({"method": "hello", "params": {**messages.as_json(HELLO), "master": "1"}}, INVALID_PARAMS),
        ({"method": "hello", "params": {**messages.as_json(HELLO), "figures": None}}, INVALID_PARAMS),
        ({"id": []}, INVALID_REQUEST),
        ({"id": 1, "error": 5}, INVALID_REQUEST),
        ({"id": 1, "error": {"code": []}}, INVALID_REQUEST),
    ],
)
def test_what_has_not_the_right_form_is_answered_with_an_error(worker: Conversation, message: Any, code: int) -> None:
    assert worker.code(message) == code
    assert worker.hub.told == []


@pytest.mark.parametrize(
    "message",
    [
        {"method": "report", "params": {"figures": {"commands": 1, "later": "field"}, "later": 1}},
        {"method": "received", "params": {"id": 99}},
        {"method": "stop", "params": {"mode": "fast", "grace": 0}},
        {"id": 99, "result": None},
        {"id": 99, "error": {"code": -32000, "message": "x"}},
        {"method": "hello", "id": 0, "params": {**messages.as_json(HELLO), "later": "field"}},
        {"method": "left", "params": {"logs": {"last": 7, "items": [[7, RECORD]]}, "later": 1}},
    ],
)
def test_what_a_worker_may_say_is_taken_in(worker: Conversation, message: dict[str, Any]) -> None:
    assert worker.code(message) is None


def test_what_a_worker_leaves_is_kept_within_bounds(worker: Conversation) -> None:
    """The last entries, without fields that are not known."""
    entries = [{**LEFT, "id": str(n), "later": "field"} for n in range(200)]
    assert worker.code({"method": "exceptions", "params": {"app": "a", "exceptions": entries}}) is None
    (left,) = worker.hub.workers
    worker.hub.workers.remove(left)
    kept = worker.hub.workers.past_exceptions("a")
    assert [entry["id"] for entry in kept] == [str(n) for n in range(150, 200)]
    assert kept[0] == {**LEFT, "id": "150", "method": None, "where": None, "worker": os.getpid()}


def test_a_message_that_the_hub_fails_at_costs_nobody_else_the_hub(
    worker: Conversation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("endpoints")

    monkeypatch.setattr(worker.gate, "_on_stop", fail)
    assert worker.code({"method": "stop", "params": {"mode": "fast", "grace": 0}}) == -32603
    assert "a message of worker" in caplog.text
    assert worker.code({"method": "report", "params": {"figures": {}}}) is None


def test_a_worker_has_to_say_hello_first() -> None:
    with conversation() as talk:
        assert talk.code({"method": "report", "params": {"figures": {}}}) == INVALID_REQUEST


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(vars(HELLO))), inner, max_size=4)
    ),
    max_leaves=10,
)
messages_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "method": st.sampled_from(["hello", "report", "received", "stop", "nothing"]) | json_values,
        "params": json_values
        | st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "mode", "grace", "figures", "final"), json_values))
        | st.builds(
            lambda name, value: {**messages.as_json(HELLO), name: value},
            st.sampled_from(sorted(vars(HELLO))),
            json_values,
        ),
        "error": json_values,
        "result": json_values,
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(messages_of_any_kind, max_size=5))
def test_nothing_that_a_worker_sends_is_an_exception(values: list[Any]) -> None:
    with conversation() as talk:
        talk.hello()
        for value in values:
            talk.say(value)
        talk.hub.changed()
