"""One question to many instances over NATS: who is asked how, and what each kind of answer or silence becomes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import click
import pytest
from harness import TIMEOUT

from flask_ctl import AccessDenied, CommandError, ControlError, NotRunning, RemoteProtocolError, TimedOut
from flask_ctl.client.gather import gather
from flask_ctl.fleet.inbox import Kind, Letter, Receive, Request
from flask_ctl.fleet.presence import Presence
from flask_ctl.fleet.roster import FleetInstance, Roster
from flask_ctl.fleet.subjects import ALL
from flask_ctl_cli.fleet import call, streams
from flask_ctl_cli.fleet.ls import Row, table
from flask_ctl_cli.fleet.rolling import FleetArchive
from flask_ctl_cli.fleet.selection import FleetTarget, matches, servers_of
from flask_ctl_cli.fleet.top import watched
from flask_ctl_cli.settings import Settings, settings


def instance(name: str, app: str = "shop", age: float = 0.0, **labels: str) -> FleetInstance:
    started = "2026-11-30T17:12:00Z"
    presence = Presence(app, name, f"host-{name}", 7, 1, "running", started, "1.0", ["observe"], labels)
    return FleetInstance(presence, age)


class FakeLink:
    """Answers each request at once; `say` has what comes for an address, as kinds and data by instance."""

    def __init__(self, say: Callable[[Request], Sequence[tuple[Kind, str, bytes]]]) -> None:
        self.inbox = SimpleNamespace(forget=None)
        self.asked: list[tuple[str, str, str]] = []
        self._say = say

    def send(self, request: Request, receive: Receive, reply: str | None = None) -> str:
        self.asked.append((request.role, request.app, request.instance))
        subject = f"r{len(self.asked)}"
        for kind, name, data in self._say(request):
            receive(Letter(kind, subject, data, name, "this user may not"))
        return subject

    def soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Nothing has to be forgotten."""


def result(value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}).encode()


def error(message: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": message}}).encode()


NOTE = json.dumps({"jsonrpc": "2.0", "method": "progress", "params": {"id": 1}}).encode()


@pytest.mark.parametrize(
    ("letters", "outcome"),
    [
        ([(Kind.ANSWER, "a", result({"n": 1}))], {"n": 1}),
        ([(Kind.ANSWER, "a", NOTE), (Kind.ANSWER, "a", result({"n": 1}))], {"n": 1}),
        ([(Kind.ANSWER, "a", result({"n": 1})), (Kind.ANSWER, "a", result({"n": 2}))], {"n": 1}),
        ([(Kind.ANSWER, "other", result({"n": 1}))], TimedOut),
        ([(Kind.RECONNECTED, "", b"")], TimedOut),
        ([], TimedOut),
        ([(Kind.ANSWER, "a", error("it has failed"))], CommandError),
        ([(Kind.ANSWER, "a", b"\xff")], RemoteProtocolError),
        ([(Kind.ANSWER, "a", result(None))], RemoteProtocolError),
        ([(Kind.ABSENT, "", b"")], NotRunning),
    ],
)
def test_what_comes_becomes_a_result_or_an_error(letters: list[tuple[Kind, str, bytes]], outcome: Any) -> None:
    link: Any = FakeLink(lambda request: letters)
    one = instance("a")
    [(key, answer)] = gather(link, "status", {}, [one], [one], 0.01 if outcome is TimedOut else TIMEOUT).items()
    assert key == ("shop", "a")
    assert isinstance(answer, outcome) if isinstance(outcome, type) else answer == outcome


def test_an_app_that_is_not_permitted_hides_no_other() -> None:
    def say(request: Request) -> list[tuple[Kind, str, bytes]]:
        return [(Kind.DENIED, "", b"")] if request.app == "shop" else [(Kind.ANSWER, "a", result({"n": 1}))]

    link: Any = FakeLink(say)
    asked = [instance("a"), instance("b"), instance("a", "blog")]
    found = gather(link, "status", {}, asked, asked, 60)
    assert found.pop(("blog", "a")) == {"n": 1}
    assert {key: f"{type(error).__name__}: {error}" for key, error in found.items()} == {
        ("shop", "a"): "AccessDenied: this user may not",
        ("shop", "b"): "AccessDenied: this user may not",
    }


def test_where_nothing_is_permitted_it_ends_at_once() -> None:
    link: Any = FakeLink(lambda request: [(Kind.DENIED, "", b"")])
    with pytest.raises(AccessDenied, match="this user may not"):
        gather(link, "status", {}, [instance("a")], [instance("a")], 60)


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [
        ("abcd", [ALL]),
        ("ab", [ALL]),
        ("a", ["a"]),
    ],
)
def test_many_of_an_app_are_asked_by_one_message_and_few_singly(chosen: str, asked: list[str]) -> None:
    everybody = [*map(instance, "abcd"), instance("lost", age=100)]
    link: Any = FakeLink(lambda request: [(Kind.ANSWER, name, result({})) for name in "abcd"])
    found = gather(link, "status", {}, [one for one in everybody if one.instance in chosen], everybody, 60)
    assert [name for _, _, name in link.asked] == asked
    assert {name for _, name in found} == set(chosen)


