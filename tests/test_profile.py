"""Sampling profiles: what is counted, what is not kept, that one runs at a time and none outlives its caller."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from fakes import Clock
from harness import TIMEOUT, Serve, Server, raw, run_cli, until
from manyworkers import workers
from servers import SERVERS

from flask_ctl import CommandError, render_profile
from flask_ctl.dispatch.peer import this_process
from flask_ctl.dispatch.replies import Call
from flask_ctl.dispatch.streams import Pulled
from flask_ctl.errors import CONFLICT
from flask_ctl.inspection import profiler
from flask_ctl.inspection.profiler import InFlightClock, Order, Profile, Sampler, answer
from flask_ctl.inspection.questions import Answer
from flask_ctl.lifecycle import profile as command
from flask_ctl.lifecycle.profile import ProfileCommands, ProfileStream
from flask_ctl.protocol.profiles import ProfileParts
from flask_ctl.servers.middleware import RequestCounter


def unwatched(note: Callable[[str], Any]) -> Callable[[], None]:
    """Routes that nobody tells."""
    return lambda: None


class Serving:
    """An app whose requests run `view` in threads of their own, until the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.requests = RequestCounter(self._serve)
        self.watch_routes = unwatched
        self._threads: list[threading.Thread] = []

    def begin(self, view: Callable[[], Any] | None = None, rule: str = "/pay") -> None:
        request = SimpleNamespace(url_rule=SimpleNamespace(rule=rule))
        environ = {"REQUEST_METHOD": "GET", "view": view or self.wait, "werkzeug.request": request}
        thread = threading.Thread(target=lambda: self.requests(environ, lambda *_: None).close())  # type: ignore[attr-defined]
        thread.start()
        self._threads.append(thread)
        assert self.entered.acquire(timeout=TIMEOUT), "it is in its view"

    def wait(self) -> None:
        self.entered.release()
        self.gate.wait()

    def close(self) -> None:
        self.gate.set()
        for thread in self._threads:
            thread.join()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["view"]()
        return []


@pytest.fixture
def app() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.close()
    for one in profiler._running:
        one.cancel()
    until(lambda: not profiler._running, "no profile is left")


def result_of(sampler: Sampler) -> dict[str, Any]:
    """Its whole result, from pages."""
    parts, after = ProfileParts(), 0
    while (page := sampler.page(after))["more"]:
        parts.add({"worker": 1, **page})
        after = page["after"]
    parts.add({"worker": 1, **page})
    return parts.profile()


def functions(profile: dict[str, Any], stack: dict[str, Any]) -> list[str]:
    return [profile["frames"][number]["function"].rpartition(".")[2] for number in stack["frames"]]


def sampled(app: Serving, count: int = 3, *, others: bool = False, route: str | None = None) -> dict[str, Any]:
    with Sampler(app.requests, route, unwatched) as sampler:
        for _ in range(count):
            sampler.sample(others=others)
    return result_of(sampler)


# What is counted


