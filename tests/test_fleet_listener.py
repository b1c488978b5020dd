"""The requests over NATS on the control thread, with a stand-in for the thread that has the connection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flask_ctl.dispatch.commands import CommandRegistry, Role, command_from
from flask_ctl.dispatch.dispatcher import Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.replies import Call
from flask_ctl.dispatch.streams import Pulled, Stream
from flask_ctl.errors import CONFLICT
from flask_ctl.fleet.agent import Deliver, Identity, Incoming
from flask_ctl.fleet.listener import BUSY, HIGH_WATER, KEEP_TIME, MAX_WAITING, FleetListener
from flask_ctl.fleet.presence import Presence
from flask_ctl.fleet.settings import Broker, FleetSettings
from flask_ctl.fleet.thread import NOT_YET, FleetThread
from flask_ctl.system.native import new_future
from flask_ctl.transports.reactor import Reactor

STATUS = {
    "generation": 1,
    "state": "running",
    "started_at": "2026-11-30T12:00:00.000Z",
    "requests": {"in_flight": 2, "total": 5},
    "process": {"rss": 100},
}


class FakeThread:
    """Takes down what would go to the server."""

    account = "A"
    roles = ("observe", "inspect", "operate")
    problem = None

    def __init__(self, settings: FleetSettings, identity: Identity, deliver: Deliver) -> None:
        self.deliver = deliver
        self.on_sent: Callable[[], Any] = lambda: None
        self.unsent = 0
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.told: list[Presence] = []

    def start(self) -> None:
        """There is nothing to connect to."""

    def respond(self, reply: str, data: bytes, error: tuple[int, str] | None = None) -> None:
        self.sent.append((reply, json.loads(data)))

    def tell(self, presence: Presence) -> None:
        self.told.append(presence)

    def flush(self, timeout: float) -> None:
        """Nothing waits."""

    def close(self, *, leave: bool = False) -> None:
        """Nothing was connected."""


class Ticking(Stream):
    """A stream that never ends by itself."""

    def __init__(self) -> None:
        self.head = {"seq": 0}

    def pull(self) -> Pulled:
        return Pulled()


class Scene:
    """A listener with a few commands, whose control thread is this one."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.futures: dict[str, Any] = {}
        registry = CommandRegistry([])
        roles: list[tuple[Callable[..., Any], Role]] = [
            (self.status, "observe"), (self.run, "operate"), (self.follow, "inspect"),
        ]  # fmt: skip
        for function, role in roles:
            registry.add(command_from(function, role=role, builtin=True, scope="one"))
        guard = Guard()
        dispatcher = Dispatcher(registry, lambda command, arguments: new_future(), guard)
        threads: list[FakeThread] = []

        def make_thread(*arguments: Any) -> Any:
            threads.append(FakeThread(*arguments))
            return threads[0]

        identity = Identity("shop", "web-1", "web", 1, "0.1.0", {})
        self.listener = FleetListener(FleetSettings(Broker(["nats://x:4222"])), identity, guard, make_thread)
        [self.thread] = threads
        self.reactor = Reactor()
        self.listener.open()
        self.listener.attach(self.reactor, dispatcher)
        self.turn()

    def status(self, call: Call) -> dict[str, Any]:
        return STATUS

    def run(self, call: Call, name: str) -> Any:
        self.ran.append(name)
        self.futures[name] = future = new_future()
        return future

    def follow(self, call: Call) -> Any:
        return Ticking()

    def turn(self) -> None:
        """What waits for the control thread is done."""
        for _ in range(5):
            self.reactor.call_soon(lambda: None)
            self.reactor.run_once()

    def take(self, role: Role, reply: str, method: str = "", id: str | None = None, **params: Any) -> None:
        """A request comes; without a method, the word that its caller is there."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        data = json.dumps(request).encode() if method else b""
        self.thread.deliver(Incoming(role, reply, data, id, user="ann"))
        self.turn()

    def answers(self) -> list[tuple[str, Any]]:
        """Where answers went, and what they are; and no more of them the next time."""
        sent, self.thread.sent = self.thread.sent, []
        return [(reply, value.get("result", value.get("error", value.get("params")))) for reply, value in sent]

    def close(self) -> None:
        self.listener.close()
        self.reactor.close()


def test_no_requests_are_taken_before_the_server_has_the_subscriptions_again() -> None:
    """The client of the library calls itself connected as soon as it has sent them."""
    identity = Identity("shop", "web-1", "web", 1, "0.1.0", {})
    thread: Any = FleetThread(FleetSettings(Broker(["nats://x:4222"])), identity, lambda request: None)
    assert thread.problem == NOT_YET
    thread._agent = object()
    thread._connection = connection = SimpleNamespace(connected=True, problem="the connection has ended")
    assert thread.problem == "the connection has ended"
    connection.problem = None
    assert thread.problem is None
    connection.connected = False
    assert thread.problem == NOT_YET
    thread._loop.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_the_presence_is_told_at_once_and_after_a_command_but_not_after_a_look(scene: Scene) -> None:
    [told] = scene.thread.told
    assert (told.state, told.generation, told.in_flight, told.requests, told.rss) == ("running", 1, 2, 5, 100)
    scene.take("observe", "r1", "status")
    scene.listener.tick()
    assert len(scene.thread.told) == 1
    scene.take("operate", "r2", "run", name="a")
    scene.futures["a"].set_result("done")
    scene.turn()
    scene.listener.tick()
    assert len(scene.thread.told) == 2


def test_a_request_that_waits_for_room_is_handled_when_the_answers_before_it_have_gone(scene: Scene) -> None:
    scene.thread.unsent = HIGH_WATER + 1
    scene.take("observe", "r1", "status")
    assert scene.answers() == []
    scene.thread.unsent = 0
    scene.thread.on_sent()
    scene.turn()
    assert scene.answers() == [("r1", STATUS)]


def test_more_requests_at_one_subject_than_wait_there_are_refused(scene: Scene) -> None:
    """They would fill the memory while the server takes no answers."""
    scene.thread.unsent = HIGH_WATER + 1
    for _ in range(MAX_WAITING + 2):
        scene.take("observe", "r1", "status")
    refused = [(reply, error["code"], error["data"]) for reply, error in scene.answers()]
    assert refused == [("r1", CONFLICT, BUSY)] * 2
    scene.thread.unsent = 0
    scene.thread.on_sent()
    scene.turn()
    assert scene.answers() == [("r1", STATUS)] * MAX_WAITING


def test_a_stream_ends_when_its_caller_is_not_heard_of_any_more(scene: Scene) -> None:
    scene.take("inspect", "r1", "follow")
    assert scene.answers() == [("r1", {"subscription": 1, "seq": 0})]
    [session] = scene.listener._sessions.values()
    session.tick(time.monotonic() + KEEP_TIME - 1)
    assert scene.answers() == []
    later = time.monotonic() + KEEP_TIME
    scene.take("inspect", "r1")
    session.tick(later)
    assert scene.answers() == [], "it was heard of"
    session.tick(time.monotonic() + KEEP_TIME + 1)
    assert scene.answers() == [("r1", {"subscription": 1, "end": "its caller has not been heard of"})]


def test_a_caller_of_another_role_does_not_keep_a_stream_alive_nor_end_it(scene: Scene) -> None:
    scene.take("inspect", "r1", "follow")
    scene.answers()
    scene.take("observe", "r1", "status")
    assert scene.answers() == [("r1", STATUS)]
    assert len(scene.listener._sessions) == 1


def test_who_waits_for_an_answer_that_was_lost_is_told(scene: Scene) -> None:
    """By the word that it is still there, which a request that is at work is not answered."""
    scene.take("operate", "r1", "run", name="a")
    scene.take("operate", "r1")
    assert scene.answers() == []
    scene.futures["a"].set_result("done")
    scene.turn()
    scene.take("operate", "r1")
    [answer, (reply, error)] = scene.answers()
    assert answer == ("r1", "done")
    assert (reply, error["code"], error["data"]) == ("r1", CONFLICT, {"unknown": True})


@pytest.mark.parametrize("role", ["observe", "inspect"])
def test_the_id_of_one_who_may_not_operate_is_not_remembered(scene: Scene, role: Role) -> None:
    """It could push the ids of operators out of the memory."""
    scene.take(role, "r1", "status", id="one")
    assert scene.listener.memory.find("one") is None


def test_an_id_that_is_too_long_is_refused(scene: Scene) -> None:
    scene.take("operate", "r1", "run", id="x" * 129, name="a")
    [(_, error)] = scene.answers()
    assert (error["code"], scene.ran) == (CONFLICT, [])


def test_the_state_over_an_exec_has_the_memory_and_the_caller(scene: Scene) -> None:
    scene.take("operate", "r1", "run", id="one", name="a")
    state = scene.listener.export_state()
    assert state is not None
    assert (state["socket"], state["lock"], state["file"], state["caller"]) == (-1, -1, None, None)
    [(reply, error)] = scene.answers()
    assert (reply, error["data"]) == ("r1", {"may_have_run": True})
    _, done, answer = state["memory"]["seen"]["one"]
    assert done
    assert answer
