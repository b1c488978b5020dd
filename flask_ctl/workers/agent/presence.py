"""How a worker shows clients that it lives: by a record lock on the lock file of each socket (see `locks`)."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

from ...system import locks
from ...system.fork import Step, in_child

logger = logging.getLogger("flask_ctl")


class Presence:
    """Shows other processes that this worker is alive: a locked byte of each lock file of its server."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._descriptors: dict[str, int] = {}
        # Closing a child's copies leaves the locks with the parent.
        in_child(Step.DESCRIPTORS, self.close)

    def be_at(self, sockets: Iterable[str]) -> None:
        """Hold a byte for each of these sockets, given by their paths, and none for others."""
        wanted = {locks.lock_path(path) for path in sockets}
        for path in self._descriptors.keys() - wanted:
            self._release(path)
        for path in wanted - self._descriptors.keys():
            self._descriptors[path] = -1
        self.renew()

    def renew(self) -> None:
        """Where a lock file has been replaced hold a byte on the new one; called now and then."""
        for path, descriptor in self._descriptors.items():
            try:
                if descriptor < 0 or not locks.same_file(path, descriptor):
                    self._enter(path)
            except FileNotFoundError:
                # The listener makes the file, and makes it anew.
                continue
            except OSError as error:
                # What can't be opened, or is on a file system without locks, can be so again a second later.
                logger.debug("%s can't be locked: %s", path, error)

    def close(self) -> None:
        """Give up all bytes; more than once is fine."""
        for path in list(self._descriptors):
            self._release(path)

    def _enter(self, path: str) -> None:
        before = self._descriptors[path]
        if locks.is_ours(path):
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._take_any(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptors[path] = descriptor
        if before >= 0:
            locks.close(before)

    def _take_any(self, descriptor: int) -> None:
        # Most find their first choice free.
        first = os.getpid() % (locks.NUMBERS - 1)
        numbers = (1 + (first + step) % (locks.NUMBERS - 1) for step in range(locks.MAX_HOLDERS))
        if not any(locks.take(descriptor, locks.hub_byte(self._master) + number) for number in numbers):
            raise BlockingIOError(errno.EAGAIN, "all bytes are taken")

    def _release(self, path: str) -> None:
        descriptor = self._descriptors.pop(path)
        if descriptor >= 0:
            locks.close(descriptor)
