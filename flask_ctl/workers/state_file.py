"""The state that a hub leaves to the next one, in the file of the hub's lock.

The workers keep a copy, too; but during a reload they may all have ended before a new worker has got its copy.
"""

from __future__ import annotations

import json
import logging
import os

from ..errors import RemoteProtocolError
from ..protocol.typed import from_json
from .messages import SavedState, as_json

MAX_SIZE = 1 << 20
"""Bytes of the file that are read at most."""

logger = logging.getLogger("flask_ctl")


def read_state(lock: str) -> SavedState | None:
    """The state in the file of a hub's lock; None if there is none, or it can't be read."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # No hub has been started yet.
        return None
    try:
        return StateFile(descriptor).read()
    finally:
        os.close(descriptor)


class StateFile:
    """The file of an open descriptor. One system call writes it, so that a hub is killed before or after."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._complained = False

    def read(self) -> SavedState | None:
        """The state that a previous hub wrote; None if there is none, or it can't be read."""
        try:
            line, end, _ = os.pread(self._descriptor, MAX_SIZE, 0).partition(b"\n")
            return from_json(SavedState, json.loads(line)) if end else None
        except (OSError, ValueError, RecursionError, RemoteProtocolError) as error:
            logger.debug("the state of a previous hub can't be read: %s", error)
            return None

    def write(self, state: SavedState) -> None:
        """Replace the state in the file. If that fails, as on a full disk, only the workers keep it."""
        line = json.dumps(as_json(state)).encode() + b"\n"
        try:
            # What a longer text has left behind the line does not count.
            if os.pwrite(self._descriptor, line, 0) != len(line):
                raise OSError("only a part of it was written")
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.warning("the next hub may not know of earlier reloads: %s", error)
