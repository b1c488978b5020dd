"""Whether a server serves, and not only whether it runs: what the pings of a service manager's watchdog are to mean."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .state import State

PINGS = 4
"""Looks in the time after which the manager ends the server."""

TOLD = PINGS - 1
"""Looks without a ping after which the log tells of it: a probe is answered at the next look at the earliest."""

logger = logging.getLogger("flask_ctl")


class Load(NamedTuple):
    """The requests `finished` so far, the age of the `oldest` in flight, None without one, and connections `waiting`.

    With workers it is the age in the one whose oldest is the youngest, infinite without workers.
    """

    finished: int
    oldest: float | None
    waiting: int


class Way(Protocol):
    """A way to the server that clients take, too; see `Probe`."""

    def passed(self, address: Any) -> bool:
        """Whether a request of ours that was sent there has been answered since; else, without one, sends one."""

    def close(self) -> None:
        """Give up the request that has not been answered."""


class Watchdog:
    """Looks at the server now and then, and pings if it serves. Belongs to the control thread.

    It serves while requests end, or none is older than `limit` seconds, and none has to wait so long to be accepted.
    Otherwise it serves if a request of our own gets through: then others are answered beside the old ones.
    """

    def __init__(
        self,
        ping: Callable[[], Any],
        way: Way,
        load: Callable[[], Load],
        address: Callable[[], Any],
        limit: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ping = ping
        self._way = way
        self._load = load
        self._address = address
        self._limit = limit
        self._clock = clock
        self._finished = -1
        self._moved = clock()
        self._missed = 0

    def look(self, state: State) -> None:
        """Called PINGS times in the time after which the manager ends the server."""
        load = self._load()
        # A reload and a drain are bounded by their own deadlines.
        if state is State.RUNNING and not self._serves(load):
            self._missed += 1
            if self._missed == TOLD:
                logger.warning("%s: the service manager is not pinged until that changes", self._trouble(load))
        elif state is not State.STARTING:
            if self._missed >= TOLD:
                logger.info("the service manager is pinged again")
            self._missed = 0
            self._ping()

    def _trouble(self, load: Load) -> str:
        if load.oldest == math.inf:
            return "there is no worker, and no request gets through"
        if (load.oldest or 0.0) < self._limit():
            return "connections wait longer than CTL_WATCHDOG_REQUEST to be accepted, and no other one gets through"
        return (
            "requests are older than CTL_WATCHDOG_REQUEST, or the workers silent for so long, and no other one gets"
            " through"
        )

    def _serves(self, load: Load) -> bool:
        now = self._clock()
        if load.finished != self._finished or (load.oldest is None and not load.waiting):
            self._moved = now
        self._finished = load.finished
        # Nothing has ended since.
        age = max(load.oldest or 0.0, now - self._moved if load.waiting else 0.0)
        if self._moved == now or age < self._limit():
            self._way.close()
            return True
        return self._way.passed(self._address())
