"""Which workers are old and which are new, while the master replaces them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...system.processes import ProcessHandle, open_process, parent_of
from ..messages import Hello, SavedReload
from .table import Worker, Workers


class Turnover:
    """The workers before and after the moment when the master was signalled to replace them."""

    def __init__(self, workers: Workers) -> None:
        self.signalled_at: float | None = None
        """When the master was signalled, on the monotonic clock."""
        self.cut = 0
        """Requests that ended with an old worker."""
        self.cut_requests: list[Mapping[str, Any]] = []
        """Those of them that are known."""
        self.count = 0
        """Workers at that moment."""
        self.passed = 0
        """New workers that have served and ended in order already, as by gunicorn's --max-requests."""
        self.unheard: list[ProcessHandle] = []
        """Old workers of a reload that a previous hub began, which may end without having introduced themselves."""
        self._workers = workers

    def begin(self) -> None:
        """The master is about to be signalled."""
        self.signalled_at = time.monotonic()
        self.count = len(self._workers)

    def restore_state(self, begun: SavedReload, master: int) -> None:
        """Go on from what a previous hub has noted."""
        self.signalled_at, self.cut, self.count, self.passed = begun.since, begun.cut, begun.count, begun.passed
        self.cut_requests = [*begun.cut_requests]
        handles = [open_process(pid) for pid in begun.old if parent_of(pid) == master]
        self.unheard = [handle for handle in handles if handle is not None]

    def close(self) -> None:
        for handle in self.unheard:
            handle.close()

    def is_new(self, hello: Hello) -> bool:
        """Whether a worker's code has been loaded since then."""
        return self.signalled_at is not None and hello.loaded.at > self.signalled_at

    def ended(self, worker: Worker, lost: int) -> bool:
        """A worker has ended: whether the requests that were lost with it are this reload's."""
        if self.signalled_at is None:
            return False
        if self.is_new(worker.hello):
            self.passed += worker.final and worker.hello.ready
            return False
        self.cut += lost
        return True

    def new(self) -> list[Worker]:
        """The new workers that serve."""
        return [worker for worker in self._workers if self.is_new(worker.hello) and worker.hello.ready]

    def old(self) -> list[Worker]:
        """The old workers that live and have introduced themselves to this hub."""
        return [worker for worker in self._workers if not self.is_new(worker.hello)]

    def missing(self) -> list[ProcessHandle]:
        """The old workers that live and have not introduced themselves to this hub."""
        return [one for one in self.unheard if self._workers.get(one.pid) is None and not one.ended()]

    def left(self) -> list[int]:
        """The pids of all old workers that live."""
        return [*(worker.pid for worker in self.old()), *(handle.pid for handle in self.missing())]

    def wanted(self) -> int:
        """The number of new workers to wait for."""
        newest = self._workers.newest()
        return max(1, self.count if newest is None else newest.hello.wanted or self.count)

    def has_loaded(self) -> bool:
        """Whether enough new workers have come."""
        return len(self.new()) + self.passed >= self.wanted()

    def numbers(self) -> dict[str, int]:
        """How many workers there are, for the caller of the reload."""
        return {"new": len(self.new()), "wanted": self.wanted(), "old": len(self.old())}
