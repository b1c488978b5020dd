"""A reload from its commit on: there is no way back to the old code."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..servers.base import HttpServer
from ..system.native import threading
from ..system.program import Program
from ..system.replacement import Replacement
from ..system.reserve import reserve
from ..system.standby import StandbyThread
from .cutting import cut_off
from .operation import CalledOff, Operation, Work
from .stop import stop_result

CUT_LINGER = 0.25
"""Seconds for the server's loop to leave the requests that were cut."""

MIN_UNWIND = 2.0
"""Least seconds for the hooks, for the threads, and for the exit functions, after the grace has passed."""

logger = logging.getLogger("flask_ctl")


class CommittedReload:
    """The end of this image: the hooks, the unwinding of the program, then the exec, or the end of the process."""

    def __init__(
        self,
        operation: Operation,
        server: HttpServer,
        work: Work,
        program: Program,
        on_commit: Callable[[], Any],
        hand_over: Callable[[], dict[str, Any] | None],
        end: Callable[[], int],
    ) -> None:
        """`on_commit` is called first.

        `hand_over` gives the state for the next image at the last moment; None if this image is to end after all.
        `end` is called before the process ends instead, and gives the exit code.
        """
        self.cut = 0
        self.cut_requests: list[Mapping[str, Any]] = []
        self.left_behind: dict[str, Any] = {}
        """What was not done when this image ended: ``hooks`` are ``unfinished``, ``threads_left`` are named."""
        self._operation = operation
        self._server = server
        self._work = work
        self._program = program
        self._on_commit = on_commit
        self._hand_over = hand_over
        self._end = end
        self._lock = threading.Lock()
        self._ends = False
        self._decided = False
        self._finished_before = work.finished_count()
        self._replacement = Replacement(program, operation.notify)
        self._hooks_thread: StandbyThread | None = None

    def prepare(self) -> None:
        """Before the commit: acquire all resources that may be missing later. Raises OSError or RuntimeError."""
        self._hooks_thread = StandbyThread("flask-ctl-hooks")
        with reserve.lend():
            self._replacement.prepare()
            self._server.copies.make()

    def discard(self) -> None:
        """Without a commit: release them; more than once is fine."""
        self._replacement.discard()
        if self._hooks_thread is not None:
            self._hooks_thread.discard()
        self._server.copies.discard()

    def run(self, deadline: float, *, cut: bool) -> None:
        """Go through it; hooks, threads and exit functions have until the deadline, or MIN_UNWIND, each.

        `cut` is for a server that has not been drained.
        """
        try:
            self._on_commit()
            self._replacement.arm()
            if cut:
                self._cut_rest()
            self._run_hooks(deadline)
            self._operation.enter("replace")
            self._server.leave()
            self._unwind(deadline)
            if self._ends or not self._replacement.execute(self._hand_over):
                exit_code, until = self._end(), time.monotonic() + MIN_UNWIND
                self._replacement.end(
                    exit_code,
                    wait=lambda: self._operation.wait_until(lambda: self._replacement.main_waits, lambda: until),
                )
        except BaseException:
            logger.exception("the reload failed after the old code had ended; this process ends")
            self._replacement.terminate(1)

    def end_instead(self) -> None:
        """Have the process end, and not be replaced, unless it is being replaced already."""
        with self._lock:
            if self._decided:
                return
            self._ends = True
        self._operation.notify()
        self._operation.settle(CalledOff())

    def decide(self) -> bool:
        """At the last moment: whether the process is to be replaced; from now on nothing changes that."""
        with self._lock:
            self._decided = not self._ends
            return self._decided

    def release_listeners(self) -> None:
        """The image is not replaced: close the copies of its listening sockets, and cut what waits there."""
        self.cut += self._server.copies.discard()

    def stop_result(self, pid: int) -> dict[str, Any]:
        """The result of a stop that ends this image."""
        drained = max(0, self._work.finished_count() - self._finished_before)
        hooks_ran = self._hooks_thread is not None and self._hooks_thread.finished
        elapsed = self._operation.elapsed
        return stop_result(
            drained,
            self.cut,
            elapsed,
            pid,
            hooks_left=not hooks_ran,
            cut_requests=self.cut_requests,
            activated=self._server.activated,
        )

    def _cut_rest(self) -> None:
        self._server.pause()
        count, self.cut_requests = cut_off(self._server, self._work)
        self.cut = count + self._work.commands_in_flight()
        end = time.monotonic() + CUT_LINGER
        # Without threads the loop itself is taken out of its request, and ends.
        self._operation.wait_until(lambda: self._server.paused() or self._server.quiet(), lambda: end)

    def _run_hooks(self, deadline: float) -> None:
        hooks = self._hooks_thread
        assert hooks is not None
        self._operation.enter("hooks")
        if not self._wait(lambda: self._work.running_hook() is None, deadline):
            self._leave_unfinished(f"the hook {self._work.running_hook()} still runs")
        hooks.run(self._work.run_stop_hooks, self._operation.notify)
        if not self._wait(lambda: hooks.finished, deadline):
            self._leave_unfinished("an on_stop hook still runs")

    def _unwind(self, deadline: float) -> None:
        """Wait until the program has ended but for the exec; what does not end in time is left behind."""
        replacement = self._replacement
        if not self._wait(lambda: replacement.unwound, deadline) and not self._ends:
            threads = self._program.background_threads(self._server.own_threads())
            threads += self._program.busy_executor_threads()
            if threads:
                self.left_behind["threads_left"] = threads
                logger.warning("threads that have not ended are left behind: %s", ", ".join(threads))
            else:
                self._leave_unfinished("the program still runs")
            replacement.begin_exit_functions()
        if not self._wait(lambda: replacement.exit_functions_ran, deadline) and not self._ends:
            self._leave_unfinished("an exit function still runs")

    def _wait(self, done: Callable[[], bool], deadline: float) -> bool:
        """Whether `done` came true by the deadline, or MIN_UNWIND, and before a fast stop."""
        until = max(deadline, time.monotonic() + MIN_UNWIND)
        self._operation.wait_until(lambda: self._ends or done(), lambda: until)
        return done()

    def _leave_unfinished(self, what: str) -> None:
        self.left_behind["hooks"] = "unfinished"
        logger.warning("%s; it is left behind", what)
