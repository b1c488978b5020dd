"""The last log records and events of workers that have ended, for readers."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...inspection.ring import Ring
from .table import Worker

MAX_ENDED = 32
"""Workers that have ended whose items are kept, or as many as there are: each has up to LEFT bytes of each feed."""


class Left(NamedTuple):
    """What one worker has left, by feed; the rest is as in `Worker`."""

    pid: int
    generation: int
    number: int
    feeds: Mapping[str, Ring]


class LeftFeeds:
    """What the last workers have left, the newest at the end."""

    def __init__(self) -> None:
        self._ended: collections.deque[Left] = collections.deque()

    def add(self, worker: Worker, living: int) -> None:
        """A worker has ended, and so many others live: a reload may end as many before a follower reads again."""
        if worker.left is not None:
            self._ended.append(Left(worker.pid, worker.generation, worker.number, worker.left))
        while len(self._ended) > max(MAX_ENDED, living):
            self._ended.popleft()

    def of(self, name: str, pid: int | None) -> Iterator[tuple[Left, Ring]]:
        """The ended workers, or those with that pid, with their items of a feed."""
        return ((left, left.feeds.get(name) or Ring(1)) for left in self._ended if pid in (None, left.pid))
