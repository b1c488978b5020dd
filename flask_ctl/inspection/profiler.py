"""A wall-clock sampling profiler of this process: where requests, threads and greenlets spend their time.

A thread that samples gets the interpreter's lock (the GIL) only when another one gives it up, so a plain loop sees
those that wait, and not those that compute. Here each sample waits with a short switch interval (`eager_switching`),
for a random time, so that it comes in the midst of what runs. Threads that serve a request are sampled at the wanted
rate, the others at a tenth of it. The sampler sleeps as long as it takes for its own CPU time to stay below MAX_SHARE.

Imported when it is used for the first time.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from ..dispatch.redaction import cut
from ..errors import CONFLICT, CommandError
from ..servers.middleware import Environ, InFlight, RequestCounter
from ..system.fork import Step, in_child
from ..system.native import start_thread, threading
from ..system.waiting import eager_switching
from .bounds import that_fit
from .requests import Threads, described_request
from .stacks import MAX_BLOCKS, thread_of

WINDOW = 0.003
"""Seconds before each sample, at the most, in which threads give the GIL up quickly."""

SWITCH_INTERVAL = 0.0005
"""The switch interval there, in seconds: the sampler wakes up so often while it waits for the GIL."""

MAX_SHARE = 0.018
"""The share of one processor that the sampler takes before it samples again, so that it stays below 2 % in all."""

SAVED = 1.0
"""Seconds of a quiet time, at most, whose share is used later: else that could be a whole processor for a while."""

OTHERS = 10.0
"""Samples a second, at the most, of threads and greenlets that serve no request."""

MAX_STACKS = 5000
"""Distinct stacks of a profile; what comes later is counted by route only."""

MAX_CODES = 50_000
"""Functions of a profile."""

MAX_DEPTH = 200
"""Frames of a stack that count, from the inner end."""

MAX_REQUESTS = 500
"""Requests in one sample; where more are in flight, these are a random choice, and stand for all."""

LEASE = 5.0
"""Seconds after the last question about a profile at which it ends: its caller, or the hub, has gone."""

MAX_FILE = 500
"""Characters of a file name, from its end."""

PAGE = 128 * 1024
"""Bytes of JSON in one answer."""

GREENLETS_INTERVAL = 5.0
"""Seconds, at least, between two searches for greenlets that serve no request."""

_SERVED_BY = RequestCounter.__call__.__code__
"""The frame below which a stack is the server's, the same for every request."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_DIGITS = re.compile(r"\d+")

MAX_ROUTES = 1000
"""Routes that are told apart."""

NO_ROUTE = "(no route)"
"""Stands for the route of a request to which Flask gave none, or not yet."""

WatchRoutes = Callable[[Callable[[str], Any]], Callable[[], Any]]
"""Has a function called with method and rule, in what answers a request, once Flask has found these; ends that."""

Stack = tuple[int, ...]
"""The ids of the code of each frame, the outermost first."""


@dataclass(frozen=True)
class Order:
    """What is to be sampled, until when (on the system's monotonic clock), and who has asked for it."""

    id: str
    until: float
    hz: float
    route: str | None
    requests_only: bool
    by: dict[str, Any]
    until_time: str


def answer(app: Any, *, step: str, order: dict[str, Any], after: int = 0) -> list[dict[str, Any]]:
    """One object: for the step ``run``, which begins it if need be, whether it is ``running``, and its ``samples``.

    For ``take`` a page of the result from the item `after` on: ``frames``, ``stacks``, whether there is ``more``, and
    with the last page the ``summary``. ``cancel`` ends it. Raises CommandError -32002 while another profile runs.
    """
    wanted = Order(**order)
    profile = _current()
    if profile is not None and profile.order.id == wanted.id:
        return [profile.answer(step, after)]
    if step != "run":
        return [{"running": False, "samples": 0, "more": False, "frames": [], "stacks": []}]
    if profile is not None:
        by = ", ".join(f"{name} {value}" for name, value in profile.order.by.items())
        raise CommandError(
            f"a profile of pid {os.getpid()} runs already, asked by {by}, until {profile.order.until_time}",
            {"by": profile.order.by, "until": profile.order.until_time, "worker": os.getpid()},
            code=CONFLICT,
        )
    if time.monotonic() >= wanted.until:
        return [{"running": False, "samples": 0}]
    _running.append(Profile(app, wanted))
    return [_running[-1].answer("run", 0)]


