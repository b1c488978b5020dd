"""Where a worker runs the app's commands and hooks: in threads, or under gevent in greenlets of the app's own loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ...dispatch.pool import SIZE, Pool
from ...errors import CONFLICT, CommandError
from ...system.native import is_patched, threading

Done = Callable[[Any], Any]
"""Gets the result, or the exception."""


class Executor(Protocol):
    """Runs functions of the app."""

    @property
    def unfinished(self) -> int:
        """Functions that run or wait."""

    def submit(self, function: Callable[[], Any], done: Done) -> None:
        """Run it, then `done`. Raises CommandError -32002 if too many wait already."""

    def wait(self, seconds: float) -> None:
        """In the main thread: until all have ended, or the time has passed."""


class ThreadExecutor:
    """A pool of threads."""

    def __init__(self, max_waiting: int, size: int, name: str) -> None:
        self._idle = threading.Event()
        self._pool = Pool(self._idle.set, max_waiting, size, name)

    @property
    def unfinished(self) -> int:
        return self._pool.unfinished

    def submit(self, function: Callable[[], Any], done: Done) -> None:
        def finish(future: Future[Any]) -> None:
            error = future.exception()
            done(future.result() if error is None else error)

        self._pool.submit(function).add_done_callback(finish)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._pool.unfinished and (left := deadline - time.monotonic()) > 0:
            self._idle.wait(left)
            self._idle.clear()


class GreenletExecutor:
    """Greenlets in the loop of the thread that makes this object."""

    def __init__(self, max_waiting: int) -> None:
        import gevent

        self._max_waiting = max_waiting

        self._loop = gevent.get_hub().loop
        self._spawn = gevent.spawn
        self._sleep = gevent.sleep
        self.unfinished = 0

    def submit(self, function: Callable[[], Any], done: Done) -> None:
        if self.unfinished >= SIZE + self._max_waiting:
            raise CommandError(f"{self.unfinished} commands are waiting already; try again later", code=CONFLICT)
        self.unfinished += 1
        self._loop.run_callback_threadsafe(self._spawn, self._run, function, done)

    def wait(self, seconds: float) -> None:
        waited = 0.0
        while self.unfinished and waited < seconds:
            self._sleep(POLL)
            waited += POLL

    def _run(self, function: Callable[[], Any], done: Done) -> None:
        try:
            result = function()
        except BaseException as error:
            result = error
        try:
            done(result)
        finally:
            self.unfinished -= 1


POLL = 0.02
"""Seconds between two looks at whether greenlets have ended."""


def make_executor(max_waiting: int, size: int = SIZE, name: str = "flask-ctl-command") -> Executor:
    """Greenlets if gevent has patched this process, else so many threads; `max_waiting` functions may wait at most."""
    return GreenletExecutor(max_waiting) if is_patched() else ThreadExecutor(max_waiting, size, name)