def test_instances_of_two_apps_with_one_name_are_told_apart() -> None:
    link: Any = FakeLink(lambda request: [(Kind.ANSWER, "a", result({"app": request.app}))])
    both = [instance("a", "shop"), instance("a", "blog")]
    found = gather(link, "status", {}, both, both, 60)
    assert found == {("shop", "a"): {"app": "shop"}, ("blog", "a"): {"app": "blog"}}


# What is shown of it


@pytest.mark.parametrize(
    ("options", "selects"),
    [
        ({}, True),
        ({"selected_name": "s*"}, True),
        ({"selected_name": "S*"}, False),
        ({"host_pattern": "host-?"}, True),
        ({"instance_pattern": "b"}, False),
        ({"labels": {"zone": "a"}}, True),
        ({"labels": {"zone": "a", "tier": "web"}}, False),
        ({"labels": {"zone": ""}}, False),
    ],
)
def test_every_option_has_to_select_an_instance(options: dict[str, Any], selects: bool) -> None:
    given = Settings()
    for name, value in options.items():
        setattr(given, name, value)
    assert matches(given, instance("a", zone="a")) == selects


def test_a_server_with_two_apps_is_one() -> None:
    both = [instance("a", "shop"), instance("a", "blog"), instance("b", "shop")]
    assert [one.key for one in servers_of(both)] == [("shop", "a"), ("shop", "b")]


def test_the_view_knows_an_instance_as_it_is_now() -> None:
    """Also one that was lost and came back, one that is lost later, and another process with its name."""
    asked: list[tuple[str, int]] = []

    class Client:
        def __init__(self, one: FleetInstance) -> None:
            self._one = one

        def status(self) -> Any:
            asked.append((self._one.instance, self._one.presence.pid))
            raise TimedOut("silent")

        def close(self) -> None:
            """Nothing is open."""

    seen = [instance("a", age=100), instance("b")]
    fleet: Any = SimpleNamespace(roster=lambda: Roster(seen), client=lambda one: Client(one))
    with click.Context(click.Command("top")):
        discover = watched(fleet, settings())

        def look() -> list[tuple[str, int]]:
            asked.clear()
            for one in discover():
                one.ask()
            return list(asked)

        [a, b] = discover()
        assert look() == [("b", 7)]
        assert (a.problem[:23], b.problem) == ("it is lost, last seen 1", "silent")
        seen[:] = [instance("a"), instance("b", age=100)]
        assert look() == [("a", 7)]
        seen[:] = [replace(instance("a"), presence=replace(instance("a").presence, pid=8)), instance("b")]
        assert look() == [("a", 8), ("b", 7)]
        assert discover() == [a, b]


def test_the_view_leaves_a_connection_that_is_of_another_process_or_of_a_lost_one() -> None:
    """Nothing tells the client of it: it would wait for an answer."""
    made: list[str] = []

    class Client:
        def __init__(self, one: FleetInstance) -> None:
            made.append(f"{one.presence.pid}")

        def status(self) -> Any:
            return {"pid": 7, "requests": {"total": 0, "errors": 0}}

        def metrics(self) -> Any:
            return {"families": []}

        def requests(self) -> Any:
            return {"requests": []}

        def close(self) -> None:
            made.append("closed")

    seen = [instance("a")]
    fleet: Any = SimpleNamespace(roster=lambda: Roster(seen), client=lambda one: Client(one))
    with click.Context(click.Command("top")):
        discover = watched(fleet, settings())
        for age, pid in ((0, 7), (10, 7), (100, 7), (0, 7), (0, 8)):
            seen[:] = [FleetInstance(replace(instance("a").presence, pid=pid), age)]
            for one in discover():
                one.ask()
    assert made == ["7", "closed", "7", "closed", "8"]


