"""The end of this image of the process: it executes the program anew, or ends after all.

The main thread comes here when the program has unwound, with everything else done, and waits for the word of the
reload's thread, which decides: so one place knows how long to wait for whom. If the main thread does not come in time,
the reload's thread does without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from . import handover
from .native import queue, threading
from .standby import StandbyThread

FLUSH_TIMEOUT = 1.0
"""Seconds for the standard streams to be read by whoever reads them."""

logger = logging.getLogger("flask_ctl")


class Executable(Protocol):
    """The program, and what there is to do with the process that runs it."""

    def check(self) -> None:
        """Raises OSError if it can't be executed."""

    def execute(self, variables: dict[str, str]) -> None:
        """Become the new image, with these variables in the environment of the start. Raises OSError."""

    def at_exit(self, function: Callable[[], Any]) -> None:
        """Call `function` when the program has unwound, before all other exit functions."""

    def run_exit_functions(self) -> None:
        """Call all exit functions."""

    def flush(self) -> None:
        """Write what the standard streams hold back."""

    def terminate(self, exit_code: int) -> None:
        """End the process at once."""


class Replacement:
    """What becomes of this image after a reload has committed. `notify` is called when the main thread has come far."""

    def __init__(self, program: Executable, notify: Callable[[], Any]) -> None:
        self._program = program
        self._notify = notify
        self._handover_file: handover.HandoverFile | None = None
        self._exit_thread: StandbyThread | None = None
        self._flush_thread: StandbyThread | None = None
        self._lock = threading.Lock()
        self._claimed = False
        self._word: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.main_waits = False
        """Whether the main thread has unwound and waits for the word."""
        self.unwound = False
        """Whether the program has unwound: no thread is left that Python waits for."""
        self.exit_functions_ran = False

    def prepare(self) -> None:
        """Make sure of what the exec needs. Raises OSError or RuntimeError if it can't be had."""
        self._program.check()
        self._handover_file = handover.HandoverFile()
        self._exit_thread = StandbyThread("flask-ctl-exit")
        self._flush_thread = StandbyThread("flask-ctl-flush")

    def discard(self) -> None:
        """Give up what was prepared; more than once is fine."""
        record, self._handover_file = self._handover_file, None
        if record is not None:
            record.close()
        for thread in (self._exit_thread, self._flush_thread):
            if thread is not None:
                thread.discard()

    def arm(self) -> None:
        """Have the main thread come here at its end."""
        self._program.at_exit(self._at_exit)

    def begin_exit_functions(self) -> None:
        """Call the exit functions without the main thread, which is not coming."""
        assert self._exit_thread is not None
        self._exit_thread.run(self._run_exit_functions)

    def _run_exit_functions(self) -> None:
        """In whatever thread, unless they run or have run already."""
        with self._lock:
            claimed, self._claimed = self._claimed, True
        if claimed:
            return
        try:
            self._program.run_exit_functions()
        except BaseException:
            # Python has printed it; one that calls sys.exit is no reason to serve no more.
            logger.debug("an exit function raised", exc_info=True)
        self.exit_functions_ran = True
        self._notify()

    def execute(self, hand_over: Callable[[], dict[str, Any] | None]) -> bool:
        """Execute the program anew with the state that `hand_over` gives; does not return if that is possible.

        False if `hand_over` gives None, and the image is to end. If the exec fails the process ends with exit code 1,
        and no socket file stays. The main thread does it, if it is here: what belongs to a thread goes over with it
        (sched(7)).
        """

        state: dict[str, Any] | None = None

        def execute() -> None:
            nonlocal state
            try:
                self._flush()
                state = hand_over()
                if state is not None:
                    assert self._handover_file is not None
                    self._program.execute({handover.ENVIRONMENT: self._handover_file.write(state)})
            except BaseException:
                logger.exception("the new code could not be started; this process ends")
                # What it was to inherit is closed, and the files of its sockets go.
                handover.Handover(state or {}).close_rest()
                self.terminate(1)
            finally:
                returned.set()

        returned = threading.Event()
        if self.main_waits:
            self._word.put(execute)
            returned.wait()
        else:
            execute()
        return state is not None

    def end(self, exit_code: int, *, wait: Callable[[], bool]) -> None:
        """Let the process end as after any stop: by the main thread, if `wait` says that it has come."""
        if wait():
            self.discard()
            self._word.put(_go_on)
        else:
            self.terminate(exit_code)

    def terminate(self, exit_code: int) -> None:
        """End the process at once, without the main thread."""
        self._flush()
        self._program.terminate(exit_code)

    def _at_exit(self) -> None:
        self.unwound = True
        self._notify()
        self._run_exit_functions()
        self.main_waits = True
        self._notify()
        while (word := self._word.get()) is not _go_on:
            word()

    def _flush(self) -> None:
        """Write what the standard streams hold back, unless nobody reads it."""
        flushed = threading.Event()

        def flush() -> None:
            try:
                self._program.flush()
            finally:
                flushed.set()

        if self._flush_thread is None:
            return
        thread, self._flush_thread = self._flush_thread, None
        thread.run(flush)
        flushed.wait(FLUSH_TIMEOUT)


def _go_on() -> None:
    """The word for a main thread that is to leave its exit functions."""
