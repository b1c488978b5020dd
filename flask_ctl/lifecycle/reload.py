"""One reload, from its acceptance to the moment when the process is replaced.

Whatever can fail is done before the commit, and the old code goes on if it does. From the commit on this image answers
no request any more: it executes the new one, or a fast stop ends it, or the exec fails and it ends with exit code 1.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import INTERNAL_ERROR, CommandError, TimedOut
from ..servers.base import HttpServer
from ..system.bytecode import remove_stale
from ..system.preflight import Preflight
from ..system.program import Program
from ..system.reserve import reserve
from ..system.standby import StandbyThread
from .commit import CommittedReload
from .cutting import oldest
from .hooks import AppWork
from .operation import MAX_SECONDS, CalledOff, Operation, oldest_in_progress

PAUSE = 0.25
"""Longest pause in accepting, in seconds. If requests that began just before it have not ended by then, the server
accepts again, and the drain starts anew with them."""

THREAD_INTERVAL = 0.05
"""Seconds between two looks at the program's own threads: no event tells of their end."""

logger = logging.getLogger("flask_ctl")


@dataclass
class ReloadRequest:
    """The parameters of a reload: seconds of grace, whether to cut the rest then, and who requested it."""

    grace: float
    cut: bool
    preflight: bool
    preflight_timeout: float
    by: dict[str, Any]

    @property
    def longest(self) -> float:
        """Most seconds for the preflight and the grace together, so that the remaining time never grows."""
        return min(self.grace, MAX_SECONDS) + (self.preflight_timeout if self.preflight else 0.0)


class ReloadOperation(Operation, ABC):
    """A reload under way, of this process or of workers; `phase` is the one that comes after the preflight."""

    def __init__(self, request: ReloadRequest, phase: str) -> None:
        super().__init__(request.by, time.monotonic() + request.longest)
        self.phase = "preflight" if request.preflight else phase
        self._request = request
        self._preflight: Preflight | None = None
        self._cancelled = False

    @abstractmethod
    def start(self) -> None:
        """Go through it in a thread. Raises RuntimeError or OSError for want of threads or descriptors."""

    @abstractmethod
    def cancel(self) -> bool:
        """Call it off, for a stop; False if that is not possible any more."""

    @abstractmethod
    def _run(self) -> None:
        """Up to the moment when it has succeeded. Raises CommandError."""

    @abstractmethod
    def _succeed(self) -> None:
        """What comes after `_run`."""

    @abstractmethod
    def _fail(self, error: CommandError) -> None:
        """Report that `_run` has failed."""

    def _attempt(self) -> None:
        """In the thread: run it, and go on with the outcome."""
        try:
            self._run()
        except CommandError as error:
            self._fail(error)
        except BaseException as error:
            logger.exception("the reload failed on its way")
            self._fail(CommandError(f"the reload failed: {error}", code=INTERNAL_ERROR))
        else:
            self._succeed()


