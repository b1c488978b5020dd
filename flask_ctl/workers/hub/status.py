"""What the hub answers to `status`: its workers added up."""

from __future__ import annotations

import math
import time
from typing import Any

from ...lifecycle.controller import requests_in_status
from ...lifecycle.watchdog import Load
from ...system import metrics
from ..messages import Tally
from .table import Workers

SILENT = 5.0
"""Seconds after which even an idle worker is old, since the hub of a watchdog asks it every other second."""


class WorkersStatus:
    """The fields of `status` that come from the workers."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._readers: dict[int, metrics.ProcessMetrics] = {}

    def load(self) -> Load:
        """What a watchdog looks at. A worker that is not heard any more grows older, also without requests."""
        now, ages, waiting = time.monotonic(), [], 0
        for worker in self._workers:
            oldest = [tally.oldest for tally in worker.figures.apps.values() if tally.oldest is not None]
            silent = now - worker.heard
            ages.append(max(oldest, default=0.0) + silent if oldest or silent > SILENT else None)
            waiting = max(waiting, worker.figures.waiting)
        youngest = None if None in ages else min((age for age in ages if age is not None), default=math.inf)
        return Load(self._workers.finished(), youngest, waiting)

    def describe(self, key: str, state: str) -> dict[str, Any]:
        """The fields for one app: the sums over its workers, and the workers, the oldest first."""
        workers, now = self._workers, time.monotonic()
        figures = metrics.metrics_of(self._readers, [worker.pid for worker in workers])
        sums = {
            name: sum(figure[name] or 0 for figure in figures.values()) for name in ("rss", "cpu", "threads", "fds")
        }
        # Between two workers, the last Hello is still true.
        latest = workers.latest
        return {
            "server": {} if latest is None else latest.server,
            "requests": _requests(workers.tally(key)),
            "process": {**sums, "cpu": round(sums["cpu"], 3)},
            "workers": [
                {
                    "pid": worker.pid,
                    "state": state,
                    "generation": worker.generation,
                    **_requests(worker.figures.apps.get(key, Tally())),
                    "rss": figures.get(worker.pid, {}).get("rss"),
                    "last_seen": round(now - worker.heard, 3),
                }
                for worker in sorted(workers, key=lambda worker: (worker.hello.loaded.at, worker.pid))
            ],
            "cwd": "" if latest is None else latest.cwd,
        }


def _requests(tally: Tally) -> dict[str, Any]:
    return requests_in_status(tally.in_flight, tally.oldest, tally.oldest_request, tally.total, tally.errors)
