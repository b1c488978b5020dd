"""Figures of this process, at most a second old."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

MAX_AGE = 1.0
"""Seconds for which figures are good: reading them costs some twenty system calls."""


class ProcessFigures:
    """Memory, CPU, threads and descriptors of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures: dict[str, Any] = {}
        self._read_at = 0.0
        self._cpu_then = 0.0

    def read(self) -> dict[str, Any]:
        """``rss`` in bytes, ``cpu`` in cores since the reading before, ``threads``, ``fds`` (None if unknown)."""
        with self._lock:
            now = time.monotonic()
            if not self._figures or now - self._read_at >= MAX_AGE:
                self._figures = self._measure(now)
                self._read_at = now
            return self._figures

    def _measure(self, now: float) -> dict[str, Any]:
        import psutil

        process = psutil.Process(os.getpid())
        cpu = time.process_time()
        since = now - self._read_at if self._figures else time.time() - process.create_time()
        cores = (cpu - self._cpu_then) / max(since, 0.001)
        self._cpu_then = cpu
        with process.oneshot():
            return {
                "rss": process.memory_info().rss,
                "cpu": round(max(0.0, cores), 3),
                "threads": process.num_threads(),
                "fds": process.num_fds() if hasattr(process, "num_fds") else None,
            }
