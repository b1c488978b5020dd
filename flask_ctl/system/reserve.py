"""Descriptors that are kept for control, so that a program which has used up all of its own can still be controlled.

They lead to /dev/null. When one is needed and the process may have no more (EMFILE), some of them are closed. They are
taken back once that is possible.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from .fork import Step, in_child
from .native import threading

SIZE = 16
"""A reload needs about ten; the others are for connections meanwhile."""

LENT = 10

T = TypeVar("T")


class Reserve:
    """SIZE descriptors from the first `open` to the last `close`. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._users = 0
        self._lent = 0

    @property
    def held(self) -> int:
        """How many are there now."""
        return len(self._held)

    def open(self) -> None:
        """Take them, as many as there are. For each `open` there is a `close`."""
        with self._lock:
            self._users += 1
        self.fill()

    def close(self) -> None:
        """Give them back, unless somebody else needs them, too."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._release(SIZE)

    def fill(self) -> None:
        """Take back what is missing, as far as the process may have more."""
        with self._lock, contextlib.suppress(OSError):
            while self._users and len(self._held) + self._lent < SIZE:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def give_up(self) -> bool:
        """Close one of them, for somebody who opens a descriptor at once; False if none is left."""
        with self._lock:
            return self._release(1) == 1

    @contextlib.contextmanager
    def lend(self, count: int = LENT) -> Iterator[None]:
        """Inside so many descriptors more can be opened; what is closed again by its end is taken back."""
        with self._lock:
            lent = self._release(count)
            self._lent += lent
        try:
            yield
        finally:
            with self._lock:
                self._lent -= lent
            self.fill()

    def retry(self, function: Callable[[], T]) -> T:
        """What `function` returns; once more with what is lent, if there are no descriptors for it."""
        try:
            return function()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        with self.lend():
            return function()

    def abandon(self) -> None:
        """In a forked child, which has no control sockets."""
        self._lock = threading.Lock()
        self._users = self._lent = 0
        self._release(SIZE)

    def _release(self, count: int) -> int:
        released = self._held[:count]
        del self._held[:count]
        for descriptor in released:
            os.close(descriptor)
        return len(released)


reserve = Reserve()
"""This process's."""

in_child(Step.DESCRIPTORS, reserve.abandon)
