"""Threads that are started before they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .native import queue, threading


class StandbyThread:
    """A daemon thread that is started before it is needed.

    Later the system may have no thread left, and since Python 3.12 none starts once the main thread has returned.
    """

    def __init__(self, name: str) -> None:
        """Raises RuntimeError if no thread can be started."""
        self.finished = False
        """Whether the function has returned."""
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], Any], on_finished: Callable[[], Any] = lambda: None) -> None:
        """Call `function` in the thread, then `on_finished`; the thread ends."""
        self._work.put((function, on_finished))

    def discard(self) -> None:
        """End the unused thread; more than once is fine."""
        self._work.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end for at most `timeout` seconds; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        work = self._work.get()
        if work is not None:
            function, on_finished = work
            function()
            self.finished = True
            on_finished()
