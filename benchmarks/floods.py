"""What an owner at a Unix socket feels of others who flood the plain TCP socket, and what they cost in memory."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import statistics
import time
from collections.abc import Sequence

import psutil

from benchmarks.measuring import Row, elapsed, verdict
from benchmarks.running import PROGRAMS, Program, scratch_directory
from flask_ctl import ControlClient

CONNECTIONS = 100
ROUNDS = 10
SETTLING = 0.5
"""Seconds."""

SLOWER_TARGET = 3.0
GROWTH_TARGET = 5.0
"""MiB."""

FLOODS = {
    "notifications": {"jsonrpc": "2.0", "method": "ping"},
    "requests, answers unread": {"jsonrpc": "2.0", "method": "status", "id": 1},
}


def floods(quick: bool) -> list[Row]:
    """`ping` over a Unix socket, with and without a flood by 100 connections over plain TCP."""
    return [row for kind, message in FLOODS.items() for row in _flood(kind, json.dumps(message), quick)]


def _flood(kind: str, message: str, quick: bool) -> list[Row]:
    calls = 300 if quick else 2000
    quiet: list[float] = []
    flooded: list[float] = []
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        port = _free_port()
        addresses = [str(scratch / "app"), f"tcp://127.0.0.1:{port}"]
        server = stack.enter_context(Program(PROGRAMS, "flooded", *addresses, log=scratch / "app.log"))
        client = stack.enter_context(ControlClient(addresses[0], timeout=30))
        server.wait_until(client.ping)
        client.status()
        for _ in range(calls):
            client.ping()
        before = psutil.Process(server.pid).memory_info().rss
        flooder = stack.enter_context(
            Program(PROGRAMS, "flood", str(port), str(CONNECTIONS), message, log=pathlib.Path(scratch / "flood.log"))
        )
        flooder.wait_until_ready()
        flooding = psutil.Process(flooder.pid)
        for _ in range(ROUNDS):
            # What goes on beside on this machine touches both alike.
            flooding.suspend()
            time.sleep(SETTLING)
            quiet += [elapsed(client.ping) for _ in range(calls // ROUNDS)]
            flooding.resume()
            # At first it has the turns that a burst is allowed.
            time.sleep(SETTLING)
            flooded += [elapsed(client.ping) for _ in range(calls // ROUNDS)]
        growth = (psutil.Process(server.pid).memory_info().rss - before) / 2**20
    ours, theirs = _p95(flooded), _p95(quiet)
    what = f"flood of {kind}"
    return [
        Row.compare(f"{what}: ping over Unix, 95 of 100", ours, "without", theirs, SLOWER_TARGET),
        Row(
            f"{what}: memory",
            f"+{growth:.1f} MiB",
            "before",
            f"{before / 2**20:.0f} MiB",
            target=f"≤ +{GROWTH_TARGET:g} MiB",
            reached=verdict(growth <= GROWTH_TARGET),
        ),
    ]


def _p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
