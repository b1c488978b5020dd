"""Reserved descriptors, so that a program that has used up its descriptors can still be controlled.

They are open on /dev/null. When a descriptor is needed and the process may not open more (EMFILE), some of them are
closed; they are reopened as soon as possible.
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
"""A reload needs about ten; the others are for connections during a reload."""

LENT = 10

T = TypeVar("T")


class Reserve:
    """SIZE descriptors, held from the first `open` to the last `close`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._users = 0
        self._lent = 0

    @property
    def held(self) -> int:
        """The number of descriptors held now."""
        return len(self._held)

    @property
    def lent(self) -> int:
        """The number of descriptors that are lent now, and reserved again soon."""
        return self._lent

    def open(self) -> None:
        """Open as many as possible. Each `open` needs a `close`."""
        with self._lock:
            self._users += 1
        self.fill()

    def close(self) -> None:
        """Close them at the last `close`."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._release(SIZE)

    def fill(self) -> None:
        """Reopen the missing ones, as far as the process may open more."""
        with self._lock, contextlib.suppress(OSError):
            while self._users and len(self._held) + self._lent < SIZE:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def give_up(self) -> bool:
        """Close one, for a caller that opens a descriptor at once; False if none is left."""
        with self._lock:
            return self._release(1) == 1

    @contextlib.contextmanager
    def lend(self, count: int = LENT) -> Iterator[None]:
        """A context in which `count` more descriptors can be opened; those closed by its end are reserved again."""
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
        """Call `function`; if it fails for lack of descriptors, once more inside `lend`."""
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
"""The reserve of this process."""

in_child(Step.DESCRIPTORS, reserve.abandon)
