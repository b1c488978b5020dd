"""Threads that are started before they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .native import queue, threading


class StandbyThread:
    """A daemon thread that is there before it is needed, when there might be none to be had.

    The system may have none left, and from Python 3.12 on none starts once the main thread has returned.
    """

    def __init__(self, name: str) -> None:
        """Raises RuntimeError if there is no thread to be had now."""
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], Any]) -> None:
        """Call `function` there; that is all that the thread ever does."""
        self._work.put(function)

    def discard(self) -> None:
        """Let it end, if it has not been needed; more than once is fine."""
        self._work.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, at most for so many seconds; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        function = self._work.get()
        if function is not None:
            function()
