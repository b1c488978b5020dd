"""What the hub answers to `status`: its workers added up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ...lifecycle.controller import requests_in_status
from ..messages import Hello, Tally
from .table import Worker

Figures = Mapping[int, Mapping[str, Any]]
"""Process figures by pid."""


def directory_of(hello: Hello | None) -> str:
    """Where the code of a worker was loaded, resolved; an older version tells only its working directory."""
    if hello is None:
        return ""
    return hello.cwd if hello.directory is None else hello.directory.real


def requests_of(tally: Tally) -> dict[str, Any]:
    """The `requests` of `status`."""
    return requests_in_status(tally.in_flight, tally.oldest, tally.total, tally.errors)


def process_of(figures: Figures) -> dict[str, Any]:
    """The `process` of `status`: the sum over the workers."""
    names = ("rss", "cpu", "threads", "fds")
    sums = {name: sum(figure[name] or 0 for figure in figures.values()) for name in names}
    return {**sums, "cpu": round(sums["cpu"], 3)}


def each_of(workers: Iterable[Worker], key: str, figures: Figures, state: str) -> list[dict[str, Any]]:
    """The `workers` of `status`, the oldest first; `last_seen` is in seconds."""
    now = time.monotonic()
    return [
        {
            "pid": worker.pid,
            "state": state,
            "generation": worker.generation,
            **requests_of(worker.figures.apps.get(key, Tally())),
            "rss": figures.get(worker.pid, {}).get("rss"),
            "last_seen": round(now - worker.heard, 3),
        }
        for worker in sorted(workers, key=lambda worker: (worker.hello.loaded.at, worker.pid))
    ]
