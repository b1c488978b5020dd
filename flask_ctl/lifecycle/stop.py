"""One stop, from its acceptance to its result: delay, drain, cut, hooks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

from ..inspection import events
from ..servers.base import HttpServer
from ..system.standby import StandbyThread
from ..system.threads import threads_that_stay
from .cutting import cut_off, named
from .operation import MAX_SECONDS, Operation, Progress, Work, oldest_in_progress, timestamp

Mode = Literal["graceful", "fast", "immediate"]

IDLE_LINGER = 0.5
"""Seconds until a connection that has not sent a byte counts as idle, and is closed."""

SETTLE_TIME = 0.1
"""Seconds past the grace for answered connections to close, so that they don't count as cut."""

RETURN_TIME = 1.0
"""Seconds, at least, that a stop which goes over an exec leaves its clients, and the reload's, to connect again."""

HOOKS_TIMEOUT = 2.0
"""Seconds for the `on_stop` hooks in a fast stop. A graceful stop waits until they have run."""

READINESS_TIMEOUT = 5.0
"""Seconds, at least, that a graceful stop waits for `on_ready` and `on_drain` hooks; else until its deadline."""

FAST_READINESS_TIMEOUT = 1.0
"""Seconds for these hooks in a fast stop."""

logger = logging.getLogger("flask_ctl")


@dataclass
class StopRequest:
    """The parameters of a stop: mode, seconds of grace and delay, and who requested it."""

    mode: Mode
    grace: float
    by: dict[str, Any]
    delay: float = 0.0
    explicit: bool = False
    """Whether the grace was given, so that it shortens that of a stop under way."""

    def export_state(self) -> dict[str, Any]:
        """Its fields, as JSON; `StopRequest(**state)` restores it, delayed until the clients are back."""
        return {**asdict(self), "delay": max(self.delay, RETURN_TIME)}