class Profile:
    """One profile of this process, from a thread of its own."""

    def __init__(self, app: Any, order: Order) -> None:
        """Raises CommandError if the system has no thread left."""
        self.order = order
        self._lease = time.monotonic() + LEASE
        # A lock to sleep on: who releases it ends the profile.
        self._sleep = threading.Lock()
        self._sleep.acquire()
        self._over = self._cancelled = False
        self._sampler = Sampler(app.requests, order.route, app.watch_routes)
        try:
            start_thread(self._run)
        except RuntimeError as error:
            raise CommandError(f"no profile: {error}") from None

    @property
    def is_over(self) -> bool:
        """Whether nobody will ask for it any more."""
        return self._cancelled or time.monotonic() > self._lease

    def answer(self, step: str, after: int) -> dict[str, Any]:
        """See `answer`."""
        self._lease = time.monotonic() + LEASE
        if step == "cancel":
            self.cancel()
        if step == "take":
            return self._sampler.page(after)
        return {"running": not self._over, "samples": self._sampler.samples}

    def cancel(self) -> None:
        """End it, without a result."""
        if not self._cancelled:
            self._cancelled = True
            self._sleep.release()

    def _run(self) -> None:
        sampler, order = self._sampler, self.order
        try:
            with sampler:
                while not self._wait(sampler.next_at(order.hz)):
                    sampler.sample(others=not order.requests_only and sampler.others_due())
                # A busy machine may have kept this thread waiting for all of a short profile.
                if sampler.is_new and not self.is_over:
                    sampler.sample(others=not order.requests_only)
        except Exception:
            logger.exception("a profile has ended early")
        self._over = True
        while not self.is_over and not self._sleep.acquire(timeout=0.2):
            pass
        # Neither code nor the caller's words outlive it.
        if self in _running:
            _running.remove(self)

    def _wait(self, until: float) -> bool:
        """Sleep until about that time, the end of it eagerly; whether the profile is at its end."""
        now = time.monotonic()
        if min(until, self.order.until) > now and self._sleep.acquire(timeout=min(until, self.order.until) - now):
            return True
        if time.monotonic() >= self.order.until or self.is_over:
            return True
        eager_switching.begin(SWITCH_INTERVAL)
        try:
            return self._sleep.acquire(timeout=self._sampler.random() * WINDOW)
        finally:
            eager_switching.end(SWITCH_INTERVAL)


logger = logging.getLogger("flask_ctl")

_running: list[Profile] = []
"""The profile of this process, if there is one."""


def _current() -> Profile | None:
    for profile in _running:
        if not profile.is_over:
            return profile
    return None


# A forked child has no thread that samples.
in_child(Step.MEMORY, _running.clear)


