"""One command to an instance over NATS: every order in which silence, absence and answers can come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from harness import TIMEOUT, Pending, Program, Serve
from natsserver import NatsServer
from natsuser import NatsUser
from test_fleet import all_known, environment

from flask_ctl import ControlError, Fleet
from flask_ctl.client import fleetclient
from flask_ctl.client.fleetclient import FleetConnection, Place
from flask_ctl.errors import CONFLICT
from flask_ctl.fleet.inbox import Kind, Letter, Receive, Request
from flask_ctl.protocol.jsonrpc import Response


class FakeLink:
    """What each of the requests meets, in their order; the last word stands for all that follow."""

    def __init__(self, words: Sequence[str]) -> None:
        self.connection = SimpleNamespace(connected=True)
        self.inbox = SimpleNamespace(forget=None, keep=None)
        self.sent: list[Request] = []
        self._words = words
        self._receive: dict[str, Receive] = {}

    def send(self, request: Request, receive: Receive, reply: str | None = None) -> str:
        word = self._words[min(len(self.sent), len(self._words) - 1)]
        self.sent.append(request)
        reply = reply or f"r{len(self.sent)}"
        self._receive[reply] = receive
        id = 1
        if word == "absent":
            receive(Letter(Kind.ABSENT, reply))
        elif word == "denied":
            receive(Letter(Kind.DENIED, reply, message="this user may not"))
        elif word == "lost":
            receive(Letter(Kind.RECONNECTED, reply))
        elif word in ("running", "busy", "unknown", "ran"):
            error = {"code": CONFLICT, "message": "not now", "data": {word: True}}
            receive(Letter(Kind.ANSWER, reply, json.dumps({"jsonrpc": "2.0", "id": id, "error": error}).encode()))
        elif word == "another":
            error = {"code": CONFLICT, "message": "another; nothing was done", "data": {"life": "b", "begun": False}}
            receive(Letter(Kind.ANSWER, reply, json.dumps({"jsonrpc": "2.0", "id": id, "error": error}).encode()))
        elif word.startswith("answer"):
            # To this one, or to an earlier one.
            reply_to = word.replace("answer to ", "r") if word != "answer" else reply
            data = json.dumps({"jsonrpc": "2.0", "id": id, "result": "done"}).encode()
            self._receive[reply_to](Letter(Kind.ANSWER, reply_to, data))
        return reply

    def soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Nothing has to be forgotten."""


@pytest.fixture(autouse=True)
def _no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PROBE", 0.01), ("AGAIN", 0.005), ("ABSENCE", 0.02), ("LEAVING", 0.005)):
        monkeypatch.setattr(fleetclient, name, seconds)


class Case(NamedTuple):
    """What meets the requests, whether the instance has left in order, and what comes of it."""

    words: list[str]
    has_left: bool | None
    outcome: str


