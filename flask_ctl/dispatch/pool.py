"""A few daemon threads for custom commands.

A command that hangs delays neither the other commands nor the end of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..errors import CONFLICT, CommandError
from ..system.native import new_future, queue, threading

SIZE = 4
"""Commands that run at once; they are questions to a server, not its work."""

_Work = tuple[Callable[[], Any], "Future[Any]"]


class SingleFlight:
    """Submits each function again only once it has run: behind commands that hang, it waits for a thread once.

    Belongs to one thread.
    """

    def __init__(self, submit: Callable[[Callable[[], Any]], Future[Any]]) -> None:
        self._submit = submit
        self._last: dict[Callable[[], Any], Future[Any]] = {}

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """The function's result, in time; its earlier Future, if that is not done. Raises what `submit` raises."""
        future = self._last.get(function)
        if future is None or future.done():
            future = self._last[function] = self._submit(function)
        return future


class Pool:
    """Runs functions on at most `size` threads; at most `max_waiting` wait for one.

    The first thread is there from `open` on, the others start when they are needed.
    """

    def __init__(
        self, on_idle: Callable[[], Any], max_waiting: int, size: int = SIZE, name: str = "flask-ctl-command"
    ) -> None:
        self._on_idle = on_idle
        self._max_waiting = max_waiting
        self._size = size
        self._name = name
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.unfinished = 0
        """Functions that run or wait."""

    def open(self) -> None:
        """Have a thread: from Python 3.12 on none can be started once the main one has returned, and a stop goes on.

        Raises RuntimeError if there is none to be had.
        """
        with self._lock:
            self._closed = False
            self._start_thread()

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """The function's result, in time.

        Raises CommandError -32002 if too many wait already, if there is no thread and none can be started, or after
        `close`.
        """
        future: Future[Any] = new_future()
        with self._lock:
            if self._closed:
                raise CommandError("the server has ended", code=CONFLICT)
            if self.unfinished >= self._size + self._max_waiting:
                raise CommandError(
                    f"no more than {self._max_waiting} can wait for a thread; try again later", code=CONFLICT
                )
            if len(self._threads) < min(self._size, self.unfinished + 1):
                try:
                    self._start_thread()
                except RuntimeError as error:
                    if not self._threads:
                        raise CommandError(f"{error}; try again later", code=CONFLICT) from None
                    # Those that run will do it.
            self.unfinished += 1
        self._queue.put((function, future))
        return future

    def close(self) -> None:
        """End the idle threads now, busy ones after their command, without waiting. More than once is fine."""
        with self._lock:
            # A thread that were started later would never end.
            self._closed = True
            threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        if not self.unfinished:
            for thread in threads:
                thread.join()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while work := self._queue.get():
            function, future = work
            try:
                result = function()
            except BaseException as error:
                # SystemExit and the like are a command's own fault too; they must not end the thread.
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                with self._lock:
                    self.unfinished -= 1
                self._on_idle()
            del work, function, future
