"""One reload, from its acceptance to the moment when the process is replaced.

Whatever can fail is done before the commit, and the old code goes on if it does. From the commit on this image answers
no request any more: it executes the new one, or a fast stop ends it, or the exec fails and it ends with exit code 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import CONFLICT, INTERNAL_ERROR, CommandError, TimedOut
from ..servers.base import HttpServer
from ..system.bytecode import remove_stale
from ..system.directory import StartDirectory
from ..system.preflight import Preflight
from ..system.replacement import Executable, Replacement
from ..system.reserve import reserve
from ..system.standby import StandbyThread
from .operation import MAX_SECONDS, Operation, Work
from .stop import stop_result

PAUSE = 0.25
"""Longest pause in accepting, in seconds. If requests that began just before it have not ended by then, the server
accepts again, and the drain starts anew with them."""

MIN_UNWIND = 2.0
"""Least seconds for the hooks, for the threads, and for the exit functions, after the grace has passed."""

THREAD_INTERVAL = 0.05
"""Seconds between two looks at the program's own threads: no event tells of their end."""

logger = logging.getLogger("flask_ctl")


class Replaceable(Executable, Protocol):
    """The program, as a reload sees it."""

    @property
    def start_directory(self) -> StartDirectory:
        """Where it was started, and where it would be started again."""

    def start_in(self, directory: str) -> None:
        """Start it again there."""

    def obstacle(self) -> str | None:
        """Why it can't be started again, None if it can."""

    def start_preflight(self, limit: float, served: Collection[str]) -> Preflight:
        """A trial start of at most `limit` seconds. It treats the `served` HTTP addresses as inherited."""

    def background_threads(self, but: Collection[Any]) -> list[str]:
        """Names of the threads, but the HTTP server's own, that would keep the process from ending."""

    def busy_executor_threads(self) -> list[str]:
        """Names of the ThreadPoolExecutors' busy threads."""


class ReloadWork(Work, Protocol):
    """What a reload has to know of the work beside the connections."""

    @property
    def has_stop_hooks(self) -> bool:
        """Whether a function of the app's may end its threads."""


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


class CalledOff(CommandError):
    """A stop has come before the commit."""

    def __init__(self) -> None:
        super().__init__("the reload was called off by a stop", code=CONFLICT)


class ReloadOperation(Operation):
    """A reload under way, of this process or of workers; `phase` is the one that comes after the preflight."""

    def __init__(self, request: ReloadRequest, phase: str) -> None:
        super().__init__(request.by, time.monotonic() + request.longest)
        self.phase = "preflight" if request.preflight else phase
        self._request = request
        self._preflight: Preflight | None = None
        self._cancelled = False

    def cancel(self) -> bool:
        """Call it off, for a stop; False if that is not possible any more."""
        raise NotImplementedError

    def _attempt(self, run: Callable[[], Any], fail: Callable[[CommandError], Any]) -> bool:
        """Whether `run` succeeded; `fail` gets its error."""
        try:
            run()
        except CommandError as error:
            fail(error)
        except BaseException as error:
            logger.exception("the reload failed on its way")
            fail(CommandError(f"the reload failed: {error}", code=INTERNAL_ERROR))
        else:
            return True
        return False


