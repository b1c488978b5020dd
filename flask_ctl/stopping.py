"""One stop, from its acceptance to its result: delay, drain, cut, hooks.

It runs in a thread of its own, so that it reads from top to bottom and a hook that hangs keeps nobody else waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, Protocol

from .adapters import HttpServer

Mode = Literal["graceful", "fast", "immediate"]
Progress = Callable[[Mapping[str, Any]], Any]

IDLE_LINGER = 0.5
"""Seconds for a connection that has not sent a byte to send one after all, before it counts as idle and is closed."""

PROGRESS_INTERVAL = 0.5
"""Seconds between two progress notifications."""

MAX_SECONDS = 10 * 365 * 86400.0
"""A longer grace is no different, and threads can't wait for it."""

logger = logging.getLogger("flask_ctl")


class Work(Protocol):
    """What is drained beside the connections, and what is called at the end."""

    def finished_count(self) -> int:
        """Requests and commands finished so far."""

    def commands_in_flight(self) -> int:
        """Custom commands that have not been answered."""

    def run_stop_hooks(self) -> None:
        """The app's own `on_stop` functions."""


@dataclass
class StopRequest:
    """What was asked: seconds of grace and delay, and by whom."""

    mode: Mode
    grace: float
    delay: float
    by: dict[str, Any]


class Stop:
    """A stop under way. `result` gets what `stop` answers; who asks again joins."""

    def __init__(self, server: HttpServer, work: Work, request: StopRequest, pid: int) -> None:
        self.result: Future[dict[str, Any]] = Future()
        self.mode = request.mode
        self._server = server
        self._work = work
        self._pid = pid
        self._by = request.by
        self._since = datetime.now(timezone.utc)
        self._began = time.monotonic()
        hurry = request.mode != "graceful"
        self._delay_until = self._began + (0 if hurry else min(request.delay, MAX_SECONDS))
        self._deadline = self._delay_until + (0 if hurry else min(request.grace, MAX_SECONDS))
        self._changed = threading.Condition()
        self._listeners: list[Progress] = []
        self._finished_before = work.finished_count()
        self._phase = "delay"
        self._told = self._began
        self._thread: threading.Thread | None = None

    def start(self, on_done: Callable[[], Any]) -> None:
        """Go through it in a thread; `on_done` is called there once the result is set."""

        def run() -> None:
            try:
                self._run()
            except BaseException:
                logger.exception("the stop failed on its way; the server ends all the same")
                self.give_up()
            finally:
                on_done()

        self._thread = threading.Thread(target=run, name="flask-ctl-stop", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until its thread has ended."""
        if self._thread is not None:
            self._thread.join()

    def join(self, mode: Mode, progress: Progress | None) -> Future[dict[str, Any]]:
        """The result for one more caller; `fast` ends the waiting for those before, too."""
        with self._changed:
            if mode == "fast" and self.mode == "graceful":
                self.mode = mode
                self._delay_until = self._deadline = time.monotonic()
            if progress is not None and not self.result.done():
                self._listeners.append(progress)
                progress(self.progress())
            self._changed.notify_all()
        return self.result

    def describe(self) -> dict[str, Any]:
        """The `stopping` of `status`."""
        remaining = timedelta(seconds=self._deadline - self._began)
        return {
            "mode": self.mode,
            "since": timestamp(self._since),
            "deadline": timestamp(self._since + remaining),
            "by": self._by,
            "waiting_for": self._waiting_for(),
        }

    def progress(self) -> dict[str, Any]:
        """How far it is: the phase, requests and commands in flight, seconds that remain, threads that stay."""
        return {
            "phase": self._phase,
            "in_flight": self._in_flight(),
            "remaining": round(max(0.0, self._deadline - time.monotonic()), 3),
            "waiting_for": self._waiting_for(),
        }

    def poke(self) -> None:
        """Look again whether everything has ended; never call it with a lock of the server's."""
        with self._changed:
            self._changed.notify_all()

    def give_up(self) -> None:
        """Set the result at once, for a process that is about to end without draining."""
        self._finish(self._in_flight())

    def _run(self) -> None:
        self._wait(lambda: False, lambda: self._delay_until)
        self._phase = "drain"
        self._server.drain(self.poke)
        idle_at = time.monotonic() + IDLE_LINGER
        self._wait(self._server.quiet, lambda: min(idle_at, self._deadline))
        self._server.close_idle()
        drained = self._wait(self._all_done, lambda: self._deadline)
        cut = 0 if drained else self._server.cut() + self._work.commands_in_flight()
        self._phase = "hooks"
        self._tell()
        self._work.run_stop_hooks()
        self._phase = "end"
        self._tell()
        self._finish(cut)

    def _finish(self, cut: int) -> None:
        with self._changed:
            if self.result.done():
                return
            drained = max(0, self._work.finished_count() - self._finished_before)
            self.result.set_result(
                {
                    "outcome": "forced" if cut else "drained",
                    "drained": drained,
                    "cut": cut,
                    "elapsed": round(time.monotonic() - self._began, 3),
                    "pid": self._pid,
                    "embedded": self._server.embedded,
                }
            )

    def _all_done(self) -> bool:
        return self._server.quiet() and not self._work.commands_in_flight()

    def _in_flight(self) -> int:
        return self._server.in_flight() + self._work.commands_in_flight()

    def _wait(self, done: Callable[[], bool], until: Callable[[], float]) -> bool:
        """Whether `done` came true before the time that `until` tells, which may change meanwhile."""
        with self._changed:
            while not done():
                remaining = until() - time.monotonic()
                if remaining <= 0:
                    return False
                self._changed.wait(min(remaining, PROGRESS_INTERVAL) if self._listeners else remaining)
                if time.monotonic() - self._told >= PROGRESS_INTERVAL:
                    self._tell()
        return True

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._listeners:
            fields = self.progress()
            for listener in self._listeners:
                listener(fields)

    def _waiting_for(self) -> list[str]:
        return [] if self._server.embedded or self._phase != "end" else threads_that_stay()


def threads_that_stay() -> list[str]:
    """Names of the threads that keep this process alive."""
    main = threading.main_thread()
    return [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not main]


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
