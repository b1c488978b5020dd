"""Memory, CPU, threads and descriptors of processes, at most a second old."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .native import threading
from .reserve import reserve

if TYPE_CHECKING:
    import psutil

MAX_AGE = 1.0
"""Seconds for which the values are cached: reading them takes about twenty system calls."""


def prepare() -> None:
    """Import psutil early: later there may be no descriptor left for it."""
    import psutil  # noqa: F401


class ProcessMetrics:
    """Memory, CPU, threads and descriptors of this process, or of another one of the same user."""

    def __init__(self, pid: int | None = None) -> None:
        # Now: later descriptors may be used up, or the package deleted.
        prepare()
        self._pid = pid
        self._process: psutil.Process | None = None
        self._lock = threading.Lock()
        self._figures: dict[str, Any] = {}
        self._read_at = 0.0
        self._cpu_then = 0.0

    def read(self) -> dict[str, Any]:
        """``rss`` in bytes, ``cpu`` in cores since the reading before, ``threads``, ``fds`` (None if unknown)."""
        with self._lock:
            now = time.monotonic()
            if not self._figures or now - self._read_at >= MAX_AGE:
                self._figures = reserve.retry(lambda: self._measure(now))
                self._read_at = now
            return self._figures

    def _measure(self, now: float) -> dict[str, Any]:
        import psutil

        if self._process is None:
            self._process = psutil.Process(self._pid)
        process = self._process
        with process.oneshot():
            cpu = time.process_time() if self._pid is None else sum(process.cpu_times()[:2])
            since = now - self._read_at if self._figures else time.time() - process.create_time()
            cores = (cpu - self._cpu_then) / max(since, 0.001)
            figures = {
                "rss": process.memory_info().rss,
                "cpu": round(max(0.0, cores), 3),
                "threads": process.num_threads(),
                "fds": process.num_fds() if hasattr(process, "num_fds") else None,
            }
        self._cpu_then = cpu
        return figures


def metrics_of(readers: dict[int, ProcessMetrics], pids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The metrics of the processes that still run, by pid; `readers` keeps the state between calls."""
    import psutil

    figures = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if pid not in readers:
                readers[pid] = ProcessMetrics(pid)
            figures[pid] = readers[pid].read()
    for pid in set(readers) - set(figures):
        del readers[pid]
    return figures


def age_of(pid: int) -> float:
    """Seconds since the start of a process, 0 if unknown."""
    import psutil

    try:
        return max(0.0, time.time() - psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0
