"""What an owner at a Unix socket feels of others who flood the plain TCP socket, and what they cost in memory."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Sequence

import psutil

from benchmarks.measuring import Comparison, Figure, elapsed
from benchmarks.running import PROGRAMS, Program, controlled, free_port, scratch_directory

CONNECTIONS = 100
ROUNDS = 10
SETTLING = 0.5
"""Seconds."""

SLOWER_GOAL = 3.0
GROWTH_GOAL = 5.0
"""MiB."""

FLOODS = {
    "notifications": {"jsonrpc": "2.0", "method": "ping"},
    "requests, answers unread": {"jsonrpc": "2.0", "method": "status", "id": 1},
}


def floods(calls: int) -> list[Figure]:
    """`ping` over a Unix socket, with and without a flood by 100 connections over plain TCP."""
    return [figure for kind, message in FLOODS.items() for figure in _flood(kind, json.dumps(message), calls)]


def _flood(kind: str, message: str, calls: int) -> list[Figure]:
    rounds: list[tuple[float, float, float]] = []
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        port = str(free_port())
        client, server = controlled(stack, scratch, None, f"tcp://127.0.0.1:{port}")
        client.status()
        for _ in range(10 * calls):
            client.ping()
        before = psutil.Process(server.pid).memory_info().rss
        flooder = stack.enter_context(
            Program(PROGRAMS, "flood", port, str(CONNECTIONS), message, log=scratch / "flood.log")
        )
        flooder.wait_until_ready()
        flooding = psutil.Process(flooder.pid)
        for _ in range(ROUNDS):
            # What goes on beside on this machine touches both alike.
            flooding.suspend()
            time.sleep(SETTLING)
            quiet, again = (_p95([elapsed(client.ping) for _ in range(calls)]) for _ in range(2))
            flooding.resume()
            # At first it has the turns that a burst is allowed.
            time.sleep(SETTLING)
            rounds.append((_p95([elapsed(client.ping) for _ in range(calls)]), quiet, again))
        growth = (psutil.Process(server.pid).memory_info().rss - before) / 2**20
    compared = Comparison.of(rounds)
    return [
        Figure.ratio(f"`ping` over Unix in a flood of {kind}, 95 of 100", "without it", compared, SLOWER_GOAL),
        Figure(
            f"memory (RSS) in a flood of {kind}",
            f"{before / 2**20 + growth:.1f} MiB",
            "before it",
            f"{before / 2**20:.1f} MiB",
            f"+{growth:.1f} MiB",
            "–",
            f"≤ +{GROWTH_GOAL:g} MiB",
            growth <= GROWTH_GOAL,
            "100 idle connections take 3.7 MiB in libzmq itself, two pipe chunks of 16 KiB each.",
        ),
    ]


def _p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]