class Sampler:
    """Counts stacks, from inside of its context. Only code is kept between samples: a frame has local variables."""

    def __init__(self, requests: RequestCounter, route: str | None, watch_routes: WatchRoutes) -> None:
        self.samples = 0
        """Stacks of requests that were seen."""
        # An own one: the app may rely on the sequence of the shared one.
        self.random = random.Random().random
        self._requests = requests
        self._route = route
        self._codes: dict[int, CodeType] = {}
        self._seconds: dict[tuple[str | None, str | None, Stack], list[float]] = {}
        self._ticks = self._seen = 0
        self._busy = 0.0
        self._clock = InFlightClock(requests, watch_routes)
        self._greenlets: list[weakref.ref[Any]] = []
        self._greenlets_at = 0.0
        self._pages: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None

    def __enter__(self) -> Sampler:
        self._ident = threading.get_ident()
        self._cpu = time.thread_time()
        self._clock.begin()
        self._began = self._free_at = self._sampled = self._others_sampled = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._elapsed = time.monotonic() - self._began
        self._clock.end()
        self._busy = time.thread_time() - self._cpu
        self._greenlets.clear()

    @property
    def is_new(self) -> bool:
        """Whether no sample has been taken."""
        return self._ticks == 0

    def next_at(self, hz: float) -> float:
        """When the window before the next sample begins: late enough for the share of CPU time to stay small."""
        before, self._busy = self._busy, time.thread_time() - self._cpu
        self._free_at = max(self._free_at, self._sampled - SAVED) + (self._busy - before) / MAX_SHARE
        return max(self._sampled + 1 / hz - WINDOW / 2, self._free_at)

    def others_due(self) -> bool:
        """Whether threads without a request are to be in the next sample."""
        return time.monotonic() - self._others_sampled >= 1 / OTHERS

    def sample(self, *, others: bool) -> None:
        """Count the stacks of this moment, for the time since the last sample."""
        now = time.monotonic()
        since, self._sampled = now - self._sampled, now
        self._ticks += 1
        in_flight = self._requests.requests_in_flight()
        self._seen += len(in_flight)
        chosen = [each for each in in_flight if self._route is None or self._is_wanted(_route_of(each))]
        factor = 1.0
        if len(chosen) > MAX_REQUESTS:
            factor = len(chosen) / MAX_REQUESTS
            chosen = sorted(chosen, key=lambda _: self.random())[:MAX_REQUESTS]
        newest = {each.served_by: each for each in sorted(in_flight) if isinstance(each.served_by, int)}
        wanted = {each.served_by for each in chosen if newest.get(each.served_by) is each}
        if wanted:
            for ident, stack in self._of_threads(wanted).items():
                self._count(newest[ident], stack, since * factor)
        for each in chosen:
            if not isinstance(each.served_by, int) and (greenlet_stack := self._of_greenlet(each.served_by)):
                self._count(each, greenlet_stack, since * factor)
        if others:
            self._sample_others(now, in_flight, newest.keys())

    def page(self, after: int) -> dict[str, Any]:
        """See `answer`."""
        if self._pages is None:
            self._pages = self._result()
        frames, stacks = self._pages
        page: dict[str, Any] = {"frames": that_fit(frames[after:], PAGE), "stacks": []}
        if after + len(page["frames"]) >= len(frames):
            page["stacks"] = that_fit(stacks[max(after - len(frames), 0) :], PAGE)
        page["after"] = after + len(page["frames"]) + len(page["stacks"])
        page["more"] = page["after"] < len(frames) + len(stacks)
        return page if page["more"] else {**page, "summary": self._summary()}

    def _summary(self) -> dict[str, Any]:
        hz = self._ticks / max(self._elapsed, 0.001)
        expected = self._clock.seconds * hz
        return {
            "elapsed": round(self._elapsed, 3),
            "hz": round(hz, 1),
            "samples": self.samples,
            "in_flight": round(self._clock.seconds, 3),
            "seen": self._seen,
            "expected": round(expected, 1),
            "coverage": round(self._seen / expected, 3) if expected >= 1 else None,
            "cpu": round(self._busy / max(self._elapsed, 0.001), 4),
            "routes": [
                {"route": route, "requests": int(count), "seconds": round(seconds, 6)}
                for route, (count, seconds) in self._clock.routes.items()
                if self._is_wanted(route)
            ],
        }

    def _is_wanted(self, route: str | None) -> bool:
        return self._route is None or (route is not None and self._route in (route, route.partition(" ")[2]))

    def _count(self, request: InFlight, stack: Stack, since: float) -> None:
        name = _route_of(request) or NO_ROUTE
        self.samples += 1
        # Where a C call has kept the sampler waiting, a young request has not had all of that time.
        usual = 2 * (self._sampled - self._began) / self._ticks
        self._add(name, None, stack, min(since, max(request.age, usual)))

    def _add(self, route: str | None, thread: str | None, stack: Stack, since: float) -> None:
        key = (route, thread, stack)
        if key not in self._seconds and len(self._seconds) >= MAX_STACKS:
            key = (route, None if route else "(others)", ())
        counts = self._seconds.setdefault(key, [0.0, 0])
        counts[0] += since
        counts[1] += 1

    def _sample_others(self, now: float, in_flight: list[InFlight], serving: Any) -> None:
        since, self._others_sampled = now - self._others_sampled, now
        names = Threads()
        for ident, stack in self._of_threads(None).items():
            if ident not in serving and ident != self._ident and stack:
                name = names.name_of(ident) or _own_name(self._codes[stack[0]])
                self._add(None, _DIGITS.sub("N", name), stack, since)
        served = {id(each.served_by) for each in in_flight}
        for greenlet in self._other_greenlets(now):
            if id(greenlet) not in served and (stack := self._of_greenlet(greenlet)):
                self._add(None, "greenlet", stack, since)

    def _of_threads(self, idents: set[int] | None) -> dict[int, Stack]:
        # The dictionary has the frame of this very function: a name for it would make a cycle of references.
        return {
            ident: self._read(frame)
            for ident, frame in sys._current_frames().items()
            if idents is None or ident in idents
        }

    def _of_greenlet(self, greenlet: Any) -> Stack:
        """Empty for one that runs, whose frames are those of its thread, or that has ended."""
        if greenlet is None:
            return ()
        if (frame := greenlet.gr_frame) is not None:
            return self._read(frame)
        thread = None if greenlet.dead else thread_of(greenlet)
        return self._of_threads({thread}).get(thread, ()) if thread is not None else ()

    def _other_greenlets(self, now: float) -> list[Any]:
        """The greenlets of this process, as of some seconds ago: the search holds the GIL."""
        module = sys.modules.get("greenlet")
        if module is None or sys.getallocatedblocks() > MAX_BLOCKS:
            return []
        if now >= self._greenlets_at:
            began = time.thread_time()
            # `type`, because `isinstance` asks a proxy for its class.
            found = [one for one in gc.get_objects() if issubclass(type(one), module.greenlet)]
            self._greenlets = [weakref.ref(one) for one in found[:MAX_REQUESTS]]
            cost = time.thread_time() - began
            self._greenlets_at = now + max(GREENLETS_INTERVAL, 2 * cost / MAX_SHARE)
        return [one for reference in self._greenlets if (one := reference()) is not None and one.gr_frame is not None]

    def _read(self, frame: FrameType | None) -> Stack:
        codes = self._codes
        found: list[int] = []
        while frame is not None and len(found) < MAX_DEPTH:
            code = frame.f_code
            if code is _SERVED_BY:
                break
            # By its id, because its hash takes as long as its bytecode is.
            number = id(code)
            if number not in codes:
                if len(codes) >= MAX_CODES:
                    break
                codes[number] = code
            found.append(number)
            frame = frame.f_back
        found.reverse()
        return tuple(found)

    def _factors(self) -> dict[str | None, float]:
        """By route: the exact time, as a share of what the samples have estimated."""
        sampled: dict[str | None, float] = {}
        for (route, _, _), (seconds, _) in self._seconds.items():
            sampled[route] = sampled.get(route, 0.0) + seconds
        # The time before Flask finds the route is exactly known only as a part of that of the route.
        before = sampled.get(NO_ROUTE, 0.0) - self._clock.routes.get(NO_ROUTE, [0, 0.0])[1]
        rest = 1 - min(max(before, 0.0) / max(self._clock.seconds, 1e-9), 1.0)
        exact = {route: seconds for route, (_, seconds) in self._clock.routes.items() if route != NO_ROUTE}
        return {route: rest * seconds / sampled[route] for route, seconds in exact.items() if sampled.get(route)}

    def _result(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        numbers: dict[int, int] = {}
        stacks = []
        factors = self._factors()
        for (route, thread, stack), (seconds, samples) in self._seconds.items():
            seconds *= factors.get(route, 1.0)
            places = [numbers.setdefault(code, len(numbers)) for code in stack]
            stacks.append(
                {
                    "route": route,
                    "thread": thread,
                    "frames": places,
                    "seconds": round(seconds, 6),
                    "samples": int(samples),
                }
            )
        return [_described(self._codes[code]) for code in numbers], stacks


class InFlightClock:
    """The exact seconds for which requests were in flight, by route: the middleware sees each of them."""

    def __init__(self, requests: RequestCounter, watch_routes: WatchRoutes) -> None:
        self._requests = requests
        self._watch_routes = watch_routes
        # By what answers a request: since when, and its route once Flask has found it.
        self._open: dict[Any, tuple[float, str | None]] = {}
        self.routes: dict[str, list[float]] = {}
        """By route: the number of requests that have ended, and the seconds of all."""

    @property
    def seconds(self) -> float:
        """Those of all requests."""
        return sum(seconds for _, seconds in self.routes.values())

    def begin(self) -> None:
        """From now on."""
        requests, opened, monotonic, here = self._requests, self._open, time.monotonic, self._requests._serving
        self._before = on_first, on_done = requests.on_first, requests.on_done

        def began(environ: Environ) -> None:
            opened[here()] = monotonic(), None
            if on_first is not None:
                on_first(environ)

        def ended() -> None:
            if (entry := opened.pop(here(), None)) is not None:
                self._add(*entry, 1)
            if on_done is not None:
                on_done()

        def routed(route: str) -> None:
            if (entry := opened.get(here())) is not None:
                opened[here()] = entry[0], route

        now = monotonic()
        self._unwatch = self._watch_routes(routed)
        self._hooks = began, ended
        requests.on_first, requests.on_done = began, ended
        for request in sorted(requests.requests_in_flight()):
            opened.setdefault(request.served_by, (now, _route_of(request)))

    def end(self) -> None:
        """Those that go on have lasted until now."""
        requests = self._requests
        # Another one may have been set meanwhile.
        if requests.on_first is self._hooks[0]:
            requests.on_first = self._before[0]
        if requests.on_done is self._hooks[1]:
            requests.on_done = self._before[1]
        self._unwatch()
        for entry in self._open.copy().values():
            self._add(*entry, 0)
        self._open.clear()

    def _add(self, since: float, route: str | None, count: int) -> None:
        name = route or NO_ROUTE
        sums = self.routes.setdefault(name if len(self.routes) < MAX_ROUTES else NO_ROUTE, [0, 0.0])
        seconds = time.monotonic() - since
        # In one step each under the GIL, without a call.
        sums[0] += count
        sums[1] += seconds


def _route_of(request: InFlight) -> str | None:
    kind = described_request(request)
    return None if kind["route"] is None else f"{kind['method']} {kind['route']}"


def _own_name(code: CodeType) -> str:
    path = code.co_filename
    return f"flask-ctl {os.path.basename(path)[:-3]}" if path.startswith(_PACKAGE) else "(no name)"


def _described(code: CodeType) -> dict[str, Any]:
    name = getattr(code, "co_qualname", code.co_name)
    return {"function": cut(name), "file": code.co_filename[-MAX_FILE:], "line": code.co_firstlineno}
