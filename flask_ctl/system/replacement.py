"""The end of a process image after a reload has committed: it executes the program again, or ends.

When the program has unwound, the main thread waits here for instructions of the reload's thread, which alone decides
how long to wait for what. If the main thread does not arrive in time, the reload's thread goes on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from . import handover
from .native import queue, threading
from .program import Program
from .standby import StandbyThread

FLUSH_TIMEOUT = 1.0
"""Seconds for the readers of the standard streams to take what is flushed."""

logger = logging.getLogger("flask_ctl")


class Replacement:
    """The exec or the end of this process image. `notify` is called when an attribute has changed."""

    def __init__(self, program: Program, notify: Callable[[], Any]) -> None:
        self._program = program
        self._notify = notify
        self._handover_file: handover.HandoverFile | None = None
        self._exit_thread: StandbyThread | None = None
        self._flush_thread: StandbyThread | None = None
        self._lock = threading.Lock()
        self._claimed = False
        self._instructions: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.main_waits = False
        """Whether the main thread has unwound and waits for instructions."""
        self.unwound = False
        """Whether the program has unwound: Python waits for no more threads."""
        self.exit_functions_ran = False

    def prepare(self) -> None:
        """Acquire what the exec needs: threads and a file. Raises OSError or RuntimeError."""
        self._program.check()
        self._handover_file = handover.HandoverFile()
        self._exit_thread = StandbyThread("flask-ctl-exit")
        self._flush_thread = StandbyThread("flask-ctl-flush")

    def discard(self) -> None:
        """Release what `prepare` has acquired; more than once is fine."""
        record, self._handover_file = self._handover_file, None
        if record is not None:
            record.close()
        for thread in (self._exit_thread, self._flush_thread):
            if thread is not None:
                thread.discard()

    def arm(self) -> None:
        """Have the main thread wait for instructions at its end."""
        self._program.at_exit(self._at_exit)

    def begin_exit_functions(self) -> None:
        """Call the exit functions in another thread: the main thread does not arrive."""
        assert self._exit_thread is not None
        self._exit_thread.run(self._run_exit_functions)

    def _run_exit_functions(self) -> None:
        """Call the exit functions, unless another thread has begun to."""
        with self._lock:
            claimed, self._claimed = self._claimed, True
        if claimed:
            return
        try:
            self._program.run_exit_functions()
        except BaseException:
            # Python has printed it. sys.exit in an exit function does not prevent the exec.
            logger.debug("an exit function raised", exc_info=True)
        self.exit_functions_ran = True
        self._notify()

    def execute(self, hand_over: Callable[[], dict[str, Any] | None]) -> bool:
        """Execute the program again with the state from `hand_over`; returns only if that is None: False.

        If the exec fails, the process ends with exit code 1 and no socket file stays. The main thread executes, if it
        waits here: scheduling attributes of the calling thread survive the exec (sched(7)).
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
                # Close what the new image would have inherited, and remove the socket files.
                handover.Handover(state or {}).close_rest()
                self.terminate(1)
            finally:
                returned.set()

        returned = threading.Event()
        if self.main_waits:
            self._instructions.put(execute)
            returned.wait()
        else:
            execute()
        return state is not None

    def end(self, exit_code: int, *, wait: Callable[[], bool]) -> None:
        """End the process as after a stop: by the main thread if `wait` returns True, else at once."""
        if wait():
            self.discard()
            self._instructions.put(_go_on)
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
        while (instruction := self._instructions.get()) is not _go_on:
            instruction()

    def _flush(self) -> None:
        """Flush the standard streams, for at most FLUSH_TIMEOUT seconds."""
        thread, self._flush_thread = self._flush_thread, None
        if thread is not None:
            thread.run(self._program.flush)
            thread.join(FLUSH_TIMEOUT)


def _go_on() -> None:
    """The instruction to leave the exit functions."""