CASES = {
    "an answer": Case(["answer"], False, "done"),
    "an answer when it is asked again": Case(["silence", "answer"], False, "done"),
    "it still runs, and then answers": Case(["running", "running", "answer"], False, "done"),
    "it still runs for long, and answers where it was asked first": Case(
        ["silence", *["running"] * 20, "answer to 1", "running"], False, "done"
    ),
    "it was away, then runs for long, and answers where it was taken": Case(
        ["absent", "silence", *["running"] * 20, "answer to 2", "running"], False, "done"
    ),
    "it is busy, and then answers": Case(["busy", "busy", "answer"], False, "done"),
    "it is busy, and then nobody is there": Case(["busy", "absent"], False, "NotRunning: nothing was done"),
    "it runs, is busy, and has left": Case(
        ["running", "busy", "absent"], True, "ControlError: the outcome is not known"
    ),
    "it has run, and its answer is lost": Case(["ran"], False, "not now"),
    "it is away for a moment": Case(["absent", "answer"], False, "done"),
    "nobody is there": Case(["absent"], False, "NotRunning: nothing was done"),
    "it has it, and is away for long, as in a reload": Case(["silence", *["absent"] * 20, "answer"], False, "done"),
    "it was away, has it, and is away for long": Case(["absent", "silence", *["absent"] * 20, "answer"], False, "done"),
    "it still runs, and is away for long": Case(["running", *["absent"] * 20, "answer"], False, "done"),
    "it has it, and has left": Case(["silence", "absent"], True, "ControlError: the outcome is not known"),
    "it has it, is away for long, and nothing tells whether it has left": Case(
        ["silence", *["absent"] * 20, "answer"], None, "done"
    ),
    "the connection was lost, and it is away for long": Case(["lost", *["absent"] * 20, "answer"], False, "done"),
    "the connection was lost, and it has left": Case(
        ["lost", "absent"], True, "ControlError: the outcome is not known"
    ),
    "it is another process now": Case(["another"], False, "another; nothing was done"),
    "it has it, and is another process now": Case(["silence", "another"], False, "ControlError: it may have run"),
    "it never answers": Case(["silence"], False, "no answer"),
    "it never answers, and is away": Case(["silence", "absent"], False, "no answer"),
    "it is not permitted": Case(["denied"], False, "AccessDenied: this user may not"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_comes_of_a_command(name: str) -> None:
    case = CASES[name]
    link: Any = FakeLink(case.words)
    roles = ("observe", "inspect", "operate")
    place = Place("shop", "web-1", roles, lambda: case.has_left, fence=7, life="a")
    connection = FleetConnection(link, place, lambda method: "operate")
    assert outcome_of(connection, 1.0 if case.outcome == "no answer" else TIMEOUT) == case.outcome
    assert len({request.id for request in link.sent}) == 1, "the same command"
    assert {(request.fence, request.life) for request in link.sent} == {(7, "a")}
    connection.close()


QUESTIONS = {
    "an answer": (["answer"], "done", [1]),
    "it takes long": (["silence", "silence", "silence", "answer to 1"], "done", [1, 0, 0, 0]),
    "it is busy, and then answers": (["busy", "answer"], "done", [1, 1]),
    "it is away for a moment": (["absent", "answer"], "done", [1, 1]),
    "it takes long, and is away for a moment": (["silence", "absent", "answer"], "done", [1, 0, 1]),
    "its answer is lost": (["silence", "unknown", "answer"], "done", [1, 0, 1]),
    "the connection was lost": (["lost", "answer"], "done", [1, 1]),
    "nobody is there any more": (["silence", "absent"], "NotRunning: nothing was done", None),
}
"""What meets the messages of a question, what comes of it, and which of them are the whole request."""


@pytest.mark.parametrize(("words", "outcome", "whole"), QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_is_sent_again_only_if_nobody_has_it(
    words: list[str], outcome: str, whole: list[int] | None
) -> None:
    link: Any = FakeLink(words)
    place = Place("shop", "web-1", ("observe", "inspect", "operate"), lambda: False, fence=7, life="a")
    connection = FleetConnection(link, place, lambda method: "inspect")
    assert outcome_of(connection, TIMEOUT) == outcome
    assert whole is None or [bool(request.data) for request in link.sent] == whole
    assert {(request.id, request.fence, request.life) for request in link.sent} == {(None, None, None)}
    connection.close()


def outcome_of(connection: FleetConnection, seconds: float) -> str:
    connection.send([("reload", {})], None)
    try:
        message = connection.receive(time.monotonic() + seconds)
    except ControlError as error:
        return f"{type(error).__name__}: {error.message.rpartition('; ')[2]}"
    if message is None:
        return "no answer"
    assert isinstance(message, Response)
    return str(message.result if message.error is None else message.error[1])


SLOW = """
@control.command(role="inspect")
def slow() -> str:
    say("slow runs")
    gates["slow"].wait()
    return "done"
"""


def test_a_command_to_inspect_that_takes_long_runs_once(
    nats_server: NatsServer, serve: Serve, program: Program
) -> None:
    """Its operator asks again and again whether the instance has it."""
    program.edit("old", SLOW)
    server = serve(env=environment(nats_server.url), cwd=program.directory)
    all_known(nats_server.url, server)
    with NatsUser(nats_server.url) as user, Fleet(nats_server.url) as fleet:
        words = user.listen("flask_ctl.inspect.>")
        [one] = fleet.roster().instances
        with fleet.client(one) as client:
            asking = Pending.call(lambda: client.call("slow"))
            asked = [user.next(words).data for _ in range(4)]
            server.release("slow")
            assert asking.result() == "done"
    assert b"slow" in asked[0]
    assert asked[1:] == [b""] * 3
    assert server.output.count("slow runs") == 1
