"""The program's threads that keep the process from ending, and those at work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import thread as executors
from types import FrameType
from typing import Any


def background_threads(but: Collection[threading.Thread] = ()) -> list[str]:
    """Names of the threads that Python waits for at its end, without the main thread and those in `but`.

    Workers of a ThreadPoolExecutor are not included: they end by themselves when they are idle. `but` are the HTTP
    server's threads.
    """
    main = threading.main_thread()
    return [
        thread.name
        for thread in threading.enumerate()
        if not (thread.daemon or thread is main or thread in executors._threads_queues or thread in but)
    ]


def busy_executor_threads() -> list[str]:
    """Names of the ThreadPoolExecutor workers that run an item, or have one in their queue."""
    queues: Any = executors._threads_queues
    # Another thread may add a worker meanwhile: a list of references is made in one step, and without a lock.
    living = [worker for reference in queues.keyrefs() if (worker := reference()) is not None]
    workers = {worker: queue for worker in living if (queue := queues.get(worker)) is not None}
    frames = sys._current_frames() if workers else {}
    return [
        worker.name
        for worker, queue in workers.items()
        if worker.is_alive() and (queue.qsize() or _runs_an_item(frames.get(worker.ident or 0)))
    ]


def threads_that_stay() -> list[str]:
    """Names of all threads that Python would wait for now."""
    return [*background_threads(), *busy_executor_threads()]


def _runs_an_item(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is executors._WorkItem.run.__code__:
            return True
        frame = frame.f_back
    return False


class ThreadExceptions:
    """Calls a function with each exception that ends a thread, before the program's own `threading.excepthook`."""

    def __init__(self, note: Callable[[BaseException], Any]) -> None:
        self._note: Callable[[BaseException], Any] | None = note
        self._previous = threading.excepthook
        threading.excepthook = self

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        note = self._note
        if note is not None and args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            note(args.exc_value)
        self._previous(args)

    def end(self) -> None:
        """Put the previous hook back, unless another one has been set since: that may call this one, which goes on.

        More than once is fine.
        """
        self._note = None
        if threading.excepthook is self:
            threading.excepthook = self._previous
