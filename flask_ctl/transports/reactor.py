"""The event loop of the control thread: descriptors, calls from other threads, timers, one periodic tick.

One thread runs it and owns everything that is registered; the others only `call_soon`. It goes in rounds: in each of
them every descriptor that is ready is served once, and every call that waited at its beginning is made once. A callback
with more to do asks for another call, which comes in the next round, so that no source of events starves the others.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..system.native import selectors
from ..system.waiting import Waker, eager_switching

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


MAX_LAST_ROUNDS = 100
"""Rounds of calls after the end of `run`; a call that asks for itself again and again is given up then."""


class Descriptor(Protocol):
    """What has a file descriptor."""

    def fileno(self) -> int: ...


class Reactor:
    """Waits for descriptors and calls back; between events it sleeps until the next tick, if there is one."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._calls: collections.deque[tuple[Callable[..., Any], tuple[Any, ...]]] = collections.deque()
        self._timers: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._ticks: list[Callable[[], Any]] = []
        self._interval: float | None = None
        self._next_tick = 0.0
        self._running = True
        self._selector.register(self._waker, READ, self._waker.clear)

    def register(self, descriptor: Descriptor, events: int, callback: Callable[..., Any]) -> None:
        """Call `callback(events)` whenever the descriptor is ready; without events, never."""
        self.unregister(descriptor)
        if events:
            self._selector.register(descriptor.fileno(), events, callback)

    def unregister(self, descriptor: Descriptor) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor.fileno())

    def every(self, seconds: float, callback: Callable[[], Any]) -> None:
        """Call `callback` every so many seconds; all ticks share the last interval given."""
        self._ticks.append(callback)
        self._interval = seconds
        self._next_tick = time.monotonic() + seconds

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call on the reactor's thread, in order. Any thread and any signal handler may ask."""
        self._calls.append((function, arguments))
        self._waker.wake()

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
        """Call after so many seconds. Only the reactor's own thread may ask."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), function, arguments))

    def run(self) -> None:
        """Until `stop`; what callbacks raise ends it too, and `run` may be called again."""
        while self._running:
            self.run_once()

    def run_once(self) -> None:
        """One round: wait until there is something to do, and do it."""
        events = self._selector.select(self._timeout())
        with eager_switching:
            self._call_back(events)
            self._call_pending()
        self._call_overdue()
        self._tick()

    def finish_calls(self) -> None:
        """After `run` has ended: make the calls that have been asked for since, and those that they ask for in turn."""
        for _ in range(MAX_LAST_ROUNDS):
            self._call_pending()

    def stop(self) -> None:
        """End `run` once the calls before this one are done."""
        self.call_soon(self._end)

    def close(self) -> None:
        """Release the reactor's own descriptors; what is registered belongs to its owner."""
        self._running = False
        self._selector.close()
        self._waker.close()

    def renew(self) -> None:
        """After a failure: forget every descriptor, timer and tick, but not what was to be called soon."""
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, READ, self._waker.clear)
        self._timers, self._ticks, self._interval = [], [], None

    def _call_back(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            if key.fileobj is self._waker:
                self._waker.clear()
            elif len(events) == 1 or self._is_registered(key):
                key.data(mask)

    def _is_registered(self, key: selectors.SelectorKey) -> bool:
        # An earlier callback of the same round may have closed it.
        current = self._selector.get_map().get(key.fileobj)
        return current is not None and current.data == key.data

    def _call_pending(self) -> None:
        # Only what waits now: a call that asks for another one must not keep the descriptors from their turn.
        for _ in range(len(self._calls)):
            function, arguments = self._calls.popleft()
            function(*arguments)

    def _call_overdue(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, function, arguments = heapq.heappop(self._timers)
            function(*arguments)

    def _timeout(self) -> float | None:
        if self._calls:
            return 0
        due = [] if self._interval is None else [self._next_tick]
        if self._timers:
            due.append(self._timers[0][0])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _tick(self) -> None:
        if self._interval is None or time.monotonic() < self._next_tick:
            return
        self._next_tick = time.monotonic() + self._interval
        for callback in self._ticks:
            callback()

    def _end(self) -> None:
        self._running = False