def test_an_instance_that_hangs_holds_up_no_call() -> None:
    """The first one that tells its commands is enough."""
    hangs = threading.Event()

    class Target:
        def __init__(self, ask: Callable[[], Any]) -> None:
            self._ask = ask

        def client(self, settings: Settings) -> Any:
            return contextlib.nullcontext(SimpleNamespace(commands=self._ask))

    def refuse() -> None:
        raise AccessDenied("this user may not")

    silent, refusing, telling = Target(hangs.wait), Target(refuse), Target(lambda: {"greet": {}})
    with click.Context(click.Command("call")):
        described: Any = call._described
        assert described([silent, refusing, telling]) == {"greet": {}}
        with pytest.raises(AccessDenied):
            described([refusing] * 20)
        with pytest.raises(ControlError, match="no instance has answered"):
            described([])
    hangs.set()


def test_the_leases_are_read_once_for_all_records() -> None:
    reads: list[None] = []

    def lease_holders() -> list[dict[str, Any]]:
        reads.append(None)
        return [{"rollout": "b"}, {"user": "ann"}]

    fleet: Any = SimpleNamespace(lease_holders=lease_holders)
    documents: list[dict[str, Any]] = [
        {"id": "a", "ended": None},
        {"id": "b", "ended": None},
        {"id": "c", "ended": "2026-11-30T17:12:00Z"},
    ]
    assert FleetArchive(fleet).states_of(documents) == ["abandoned", "running", "ended"]
    assert len(reads) == 1


def rows() -> list[Row]:
    nobody: Any = None
    status = {"state": "running", "generation": 3, "requests": {"in_flight": 2}}
    return [
        Row(FleetTarget(nobody, instance("a", zone="z")), status, None),
        Row(FleetTarget(nobody, instance("b")), None, TimedOut("no answer to status within 5 s")),
        Row(FleetTarget(nobody, instance("d")), None, AccessDenied("this user may not")),
        Row(FleetTarget(nobody, instance("c\x1b", age=100)), None, ControlError("lost, last seen 100 s ago")),
    ]


def test_who_is_missing_has_a_line_and_is_counted() -> None:
    assert table(rows()).splitlines() == [
        "APP   INSTANCE  HOST        PID  STATE          GENERATION  IN FLIGHT  LABELS",
        "shop  a         host-a      7    running        3           2          zone=z",
        "shop  b         host-b      7    no answer      -           -          -       no answer to status within 5 s",
        "shop  d         host-d      7    not permitted  -           -          -       this user may not",
        "shop  c\\x1b     host-c\\x1b  7    lost           -           -          -       last seen 100 s ago",
        "4 instances, 1 not permitted, 1 no answer, 1 lost",
    ]


def test_who_is_missing_is_exit_code_1_and_who_may_not_be_asked_5() -> None:
    assert [row.code for row in rows()] == [0, 1, 5, 1]


# Streams


class Followed:
    """A target, and its client, whose stream is told by `messages`: what it yields, or raises."""

    def __init__(self, *messages: Any) -> None:
        self._messages = messages

    def client(self, given: Settings) -> Any:
        return contextlib.nullcontext(self)

    def follow(self, name: str, **params: Any) -> Iterator[dict[str, Any]]:
        for message in self._messages:
            if isinstance(message, Exception):
                raise message
            yield message


def merged(*targets: Any) -> list[streams.Item]:
    return list(streams.merged(targets, "events", {}, Settings()))


def test_a_stream_that_fails_leaves_the_others() -> None:
    items = merged(Followed(TimedOut("silent")), Followed({"seq": 1}, {"end": "complete"}))
    assert sorted(str(item.error or item.message) for item in items) == [
        "silent",
        "{'end': 'complete'}",
        "{'seq': 1}",
    ]


def test_a_fault_of_the_program_ends_all_streams() -> None:
    with pytest.raises(ZeroDivisionError):
        merged(Followed({"seq": 1}), Followed(ZeroDivisionError()))