class Stop(Operation):
    """A stop under way. `result` gets the answer to `stop`; a second caller joins."""

    def __init__(self, server: HttpServer, work: Work, request: StopRequest, pid: int) -> None:
        hurry = request.mode != "graceful"
        self._delay_until = time.monotonic() + (0 if hurry else min(request.delay, MAX_SECONDS))
        super().__init__(request.by, self._delay_until + (0 if hurry else min(request.grace, MAX_SECONDS)))
        self.mode = request.mode
        self.phase = "delay"
        self._request = request
        self._deadline_by = request.by
        self._server = server
        self._work = work
        self._pid = pid
        self._finished_before = work.finished_count()
        self._drained: int | None = None
        self._cut_requests: list[Mapping[str, Any]] = []
        self._hooks_left = False
        self._hooks_thread: StandbyThread | None = None

    def start(self, on_done: Callable[[], Any], threads: tuple[StandbyThread, StandbyThread]) -> None:
        """Run it in the first thread, and the hooks in the second one. `on_done` is called once the result is set."""

        def run() -> None:
            try:
                self._run()
            except BaseException:
                logger.exception("the stop failed on its way; the server ends all the same")
                self.give_up()
            finally:
                on_done()

        self._thread, self._hooks_thread = threads
        self._thread.run(run)

    def join(self, request: StopRequest, progress: Progress | None) -> Future[dict[str, Any]]:
        """The result for one more caller. `fast` ends the drain at once, a given grace may shorten it."""
        with self._changed:
            now = time.monotonic()
            if request.mode == "fast" and self.mode == "graceful":
                self.mode = request.mode
                self._delay_until = now
                self._shorten(now, request.by)
            elif request.explicit and request is not self._request and self.mode == "graceful":
                self._shorten(now + min(request.grace, MAX_SECONDS), request.by)
            self._changed.notify_all()
            return self.follow(progress)

    def _shorten(self, deadline: float, by: dict[str, Any]) -> None:
        if deadline < self._deadline:
            self._deadline = deadline
            self._delay_until = min(self._delay_until, deadline)
            self._deadline_by = by
            self._tell()

    def describe(self) -> dict[str, Any]:
        """The `stopping` of `status`."""
        return {
            "mode": self.mode,
            "since": timestamp(self.since),
            "deadline": timestamp(self.since + timedelta(seconds=self._deadline - self.began)),
            "by": self.by,
            "deadline_by": self._deadline_by,
            "waiting_for": self._waiting_for(),
        }

    def progress(self) -> dict[str, Any]:
        """The phase, remaining seconds, what is in flight, the oldest request, threads that keep the process alive."""
        fields = {**super().progress(), "in_flight": self._in_flight(), "waiting_for": self._waiting_for()}
        fields |= oldest_in_progress(self._work)
        return fields if self._deadline_by == self.by else {**fields, "deadline_by": self._deadline_by}

    def give_up(self) -> None:
        """Set the result at once, for a process that is about to end without draining."""
        self.settle(self._result(self._in_flight()))

    def _run(self) -> None:
        self.wait_until(lambda: False, lambda: self._delay_until)
        self.enter("drain")
        events.record("draining", in_flight=self._in_flight())
        self._server.drain()
        idle_at = time.monotonic() + IDLE_LINGER
        self.wait_until(self._server.quiet, lambda: min(idle_at, self._deadline))
        self._server.close_idle()
        drained = self.wait_until(self._all_done, lambda: self._deadline)
        if not drained:
            # A connection closes a moment after its last byte.
            settled_at = time.monotonic() + SETTLE_TIME
            drained = self.wait_until(self._all_done, lambda: settled_at)
        self._drained = self._count_drained()
        cut = 0 if drained else self._cut()
        self.enter("hooks")
        self._run_hooks()
        self.enter("end")
        self.settle(self._result(cut))

    def _cut(self) -> int:
        """Cut what is in flight; the number."""
        count, self._cut_requests = cut_off(self._server, self._work)
        return count + self._work.commands_in_flight()

    def _run_hooks(self) -> None:
        """Run the hooks, and wait for them; in a fast stop for HOOKS_TIMEOUT at most."""
        hooks = self._hooks_thread
        assert hooks is not None
        entered = time.monotonic()
        if not self.wait_until(lambda: self._work.running_hook() is None, lambda: self._readiness_deadline(entered)):
            self._hooks_left = True
            logger.warning("the hook %s still runs; the on_stop hooks don't wait for it", self._work.running_hook())
        began = time.monotonic()
        hooks.run(self._work.run_stop_hooks, self.notify)
        self.wait_until(lambda: hooks.finished, lambda: began + HOOKS_TIMEOUT if self.mode == "fast" else math.inf)
        if not hooks.finished:
            self._hooks_left = True
            logger.warning("an on_stop hook still runs; stopping without it")

    def _readiness_deadline(self, entered: float) -> float:
        """When to go on without `on_ready` and `on_drain` hooks, from the time at which the phase ``hooks`` began."""
        if self.mode == "fast":
            return entered + FAST_READINESS_TIMEOUT
        return max(self._deadline, entered + READINESS_TIMEOUT)

    def _count_drained(self) -> int:
        return max(0, self._work.finished_count() - self._finished_before)

    def _result(self, cut: int) -> dict[str, Any]:
        drained = self._count_drained() if self._drained is None else self._drained
        return stop_result(
            drained,
            cut,
            self.elapsed,
            self._pid,
            embedded=self._server.embedded,
            hooks_left=self._hooks_left,
            cut_requests=self._cut_requests,
            activated=self._server.activated,
        )

    def _all_done(self) -> bool:
        return self._server.quiet() and not self._work.commands_in_flight()

    def _in_flight(self) -> int:
        return self._server.in_flight() + self._work.commands_in_flight()

    def _waiting_for(self) -> list[str]:
        return [] if self._server.embedded or self.phase != "end" else threads_that_stay()


def stop_result(
    drained: int,
    cut: int,
    elapsed: float,
    pid: int,
    *,
    embedded: bool = False,
    hooks_left: bool = False,
    cut_requests: Sequence[Mapping[str, Any]] = (),
    activated: Sequence[str] = (),
) -> dict[str, Any]:
    """What `stop` answers: `drained` requests were finished, and `cut` were not, in `elapsed` seconds.

    A connection at the sockets that are `activated` has systemd start the server again.
    """
    result = {
        "outcome": "forced" if cut else "drained",
        "drained": drained,
        "cut": cut,
        "elapsed": elapsed,
        "pid": pid,
        "embedded": embedded,
        **named(cut_requests),
        **({"activated": list(activated)} if activated else {}),
    }
    return {**result, "hooks": "unfinished"} if hooks_left else result


def stop_threads() -> tuple[StandbyThread, StandbyThread]:
    """The two threads that a stop needs. Raises RuntimeError if the system has no more threads."""
    thread = StandbyThread("flask-ctl-stop")
    try:
        return thread, StandbyThread("flask-ctl-hooks")
    except RuntimeError:
        thread.discard()
        raise
