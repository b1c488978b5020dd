"""What `status` takes where a hub speaks for many workers."""

from __future__ import annotations

import statistics
import time

from benchmarks.measuring import Figure, duration, elapsed
from benchmarks.running import gunicorn_server, scratch_directory, workers_of
from flask_ctl import ControlClient

WORKERS = 64
GOAL = 0.010
"""Seconds."""

PAUSE = 1.1
"""Seconds after which the hub reads the figures of each process again."""


def status(rounds: int) -> list[Figure]:
    """`status` of gunicorn with many workers: after a pause, and of an answer given just before."""
    with scratch_directory() as scratch:
        address = str(scratch / "app.sock")
        server = gunicorn_server(scratch, f"controlled_app({address!r})", WORKERS, "--preload")
        with server, ControlClient(address, timeout=30) as client:
            server.wait_until(lambda: workers_of(client, WORKERS))
            samples = []
            for _ in range(rounds):
                time.sleep(PAUSE)
                first = elapsed(client.status)
                cached = elapsed(client.status)
                time.sleep(PAUSE)
                samples.append((first, cached, elapsed(client.status)))
    ours, cached, _ = (statistics.median(column) for column in zip(*samples))
    return [
        Figure(
            f"hub `status` of {WORKERS} workers",
            duration(ours),
            "asked again at once",
            duration(cached),
            duration(ours),
            f"{statistics.median(c / a for a, _, c in samples):.2f} ×",
            f"≤ {duration(GOAL)}",
            ours <= GOAL,
            "each worker is asked for its counts of this moment, which wakes as many processes, and /proc for its"
            " memory, CPU, threads and descriptors, at most once a second.",
        )
    ]