class Reload(ReloadOperation):
    """A reload of this process. Its result is only ever an error: the next image answers on success.

    `committed` is true from the moment when there is no way back.
    """

    def __init__(
        self,
        server: HttpServer,
        work: AppWork,
        request: ReloadRequest,
        program: Program,
        *,
        on_failure: Callable[[Reload, CommandError], Any],
        on_commit: Callable[[], Any],
        hand_over: Callable[[], dict[str, Any] | None],
        end: Callable[[], int],
    ) -> None:
        """`on_failure` is called if the old code goes on, the others as `CommittedReload` says."""
        super().__init__(request, "drain")
        self.committed = False
        self.after_commit = CommittedReload(self, server, work, program, on_commit, hand_over, end)
        self._server = server
        self._work = work
        self._program = program
        self._on_failure = on_failure
        self._refused = False
        self._drained = False

    def start(self) -> None:
        self._thread = StandbyThread("flask-ctl-reload")
        try:
            if self._request.preflight:
                with reserve.lend():
                    self._preflight = self._program.start_preflight(
                        self._request.preflight_timeout, self._server.copies.addresses
                    )
        except OSError:
            self._thread.discard()
            raise
        self._thread.run(self._attempt)

    def cancel(self) -> bool:
        """Call it off, for a stop; False if there is no way back any more. Its caller gets the error at once."""
        with self._changed:
            if self.committed:
                return False
            self._cancelled = True
            if self._preflight is not None:
                self._preflight.cancel()
            self._changed.notify_all()
        self._refuse(CalledOff())
        return True

    def progress(self) -> dict[str, Any]:
        """The phase, remaining seconds, what is in flight, the oldest request, threads that it waits for."""
        waiting_for = self._threads_in_way() if self.phase == "drain" else []
        fields = {**super().progress(), "in_flight": self._in_flight(), "waiting_for": waiting_for}
        return {**fields, **oldest_in_progress(self._work)}

    def _run(self) -> None:
        self._program.start_directory.check()
        if self._preflight is not None:
            self.enter("preflight")
            remove_stale()
            self._preflight.run()
            self._check()
        self._deadline = time.monotonic() + min(self._request.grace, MAX_SECONDS)
        self._server.set_keep_alive(False)
        self.enter("drain")
        self._drained = self._drain()
        if not self._drained and not self._request.cut:
            data = {"in_flight": self._in_flight(), "threads": self._threads_in_way()}
            raise TimedOut(
                f"{self._what_stays()} after {self._request.grace:g} s of grace; the old code still serves",
                {**data, "requests": oldest([*self._work.requests_in_flight().values()])},
            )
        # The preflight has compiled what may have been edited since.
        remove_stale()
        try:
            self.after_commit.prepare()
        except (OSError, RuntimeError) as error:
            raise CommandError(f"can't reload now: {error}; the old code still serves", code=INTERNAL_ERROR) from None
        with self._changed:
            self._check()
            self.committed = True

    def _succeed(self) -> None:
        self.after_commit.run(self._deadline, cut=not self._drained)

    def _fail(self, error: CommandError) -> None:
        self.after_commit.discard()
        self._server.resume()
        self._server.set_keep_alive(True)
        self._refuse(error)

    def _refuse(self, error: CommandError) -> None:
        """Report the failure, once: before the answer, so that a caller with the answer finds it in `status`."""
        with self._changed:
            refused, self._refused = self._refused, True
        if not refused:
            self._on_failure(self, error)
        self.settle(error)

    def _check(self) -> None:
        if self._cancelled:
            raise CalledOff

    def _drain(self) -> bool:
        """Whether, by the deadline, nothing is in flight and the server has paused. No pause exceeds PAUSE."""
        while self._answer_requests():
            self._server.pause()
            if self._wait_for(lambda: self._server.paused() and self._is_idle(), time.monotonic() + PAUSE):
                return True
            if time.monotonic() >= self._deadline:
                break
            self._server.resume()
        return False

    def _answer_requests(self) -> bool:
        """Whether, by the deadline, those in flight now are answered, and nothing else is in the way."""
        requests = self._server.requests()
        return self._wait_for(lambda: requests.isdisjoint(self._server.requests()) and self._is_idle(), self._deadline)

    def _wait_for(self, done: Callable[[], bool], deadline: float) -> bool:
        """Whether `done` came true in time. Raises CalledOff when a stop has come."""
        came = self.wait_until(lambda: self._cancelled or done(), lambda: deadline, THREAD_INTERVAL)
        self._check()
        return came

    def _is_idle(self) -> bool:
        """Whether only requests can keep the old code from being replaced."""
        return not (self._work.commands_in_flight() or self._program.busy_executor_threads() or self._threads_in_way())

    def _threads_in_way(self) -> list[str]:
        """Names of threads that would keep the old code from ending; none if the app has stop hooks or `cut` is set."""
        if self._request.cut or self._work.has_stop_hooks:
            return []
        return self._program.background_threads(self._server.own_threads())

    def _in_flight(self) -> int:
        busy = len(self._program.busy_executor_threads())
        return self._server.in_flight() + self._work.commands_in_flight() + busy

    def _what_stays(self) -> str:
        count, threads = self._in_flight(), self._threads_in_way()
        if count or not threads:
            return f"{count} still in flight"
        return (
            f"threads of the program would keep the old code from ending ({', '.join(threads)}): have them be daemon"
            " threads, end them in an on_stop hook, or reload with cut;"
        )