def test_stacks_of_requests_are_counted_by_route_below_the_server(
    app: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.begin()
    app.begin(rule="/ship")
    clock = Clock()
    monkeypatch.setattr(profiler, "time", clock)
    with Sampler(app.requests, None, unwatched) as sampler:
        for _ in range(3):
            clock.now += 1
            sampler.sample(others=False)
    profile = result_of(sampler)
    assert {stack["route"]: stack["samples"] for stack in profile["stacks"]} == {"GET /pay": 3, "GET /ship": 3}
    for stack in profile["stacks"]:
        assert functions(profile, stack)[:2] == ["_serve", "wait"]
    [process] = profile["processes"]
    # Both were in flight all the time.
    assert (sum(stack["seconds"] for stack in profile["stacks"]), process["elapsed"]) == (6, 3)
    assert process["samples"] == process["seen"] == 6


@pytest.mark.parametrize(("route", "seen"), [("/pay", 1), ("GET /pay", 1), ("POST /pay", 0), ("/pa", 0)])
def test_a_route_is_named_with_its_method_or_without(app: Serving, route: str, seen: int) -> None:
    app.begin()
    app.begin(rule="/ship")
    assert len(sampled(app, 1, route=route)["stacks"]) == seen


def test_threads_without_a_request_are_counted_by_their_names_without_numbers(app: Serving) -> None:
    app.begin()
    idle = [threading.Thread(target=app.wait, name=f"pool-{number}") for number in range(2)]
    for thread in idle:
        thread.start()
    until(lambda: len(own := of_pool(sampled(app, 1, others=True))) == 1 and own[0]["samples"] == 2, "both wait")
    assert [stack["route"] for stack in sampled(app, 1)["stacks"]] == ["GET /pay"]
    app.gate.set()
    for thread in idle:
        thread.join()


def of_pool(profile: dict[str, Any]) -> list[dict[str, Any]]:
    return [stack for stack in profile["stacks"] if stack["thread"] == "pool-N"]


def test_the_sampler_counts_neither_itself_nor_a_thread_twice(app: Serving) -> None:
    app.begin()
    app.begin()
    profile = sampled(app, 1, others=True)
    own = [stack for stack in profile["stacks"] if "sample" in functions(profile, stack)]
    assert own == []
    assert sum(stack["samples"] for stack in profile["stacks"] if stack["route"]) == 2


def test_no_frame_outlives_its_sample(app: Serving) -> None:
    class Secret:
        pass

    seen: list[weakref.ref[Secret]] = []

    def view() -> None:
        secret = Secret()
        seen.append(weakref.ref(secret))
        app.wait()

    gc.disable()
    try:
        with Sampler(app.requests, None, unwatched) as sampler:
            app.begin(view)
            for _ in range(3):
                sampler.sample(others=True)
            app.close()
            assert seen[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("limit", "value"), [("MAX_DEPTH", 3), ("MAX_STACKS", 1), ("MAX_CODES", 1), ("PAGE", 300)])
def test_a_profile_is_bounded(app: Serving, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    def nested(depth: int) -> None:
        nested(depth - 1) if depth else app.wait()

    app.begin(lambda: nested(20))
    app.begin(rule="/ship")
    monkeypatch.setattr(profiler, limit, value)
    profile = sampled(app)
    assert sum(stack["samples"] for stack in profile["stacks"]) == 6
    deepest = max(len(stack["frames"]) for stack in profile["stacks"])
    assert {
        "MAX_DEPTH": deepest == 3,
        "MAX_STACKS": len(profile["stacks"]) == 2,
        "MAX_CODES": deepest == 1,
        "PAGE": deepest > 20,
    }[limit]


def test_of_many_requests_some_stand_for_all(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        app.begin()
    monkeypatch.setattr(profiler, "MAX_REQUESTS", 2)
    with Sampler(app.requests, None, unwatched) as sampler:
        sampler.sample(others=False)
        since = sampler._sampled - sampler._began
        assert sum(seconds for seconds, _ in sampler._seconds.values()) == pytest.approx(4 * since, abs=1e-5)
    assert sum(stack["samples"] for stack in result_of(sampler)["stacks"]) == 2


def test_the_seconds_in_flight_are_exact_by_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a request that began before, of one that begins and ends, and of one that goes on."""
    clock = Clock()
    monkeypatch.setattr(profiler, "time", clock)
    requests = RequestCounter(lambda environ, start_response: [])
    ended: list[bool] = []
    requests.on_done = on_done = lambda: ended.append(True)
    routed: list[Callable[[str], Any]] = []

    def begin() -> Any:
        return requests({"REQUEST_METHOD": "GET"}, lambda *_: None)

    def watch(note: Callable[[str], Any]) -> Callable[[], Any]:
        routed.append(note)
        return routed.clear

    before = begin()
    clock.now += 10
    measured = InFlightClock(requests, watch)
    measured.begin()
    clock.now += 1
    before.close()
    within = begin()
    clock.now += 0.5
    routed[0]("GET /pay")
    clock.now += 2
    within.close()
    after = begin()
    routed[0]("GET /pay")
    clock.now += 3
    measured.end()
    assert measured.routes == {"(no route)": [1, 1.0], "GET /pay": [1, 5.5]}
    assert measured.seconds == 6.5
    assert (requests.on_first, requests.on_done, routed) == (None, on_done, [])
    after.close()
    assert len(ended) == 3


def test_the_stacks_of_a_route_have_its_exact_time(app: Serving) -> None:
    """Whatever the samples have estimated."""
    app.begin()
    with Sampler(app.requests, None, unwatched) as sampler:
        for _ in range(3):
            sampler.sample(others=False)
        sampler._clock.routes["GET /pay"] = [7, 60.0]
    profile = result_of(sampler)
    [stack] = profile["stacks"]
    [route] = profile["routes"]
    assert (route["route"], route["requests"]) == ("GET /pay", 7)
    assert stack["seconds"] == pytest.approx(route["seconds"], abs=1e-3)
    assert route["seconds"] >= 60


def test_the_interval_is_stretched_until_the_sampler_takes_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(profiler, "time", clock)
    with Sampler(RequestCounter(lambda environ, start_response: []), None, unwatched) as sampler:
        assert sampler.next_at(100) == pytest.approx(100.0 + 0.01 - profiler.WINDOW / 2)
        clock.cpu += 0.001
        assert sampler.next_at(100) == pytest.approx(100.0 + 0.001 / profiler.MAX_SHARE)


def test_a_quiet_time_is_not_made_up_for_by_much_time_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of cheap samples, then expensive ones: no second of these has more than the share of two."""
    clock = Clock()
    monkeypatch.setattr(profiler, "time", clock)
    spent: list[float] = []
    with Sampler(RequestCounter(lambda environ, start_response: []), None, unwatched) as sampler:
        for cost, until_time in ((0.00002, 160.0), (0.005, 175.0)):
            while clock.now < until_time:
                clock.now = max(clock.now, sampler.next_at(100))
                sampler.sample(others=False)
                clock.now += cost
                clock.cpu += cost
                spent += [clock.now] * (cost == 0.005)
    busiest = max(sum(0.005 for end in spent if begin <= end < begin + 1) for begin in spent)
    assert 0.02 <= busiest <= 2 * profiler.MAX_SHARE + 0.005
    assert len(spent) * 0.005 == pytest.approx(15 * profiler.MAX_SHARE, abs=0.03)


# One at a time


def order(seconds: float = 60.0, **more: Any) -> dict[str, Any]:
    until_time = "2026-01-31T12:00:00Z"
    wanted = {"id": "a", "until": time.monotonic() + seconds, "hz": 100.0, "route": None, "requests_only": False}
    return {**wanted, "by": {"uid": 0, "pid": 7}, "until_time": until_time, **more}


def test_a_second_profile_is_refused_with_who_runs_one_until_when(app: Serving) -> None:
    first, second = order(), order(id="b")
    assert answer(app, step="run", order=first)[0]["running"]
    with pytest.raises(CommandError, match="runs already, asked by uid 0, pid 7, until 2026-01-31T12:00:00Z") as caught:
        answer(app, step="run", order=second)
    assert caught.value.code == CONFLICT
    # What it has not begun it does not end.
    answer(app, step="cancel", order=second)
    assert answer(app, step="run", order=first)[0]["running"]
    answer(app, step="cancel", order=first)
    assert answer(app, step="run", order=second)[0]["running"]


def test_a_profile_ends_in_time_and_its_result_can_be_taken_once_it_has(app: Serving) -> None:
    app.begin()
    before = sys.getswitchinterval()
    wanted = order(0.5)
    until(lambda: not answer(app, step="run", order=wanted)[0]["running"], "its end")
    [page] = answer(app, step="take", order=wanted)
    assert page["summary"]["elapsed"] < 5
    assert page["summary"]["samples"] == sum(stack["samples"] for stack in page["stacks"] if stack["route"]) > 0
    assert page["summary"]["cpu"] < 1
    assert sys.getswitchinterval() == before
    # A process that is asked too late does not begin another one.
    answer(app, step="cancel", order=wanted)
    until(lambda: not profiler._running, "it is forgotten")
    assert answer(app, step="run", order=wanted) == [{"running": False, "samples": 0}]


def test_a_profile_whose_thread_comes_late_has_a_sample(app: Serving) -> None:
    app.begin()
    profile = Profile(app, Order(**order(-1.0)))
    until(lambda: not profile.answer("run", 0)["running"], "its end")
    assert profile.answer("run", 0)["samples"] == 1
    profile.cancel()


def test_a_profile_ends_when_nobody_asks_for_it_any_more(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the hub has been killed."""
    monkeypatch.setattr(profiler, "LEASE", 0.1)
    answer(app, step="run", order=order())
    until(lambda: not profiler._running, "its end")
    assert (app.requests.on_first, app.requests.on_done) == (None, None)
    assert answer(app, step="run", order=order(id="b"))[0]["running"]


# The stream


class Processes:
    """Processes that answer as `told` says, and note what they are asked."""

    def __init__(self) -> None:
        self.told: dict[int, Any] = {}
        self.asked: list[tuple[str, int | None]] = []

    def ask(self, app: Any, question: str, params: dict[str, Any], pid: int | None) -> Future[list[Answer]]:
        self.asked.append((params["step"], pid))
        if pid is not None and pid not in self.told:
            raise CommandError(f"no worker has the pid {pid}")
        answers: Future[list[Answer]] = Future()
        pids = self.told if pid is None else [pid]
        answers.set_result([Answer(one, self._answer(one, params)) for one in pids])
        return answers

    def _answer(self, pid: int, params: dict[str, Any]) -> Any:
        told = self.told[pid]
        if isinstance(told, CommandError):
            return told
        return [told.get(params["step"], {})]


FRAME = {"function": "pay", "file": "/srv/shop/app.py", "line": 3}
SUMMARY = {
    "elapsed": 2.0, "hz": 99.5, "samples": 8, "in_flight": 2.0, "seen": 8, "expected": 10.0, "coverage": 0.8,
    "cpu": 0.012, "routes": [{"route": "GET /pay", "requests": 4, "seconds": 2.0}],
}  # fmt: skip


def telling(frames: list[dict[str, Any]], seconds: float, *, running: bool = False) -> dict[str, Any]:
    stack = {"route": "GET /pay", "thread": None, "frames": list(range(len(frames))), "seconds": seconds, "samples": 8}
    page = {"frames": frames, "stacks": [stack], "summary": SUMMARY, "after": 9, "more": False}
    return {"run": {"running": running, "samples": 8}, "take": page}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(command, "time", clock)
    return clock


def begin(processes: Processes, **options: Any) -> ProfileStream:
    controller: Any = SimpleNamespace(processes=processes)
    commands = ProfileCommands(controller, SimpleNamespace())  # type: ignore[arg-type]
    stream = commands.profile(Call(this_process()), **options).result(0)
    assert isinstance(stream, ProfileStream)
    return stream


def items_of(stream: ProfileStream, clock: Clock) -> list[dict[str, Any]]:
    """All items, while the time goes on; it has to come to its end."""
    items: list[dict[str, Any]] = []
    for _ in range(200):
        pulled = stream.pull()
        step: Pulled = pulled.result(0) if isinstance(pulled, Future) else pulled
        items += [message["item"] for message in step.messages]
        if step.end is not None:
            assert step.end == "complete"
            return items
        clock.now += 0 if step.more else 0.1
    raise AssertionError("no end")


def merged(items: list[dict[str, Any]]) -> dict[str, Any]:
    parts = ProfileParts()
    for item in items:
        parts.add(item)
    return parts.profile()


def test_the_profiles_of_workers_are_merged(clock: Clock) -> None:
    processes = Processes()
    other = {"function": "ship", "file": "/srv/shop/app.py", "line": 9}
    processes.told = {1: telling([FRAME], 2.0), 2: telling([other, FRAME], 1.0)}
    stream = begin(processes, seconds=2.0)
    # It comes later, and does the same.
    processes.told[3] = telling([FRAME], 0.5)
    items = items_of(stream, clock)
    progress = [item["progress"]["elapsed"] for item in items if "progress" in item]
    assert progress == sorted(progress)
    assert 2.0 <= progress[-1] < 2.5
    profile = merged(items)
    assert [one["worker"] for one in profile["processes"]] == [1, 2, 3]
    assert profile["frames"] == [FRAME, other]
    assert [(stack["frames"], stack["seconds"], stack["samples"]) for stack in profile["stacks"]] == [
        ([0], 2.5, 16),
        ([1, 0], 1.0, 8),
    ]
    stream.close()
    assert processes.asked[-1] == ("cancel", None)


def test_what_of_a_worker_is_lost_is_told(clock: Clock) -> None:
    """One ends, one does not answer, and one goes on too long."""
    processes = Processes()
    processes.told = {pid: telling([FRAME], 1.0) for pid in (1, 2, 3, 4)}
    processes.told[4] = telling([FRAME], 1.0, running=True)
    stream = begin(processes, seconds=2.0)
    del processes.told[2]
    processes.told[3] = CommandError("late")
    profile = merged(items_of(stream, clock))
    assert [one["worker"] for one in profile["processes"]] == [1, 4]
    assert profile["unanswered"] == [
        {"worker": 2, "error": "it has ended before its profile"},
        {"worker": 3, "error": "late"},
    ]


def test_no_result_is_lost_while_those_of_other_workers_are_fetched(clock: Clock) -> None:
    """A worker forgets its result some seconds after it was last asked; here the first ones take longer."""

    class Forgetful(Processes):
        def __init__(self) -> None:
            super().__init__()
            self.told = {1: {}, 2: {}, 3: {}}
            self.leases = dict.fromkeys(self.told, clock.now + profiler.LEASE)

        def _answer(self, pid: int, params: dict[str, Any]) -> Any:
            self.leases[pid] = 0 if clock.now > self.leases[pid] else clock.now + profiler.LEASE
            if params["step"] != "take" or not self.leases[pid]:
                return [{"running": False, "samples": 0, "more": False, "frames": [], "stacks": []}]
            clock.now += 0.6
            page = telling([FRAME], 1.0)["take"]
            after = params["after"] + 1
            return [
                {**page, "after": after} if after == 9 else {"frames": [], "stacks": [], "after": after, "more": True}
            ]

    profile = merged(items_of(begin(Forgetful(), seconds=1.0), clock))
    assert ([one["worker"] for one in profile["processes"]], profile["unanswered"]) == ([1, 2, 3], [])
    # A client that reads slowly asks for nothing meanwhile.
    stream = begin(Forgetful(), seconds=1.0)
    clock.now += 1.0
    stream.pull()
    clock.now += profiler.LEASE + 1.0
    error = "it has no result: it was asked too late"
    assert merged(items_of(stream, clock))["unanswered"] == [{"worker": pid, "error": error} for pid in (1, 2, 3)]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({1: telling([], 1.0), 2: CommandError("runs already", code=CONFLICT)}, "runs already"),
        ({1: CommandError("late")}, "late"),
        ({}, "no worker serves"),
    ],
)
def test_a_profile_that_can_not_begin_everywhere_it_is_asked_for_is_refused(told: Any, message: str) -> None:
    processes = Processes()
    processes.told = told
    with pytest.raises(CommandError, match=message):
        begin(processes)
    assert processes.asked == [("run", None), ("cancel", None)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0.0},
        {"seconds": 601.0},
        {"hz": 0.5},
        {"hz": 1001.0},
        {"route": "x" * 201},
        {"seconds": float("nan")},
    ],
)
def test_a_parameter_that_is_out_of_bounds_is_refused(wrong: Any) -> None:
    with pytest.raises(CommandError, match=next(iter(wrong))):
        begin(Processes(), **wrong)


def test_a_plain_command_gets_the_table_at_the_end(clock: Clock) -> None:
    processes = Processes()
    processes.told = {1: telling([FRAME], 2.0)}
    stream = begin(processes, seconds=1.0)
    texts = [stream.text({"item": item}) for item in items_of(stream, clock)]
    assert [text for text in texts if text] == [texts[-1]]
    assert texts[-1].splitlines()[0].startswith("pid 1: 2.0 s, 99.5 Hz reached, 8 samples of requests, coverage 80%")


# As text

PROFILE = {
    "processes": [{"worker": 7, **SUMMARY}],
    "routes": [{"route": "GET /pay", "requests": 4, "seconds": 4.0}],
    "frames": [FRAME, {"function": "charge;\x1b", "file": "/srv/shop/bank.py", "line": 40}],
    "stacks": [
        {"route": "GET /pay", "thread": None, "frames": [0, 1], "seconds": 3.0, "samples": 6},
        {"route": "GET /pay", "thread": None, "frames": [0], "seconds": 1.0, "samples": 2},
        {"route": None, "thread": "pool-N", "frames": [0], "seconds": 9.0, "samples": 90},
    ],
    "unanswered": [{"worker": 8, "error": "late"}],
}


def test_the_table_has_routes_and_functions_with_the_most_time_of_their_own() -> None:
    assert render_profile(PROFILE).splitlines() == [
        "pid 7: 2.0 s, 99.5 Hz reached, 8 samples of requests, coverage 80% (8 of 10 expected samples),"
        " the sampler took 1.2% of a processor",
        "",
        "  time  share  requests  route",
        "4.00 s   100%         4  GET /pay",
        "",
        "  self  share   total  function in requests",
        "3.00 s    75%  3.00 s  charge;\\x1b (shop/bank.py:40)",
        "1.00 s    25%  4.00 s  pay (shop/app.py:3)",
        "",
        "  self  share   total  function in other threads",
        "9.00 s   100%  9.00 s  pay (shop/app.py:3)",
        "",
        "pid 8 did not answer: late",
    ]


def test_collapsed_stacks_are_lines_of_frames_and_milliseconds() -> None:
    assert render_profile(PROFILE, "collapsed").splitlines() == [
        "GET /pay;pay (shop/app.py:3);charge,\\x1b (shop/bank.py:40) 3000",
        "GET /pay;pay (shop/app.py:3) 1000",
        "thread pool-N;pay (shop/app.py:3) 9000",
    ]


SCHEMA = json.loads((pathlib.Path(__file__).parent / "schemas" / "speedscope.json").read_text())


def test_the_file_for_speedscope_is_valid_by_its_schema() -> None:
    document = json.loads(render_profile(PROFILE, "speedscope"))
    jsonschema.validate(document, SCHEMA)
    requests, others = document["profiles"]
    names = [frame["name"] for frame in document["shared"]["frames"]]
    assert [[names[number] for number in sample] for sample in requests["samples"]] == [
        ["GET /pay", "pay", "charge;\x1b"],
        ["GET /pay", "pay"],
    ]
    assert (requests["weights"], requests["endValue"], others["name"]) == ([3.0, 1.0], 4.0, "other threads")
    empty: Any = {"processes": [], "routes": [], "frames": [], "stacks": [], "unanswered": []}
    jsonschema.validate(json.loads(render_profile(empty, "speedscope")), SCHEMA)
    requests["weights"] = "none"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


SVG = "{http://www.w3.org/2000/svg}"


def test_a_flame_graph_is_one_svg_file_with_a_titled_box_for_each_frame() -> None:
    document = ElementTree.fromstring(render_profile(PROFILE, "svg"))
    boxes: dict[str, list[list[float]]] = {}
    for group in document.iter(f"{SVG}g"):
        if group.get("class") == "f":
            title, rect = group.findtext(f"{SVG}title") or "", group.find(f"{SVG}rect")
            assert rect is not None
            boxes.setdefault(title.rpartition(": ")[0], []).append(
                [float(rect.get(name, 0)) for name in ("x", "width")]
            )
    assert boxes == {
        "all": [[0.0, 1200.0]],
        "requests": [[0.0, 369.23]],
        "GET /pay": [[0.0, 369.23]],
        "pay (shop/app.py:3)": [[0.0, 369.23], [369.23, 830.77]],
        "charge;\\x1b (shop/bank.py:40)": [[0.0, 276.92]],
        "other threads": [[369.23, 830.77]],
        "thread pool-N": [[369.23, 830.77]],
    }
    text = render_profile(PROFILE, "svg")
    assert "charge;\\x1b (shop/bank.py:40): 3.000 s (23.1%), of its own 3.000 s" in text
    assert re.findall(r"(?:href|src|url)\b", text) == [], "it loads nothing"
    odd = {**PROFILE, "frames": [{"function": "<a> & ]]>", "file": "b", "line": 1}, FRAME]}
    assert ElementTree.fromstring(render_profile(odd, "svg")) is not None
    ElementTree.fromstring(render_profile({**PROFILE, "stacks": []}, "svg"))


# Real servers


def test_a_server_is_profiled_and_the_result_is_written(shared: Server, short_path: Any) -> None:
    name = short_path.name
    held = shared.begin(f"/hold/{name}")
    file = short_path / "stacks.txt"
    done = run_cli("profile", "--seconds", "0.3", "-o", str(file), "-s", shared.socket)
    assert (done.returncode, done.stderr) == (0, f"written to {file}\n")
    assert re.search(r"^ *\d+\.\d\d s +\d+% +\d+  GET /hold/<name>$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^GET /hold/<name>;.*;hold \([^;]*\);.* \d+$", file.read_text(), re.MULTILINE)
    graph = short_path / "graph.svg"
    assert run_cli("profile", "--seconds", "0.1", "-q", "-o", str(graph), "-s", shared.socket).stderr == ""
    assert ">GET /hold/&lt;name&gt;" in graph.read_text()
    told = json.loads(run_cli("profile", "--seconds", "0.2", "--requests-only", "--json", "-s", shared.socket).stdout)
    assert {stack["route"] for stack in told["stacks"]} == {"GET /hold/<name>"}
    shared.release(name)
    held.result()
    for words in (["-o", str(short_path / "x.pdf")], ["-o", "/nowhere/x.txt"], ["--hz", "0"], ["--seconds", "-1"]):
        assert run_cli("profile", *words, "-s", shared.socket).returncode == 2, words
    assert run_cli("profile", "--seconds", "601", "-s", shared.socket).returncode == 1
    assert run_cli("profile", "--worker", "1", "-s", shared.socket).returncode == 1


def test_workers_are_profiled_together_and_their_greenlets_until_the_client_has_gone(start: Serve) -> None:
    server = start(SERVERS["gunicorn gevent"])
    held = [server.begin(f"/hold/{name}") for name in "abcd"]
    with server.client() as client:
        with raw(server.socket) as sock:
            sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "profile", "params": {"seconds": 60}}\n')
            assert b'"subscription"' in sock.recv(4096)
            with pytest.raises(CommandError, match=r"runs already, asked by .*, until \d{4}-\d\d-\d\dT") as refused:
                client.profile(0.1)
            assert refused.value.data["by"]["pid"] == os.getpid()
        profile = until(lambda: _profile(client), "the other one has ended")
    assert {one["worker"] for one in profile["processes"]} == set(workers(server))
    named = [functions(profile, one) for one in profile["stacks"] if one["route"] == "GET /hold/<name>"]
    assert named
    assert all("hold" in names for names in named)
    for name in "abcd":
        server.release(name)
    for pending in held:
        pending.result()


def _profile(client: Any) -> dict[str, Any] | None:
    try:
        profile: dict[str, Any] = client.profile(0.5)
    except CommandError:
        return None
    return profile
