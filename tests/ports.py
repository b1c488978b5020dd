"""TCP ports for servers of the tests that need a number beforehand."""

from __future__ import annotations

import contextlib
import os
import random
import socket

WIDTH = 500
"""Ports of each worker of xdist: two that look at the same moment never find the same one."""


def free_port() -> int:
    """A port that was free a moment ago, and that the kernel gives to nobody by itself (ip(7), local ports)."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20000 + worker % 20 * WIDTH
    while True:
        port = random.randrange(first, first + WIDTH)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def free_ports(count: int) -> list[int]:
    """So many of them."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)