class Reload(ReloadOperation):
    """A reload of this process. Its result is only ever an error: the next image answers on success.

    `committed` is true from the moment when there is no way back.
    """

    def __init__(self, server: HttpServer, work: ReloadWork, request: ReloadRequest, program: Replaceable) -> None:
        """Raises RuntimeError or OSError if there are no threads or descriptors for it."""
        super().__init__(request, "drain")
        self.committed = False
        self.cut = 0
        self.left_behind: dict[str, Any] = {}
        """What was not done when this image ended: ``hooks`` are ``unfinished``, ``threads_left`` are named."""
        self._server = server
        self._work = work
        self._program = program
        self._finished_before = work.finished_count()
        self._ending: Callable[[], int] | None = None
        self._decided = False
        self._hooks_ran = False
        self._hooks_thread: StandbyThread | None = None
        self._replacement = Replacement(program, self.notify)
        self._on_failure: Callable[[CommandError], Any] = lambda error: None
        self._standby = StandbyThread("flask-ctl-reload")
        try:
            if request.preflight:
                with reserve.lend():
                    self._preflight = program.start_preflight(request.preflight_timeout, server.addresses())
        except OSError:
            self._standby.discard()
            raise

    def start(
        self,
        on_failure: Callable[[CommandError], Any],
        on_commit: Callable[[], Any],
        hand_over: Callable[[], dict[str, Any] | None],
    ) -> None:
        """Go through it in a thread. `on_failure` is called if the old code goes on, else `on_commit`.

        `hand_over` gives the state for the next image at the last moment; None if this image is to end after all.
        """
        self._on_failure = on_failure

        def run() -> None:
            if self._attempt(lambda: self._run(on_commit), self._fail):
                self._finish(hand_over)

        self._spawn(run, self._standby)

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

    def end_instead(self, ended: Callable[[], int]) -> bool:
        """After the commit: have the process end, and not be replaced; False if it is being replaced already.

        `ended` is called before the end, and gives the exit code.
        """
        with self._changed:
            if self._decided:
                return False
            if self._ending is None:
                self._ending = ended
            self._changed.notify_all()
        self._settle(CalledOff())
        return True

    def decide(self) -> bool:
        """At the last moment: whether the process is to be replaced; from now on nothing changes that."""
        with self._changed:
            self._decided = self._ending is None
            return self._decided

    def discard_hand_over(self) -> int:
        """For a stop after the commit: let go of the listening sockets; how many connections waited there."""
        return self._server.discard_hand_over()

    def ended(self, cut: int, pid: int) -> dict[str, Any]:
        """The result of a stop that ended this image after the commit."""
        drained = max(0, self._work.finished_count() - self._finished_before)
        return stop_result(drained, cut, self.elapsed, pid, hooks_left=not self._hooks_ran)

    def progress(self) -> dict[str, Any]:
        """The phase, remaining seconds, requests and commands in flight, threads that it waits for."""
        waiting_for = self._threads_in_way() if self.phase == "drain" else []
        return {**super().progress(), "in_flight": self._in_flight(), "waiting_for": waiting_for}

    def _run(self, on_commit: Callable[[], Any]) -> None:
        self._program.start_directory.check()
        if self._preflight is not None:
            self._enter("preflight")
            remove_stale()
            self._preflight.run()
            self._check()
        self._deadline = time.monotonic() + min(self._request.grace, MAX_SECONDS)
        self._server.set_keep_alive(False)
        self._enter("drain")
        drained = self._drain()
        if not drained and not self._request.cut:
            raise TimedOut(
                f"{self._what_stays()} after {self._request.grace:g} s of grace; the old code still serves",
                {"in_flight": self._in_flight(), "threads": self._threads_in_way()},
            )
        self._prepare()
        with self._changed:
            self._check()
            self.committed = True
        on_commit()
        self._replacement.arm()
        if not drained:
            self._cut()

    def _check(self) -> None:
        if self._cancelled:
            raise CalledOff

    def _drain(self) -> bool:
        """Whether, by the deadline, nothing is in flight and the server has paused. No pause exceeds PAUSE."""
        while self._wait_for_those_in_flight():
            self._server.pause()
            if self._wait_until_quiet():
                return True
            if time.monotonic() >= self._deadline:
                break
            self._server.resume()
        return False

    def _wait_for_those_in_flight(self) -> bool:
        old = self._server.requests()
        return self._wait_for(lambda: not self._server.answers_any(old) and self._is_idle(), self._deadline)

    def _wait_until_quiet(self) -> bool:
        return self._wait_for(lambda: self._server.paused() and self._is_idle(), time.monotonic() + PAUSE)

    def _wait_for(self, done: Callable[[], bool], deadline: float) -> bool:
        """Whether `done` came true in time. Raises CalledOff when a stop has come."""
        came = self._wait(lambda: self._cancelled or done(), lambda: deadline, THREAD_INTERVAL)
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

    def _cut(self) -> None:
        self._server.pause()
        self.cut = self._server.cut() + self._work.commands_in_flight()
        end = time.monotonic() + PAUSE
        # Without threads the loop itself is taken out of its request, and ends.
        self._wait(lambda: self._server.paused() or self._server.quiet(), lambda: end)

    def _what_stays(self) -> str:
        count, threads = self._in_flight(), self._threads_in_way()
        if count or not threads:
            return f"{count} still in flight"
        return (
            f"threads of the program would keep the old code from ending ({', '.join(threads)}): have them be daemon"
            " threads, end them in an on_stop hook, or reload with cut;"
        )

    def _prepare(self) -> None:
        """Acquire all resources that may be missing later, while the old code can still go on."""
        # The preflight has compiled what may have been edited since.
        remove_stale()
        try:
            self._hooks_thread = StandbyThread("flask-ctl-hooks")
            with reserve.lend():
                self._replacement.prepare()
                self._server.prepare_hand_over()
        except (OSError, RuntimeError) as error:
            raise CommandError(f"can't reload now: {error}; the old code still serves", code=INTERNAL_ERROR) from None

    def _finish(self, hand_over: Callable[[], dict[str, Any] | None]) -> None:
        """From the commit to the end of this image."""
        try:
            self._run_hooks()
            self._enter("replace")
            self._server.leave()
            self._unwind()
            if self._ending is not None or not self._replacement.execute(hand_over):
                self._end()
        except BaseException:
            logger.exception("the reload failed after the old code had ended; this process ends")
            self._replacement.terminate(1)

    def _run_hooks(self) -> None:
        def run() -> None:
            self._work.run_stop_hooks()
            self._hooks_ran = True
            self.notify()

        assert self._hooks_thread is not None
        self._enter("hooks")
        self._hooks_thread.run(run)
        if not self._wait_to_leave(lambda: self._hooks_ran):
            self._leave_unfinished("an on_stop hook still runs")

    def _unwind(self) -> None:
        """Wait until the program has ended but for the exec; what does not end in time is left behind."""
        replacement = self._replacement
        if not self._wait_to_leave(lambda: replacement.unwound) and self._ending is None:
            threads = self._program.background_threads(self._server.own_threads())
            threads += self._program.busy_executor_threads()
            if threads:
                self.left_behind["threads_left"] = threads
                logger.warning("threads that have not ended are left behind: %s", ", ".join(threads))
            else:
                self._leave_unfinished("the program still runs")
            replacement.begin_exit_functions()
        if not self._wait_to_leave(lambda: replacement.exit_functions_ran) and self._ending is None:
            self._leave_unfinished("an exit function still runs")

    def _wait_to_leave(self, done: Callable[[], bool]) -> bool:
        """Whether `done` came true by the end of the grace, or of MIN_UNWIND, and before a fast stop."""
        until = max(self._deadline, time.monotonic() + MIN_UNWIND)
        self._wait(lambda: self._ending is not None or done(), lambda: until)
        return done()

    def _leave_unfinished(self, what: str) -> None:
        self.left_behind["hooks"] = "unfinished"
        logger.warning("%s; it is left behind", what)

    def _end(self) -> None:
        """End the process as a fast stop does."""
        assert self._ending is not None
        until = time.monotonic() + MIN_UNWIND
        exit_code = self._ending()
        self._replacement.end(exit_code, wait=lambda: self._wait(lambda: self._replacement.main_waits, lambda: until))

    def _fail(self, error: CommandError) -> None:
        """The old code goes on."""
        self._replacement.discard()
        if self._hooks_thread is not None:
            self._hooks_thread.discard()
        self._server.discard_hand_over()
        self._server.resume()
        self._server.set_keep_alive(True)
        self._refuse(error)

    def _refuse(self, error: CommandError) -> None:
        # Before the answer, so that a caller with the answer finds the failure in `status`.
        with self._changed:
            on_failure, self._on_failure = self._on_failure, lambda error: None
        on_failure(error)
        self._settle(error)
