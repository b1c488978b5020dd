"""What a stop and a reload have in common: a thread, phases, a result, and callers that follow the progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any, Protocol

from ..errors import CONFLICT, CommandError
from ..system.native import new_future, threading
from ..system.standby import StandbyThread

Progress = Callable[[Mapping[str, Any]], Any]

PROGRESS_INTERVAL = 0.5
"""Seconds between two progress notifications."""

MAX_WAIT = 10**6
"""Seconds that a thread can wait at once."""

MAX_SECONDS = 10 * 365 * 86400.0
"""Longest grace, in seconds: threads can't wait longer."""


class Work(Protocol):
    """What a stop drains beside the connections, and the hooks that it runs."""

    def finished_count(self) -> int:
        """Requests and commands finished so far."""

    def commands_in_flight(self) -> int:
        """Custom commands that have not been answered."""

    def oldest_request(self) -> Mapping[str, Any] | None:
        """The ``method``, ``route`` and ``age`` of the oldest one."""

    def requests_in_flight(self) -> Mapping[Hashable, Mapping[str, Any]]:
        """The oldest ones, as `cutting.Requests`."""

    def running_hook(self) -> str | None:
        """The name of an `on_ready` or `on_drain` function that the `on_stop` functions have to wait for."""

    def run_stop_hooks(self) -> None:
        """The app's own `on_stop` functions."""


def oldest_in_progress(work: Work) -> dict[str, Any]:
    """The field of a progress notification, if a request is in flight."""
    request = work.oldest_request()
    return {} if request is None else {"oldest_request": request}


class CalledOff(CommandError):
    """A stop has come before the reload could commit."""

    def __init__(self) -> None:
        super().__init__("the reload was called off by a stop", code=CONFLICT)


class Operation:
    """A stop or a reload. It runs in a thread of its own: it reads from top to bottom, and blocks no other thread."""

    def __init__(self, by: dict[str, Any], deadline: float) -> None:
        self.result: Future[dict[str, Any]] = new_future()
        self.by = by
        self.since = datetime.now(timezone.utc)
        self.began = time.monotonic()
        self.answered = threading.Event()
        """Set when whatever waits for the result has been called."""
        self.phase = ""
        self._deadline = deadline
        self._changed = threading.Condition()
        self._listeners: list[Progress] = []
        self._told = self.began
        self._settled = False
        self._thread: StandbyThread | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since it was requested."""
        return round(time.monotonic() - self.began, 3)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until its thread has ended, for at most `timeout` seconds; whether it has."""
        return self._thread is None or self._thread.join(timeout)

    def notify(self) -> None:
        """Evaluate the condition that it waits for again. Never call this with a lock of the server."""
        with self._changed:
            self._changed.notify_all()

    def follow(self, progress: Progress | None) -> Future[dict[str, Any]]:
        """The result for one more caller, which also gets the progress."""
        with self._changed:
            if progress is not None and not self.result.done():
                self._listeners.append(progress)
                progress(self.progress())
        return self.result

    def progress(self) -> dict[str, Any]:
        """The phase, and the remaining seconds."""
        return {"phase": self.phase, "remaining": round(max(0.0, self._deadline - time.monotonic()), 3)}

    def settle(self, outcome: dict[str, Any] | BaseException) -> bool:
        """Set the result, or the exception, unless there is one already; whether it was set.

        Whatever waits for it is called here, so no lock may be held.
        """
        with self._changed:
            if self._settled:
                return False
            self._settled = True
        if isinstance(outcome, BaseException):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)
        self.answered.set()
        return True

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase
        self._tell()

    def wait_until(self, done: Callable[[], bool], until: Callable[[], float], interval: float = MAX_WAIT) -> bool:
        """Whether `done` came true before the time that `until` tells, which may change meanwhile.

        It is asked whenever `notify` is called, and at least every `interval` seconds.
        """
        with self._changed:
            while not done():
                remaining = until() - time.monotonic()
                if remaining <= 0:
                    return False
                self._changed.wait(min(remaining, interval, PROGRESS_INTERVAL if self._listeners else MAX_WAIT))
                if time.monotonic() - self._told >= PROGRESS_INTERVAL:
                    self._tell()
        return True

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._listeners:
            fields = self.progress()
            for listener in self._listeners:
                listener(fields)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
