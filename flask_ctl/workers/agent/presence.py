"""How a worker shows clients that it lives: by a record lock on the lock file of each socket (see `locks`).

It also holds one on its server's file in the registry of instances.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

from ...system import locks
from ...system.fork import Step, in_child

logger = logging.getLogger("flask_ctl")


class Presence:
    """Shows other processes that this worker is alive: a locked byte of each lock file of its server.

    `entry` is the server's file in the registry, which is locked likewise.
    """

    def __init__(self, master: int, entry: str | None = None) -> None:
        self._master = master
        self._entry = entry
        self._held: dict[str, tuple[int, int]] = {}
        """Descriptor and byte by path; a negative descriptor while the file can't be locked."""
        # Closing a child's copies leaves the locks with the parent.
        in_child(Step.DESCRIPTORS, self.close)

    def be_at(self, sockets: Iterable[str]) -> None:
        """Hold a byte for each of these sockets, given by their paths, and none for others."""
        wanted = {locks.lock_path(path) for path in sockets} | ({self._entry} if self._entry else set())
        for path in self._held.keys() - wanted:
            self._release(path)
        for path in wanted - self._held.keys():
            self._held[path] = -1, 0
        self.renew()

    def renew(self) -> None:
        """Take the bytes again, and where a lock file has been replaced one on the new file; called now and then."""
        for path, (descriptor, byte) in self._held.items():
            try:
                if descriptor < 0 or not locks.same_file(path, descriptor):
                    self._enter(path)
                elif not locks.take(descriptor, byte):
                    self._held[path] = descriptor, self._take_any(descriptor)
            except FileNotFoundError:
                # The listener makes the file, and makes it anew.
                continue
            except OSError as error:
                # What can't be opened, or is on a file system without locks, can be so again a second later.
                logger.debug("%s can't be locked: %s", path, error)

    def close(self) -> None:
        """Give up all bytes; more than once is fine."""
        for path in list(self._held):
            self._release(path)

    def _enter(self, path: str) -> None:
        before, _ = self._held[path]
        if locks.is_ours(path):
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._held[path] = descriptor, self._take_any(descriptor)
        except OSError:
            locks.close(descriptor)
            raise
        if before >= 0:
            locks.close(before)

    def _take_any(self, descriptor: int) -> int:
        # Most find their first choice free.
        first = os.getpid() % (locks.NUMBERS - 1)
        for step in range(locks.MAX_HOLDERS):
            byte = locks.hub_byte(self._master) + 1 + (first + step) % (locks.NUMBERS - 1)
            if locks.take(descriptor, byte):
                return byte
        raise BlockingIOError(errno.EAGAIN, "all bytes are taken")

    def _release(self, path: str) -> None:
        descriptor, _ = self._held.pop(path)
        if descriptor >= 0:
            locks.close(descriptor)
