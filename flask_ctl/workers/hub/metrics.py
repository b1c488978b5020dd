"""The metrics of the workers, and of those that have ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ...inspection.metrics import Part, Totals, Unpacked, merged, unpack
from ...lifecycle.metrics import Measured
from ...system.native import new_future, start_thread
from ..messages import SavedMetrics
from .table import Snapshot, Worker, Workers

MAX_SAVED = 256 * 1024
"""Characters of the totals of all apps that are left to the next hub."""

logger = logging.getLogger("flask_ctl")


class WorkersMetrics:
    """Adds up what the workers count. What one that has ended has counted stays, so that no sum decreases."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._past: dict[str, Totals] = {}
        self._read: set[str] = set()
        """Apps whose totals another thread may be reading."""
        self.ended = [0, 0]
        """Workers that have ended, with and without a last snapshot."""

    def retire(self, worker: Worker) -> None:
        """It has ended: keep what it has counted."""
        self.ended[0 if worker.has_last_snapshot else 1] += 1
        for key, snapshot in worker.snapshots.items():
            families, left_out = _unpacked(worker, snapshot)
            past = self._past.setdefault(key, Totals())
            if key in self._read:
                self._read.remove(key)
                past = self._past[key] = past.copy()
            past.add(families, worker.generation)
            past.left_out += left_out

    def merge(self, key: str) -> Callable[[], Measured]:
        """A function that adds up, in any thread, the metrics of one app as they are now."""
        past = self._past.get(key, Totals())
        self._read.add(key)
        workers = sorted(self._workers, key=lambda worker: worker.number)
        counted = [(worker, worker.generation, worker.snapshots.get(key, Snapshot())) for worker in workers]
        numbers = {worker.pid: str(worker.index) for worker in workers}
        ended = self.ended[0], self.ended[1]

        def measured() -> Measured:
            parts, left_out = [], past.left_out
            for worker, generation, snapshot in counted:
                families, more = _unpacked(worker, snapshot)
                parts.append(Part(numbers[worker.pid], generation, families))
                left_out += more
            return Measured(merged(past, parts), [], left_out, numbers, ended=ended)

        return measured

    def export(self) -> SavedMetrics:
        """For the next hub. Totals that are too long for it are left out, and begin anew there."""
        saved: dict[str, str] = {}
        room = MAX_SAVED
        for key, totals in self._past.items():
            packed = totals.pack()
            if len(packed) <= room:
                saved[key] = packed
                room -= len(packed)
        return SavedMetrics(saved, (self.ended[0], self.ended[1]))

    def restore(self, saved: SavedMetrics) -> None:
        """Go on from what a previous hub has left."""
        self.ended = list(saved.ended)
        try:
            self._past = {key: Totals.unpacked(text) for key, text in saved.totals.items()}
        except ValueError as error:
            logger.error("the metrics that a previous hub has left: %s", error)


class Merges:
    """Has metrics added up in a thread, one app at a time: that takes seconds where there are many.

    Who asks while that goes on shares the answer of the next time. Belongs to the control thread, on which `call_soon`
    calls; the Futures get their results in the other thread.
    """

    def __init__(self, metrics: WorkersMetrics, call_soon: Callable[..., Any]) -> None:
        self._metrics = metrics
        self._call_soon = call_soon
        self._waiting: dict[str, list[Future[Measured]]] = {}
        self._busy = False

    def measured(self, key: str) -> Future[Measured]:
        """The metrics of one app, as they are now or later."""
        future: Future[Measured] = new_future()
        self._waiting.setdefault(key, []).append(future)
        if not self._busy:
            self._begin()
        return future

    def _begin(self) -> None:
        self._busy = bool(self._waiting)
        if not self._busy:
            return
        key = next(iter(self._waiting))
        futures = self._waiting.pop(key)
        merge = self._metrics.merge(key)

        def run() -> None:
            try:
                measured = merge()
            except Exception as error:
                for future in futures:
                    future.set_exception(error)
            else:
                for future in futures:
                    future.set_result(measured)
            self._call_soon(self._begin)

        try:
            start_thread(run)
        except RuntimeError:
            # No thread is to be had: a late answer is better than none.
            run()


def _unpacked(worker: Worker, snapshot: Snapshot) -> Unpacked:
    families, left_out = [], 0
    for text in snapshot:
        try:
            more, without = unpack(text)
        except ValueError as error:
            logger.error("the metrics of worker %d: %s", worker.pid, error)
        else:
            families += more
            left_out += without
    return Unpacked(families, left_out)
