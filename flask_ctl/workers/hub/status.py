"""What the hub answers to `status`: its workers added up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ...protocol import VERSION
from ..messages import AppRecord, Hello, Tally
from .table import Worker, Workers

Figures = Mapping[int, Mapping[str, Any]]
"""Process figures by pid."""


def of_server(workers: Workers, app: AppRecord, figures: Figures, state: str) -> dict[str, Any]:
    """What the workers tell of the server and of one app."""
    # At a moment without a worker, what the last one has told is still true.
    hello = workers.latest
    expected = 0 if hello is None else hello.wanted
    return {
        "protocol": VERSION,
        "pid": None,
        "parent": None,
        "app": app.name,
        "cwd": "" if hello is None else hello.cwd,
        "directory": directory_of(hello),
        "root_path": app.root_path,
        "state": state,
        "generation": None,
        "started_at": None,
        "reloaded_at": None,
        "uptime": None,
        "server": {} if hello is None else hello.server,
        "requests": _requests(workers.tally(app.key)),
        "process": _process(figures),
        "versions": app.versions,
        "workers": _each(workers, app.key, figures, state),
        "workers_expected": expected or len(workers),
    }


def directory_of(hello: Hello | None) -> str:
    """Where the code of a worker was loaded, resolved; one of an older version tells only where it works."""
    if hello is None:
        return ""
    return hello.cwd if hello.directory is None else hello.directory.real


def _requests(tally: Tally) -> dict[str, Any]:
    """The `requests` of `status`."""
    return {
        "in_flight": tally.in_flight,
        "oldest": None if tally.oldest is None else round(tally.oldest, 3),
        "total": tally.total,
        "errors": tally.errors,
    }


def _process(figures: Figures) -> dict[str, Any]:
    """The `process` of `status`: the sum over the workers."""
    names = ("rss", "cpu", "threads", "fds")
    sums = {name: sum(figure[name] or 0 for figure in figures.values()) for name in names}
    return {**sums, "cpu": round(sums["cpu"], 3)}


def _each(workers: Iterable[Worker], key: str, figures: Figures, state: str) -> list[dict[str, Any]]:
    """The `workers` of `status`, the oldest first; `last_seen` is in seconds."""
    now = time.monotonic()
    return [
        {
            "pid": worker.pid,
            "state": state,
            "generation": worker.generation,
            **_requests(worker.figures.apps.get(key, Tally())),
            "rss": figures.get(worker.pid, {}).get("rss"),
            "last_seen": round(now - worker.heard, 3),
        }
        for worker in sorted(workers, key=lambda worker: (worker.hello.loaded.at, worker.pid))
    ]
