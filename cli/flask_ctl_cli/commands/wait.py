"""``flask-ctl wait``."""

from __future__ import annotations

import time
from typing import Any

import click

from flask_ctl import AmbiguousTarget, ControlClient, NotRunning

from ..output import print_result
from ..settings import ClientCommand, settings

TIMEOUT = 60.0
"""Seconds without --timeout."""

RETRY_INTERVAL = 0.05
"""Seconds between two searches for the instance of this directory."""


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=[
        "flask-ctl wait ready --timeout 10",
        "flask-ctl stop --no-wait && flask-ctl wait gone",
        "flask-ctl wait generation 3",
    ],
)
@click.argument("condition", type=click.Choice(["ready", "gone", "drained", "idle", "generation"]))
@click.argument("number", type=click.IntRange(min=1), required=False)
@click.option("--pid", type=click.IntRange(min=1), help="The instance is this process; another one is not waited for.")
def wait(condition: Any, number: int | None, pid: int | None) -> None:
    """Wait until the instance is ready, gone, drained, idle, or of generation NUMBER or later.

    ready: it serves; it may start meanwhile. gone: its process has ended; 0 also if nothing runs. idle: no request is
    in flight. drained: it was asked to drain, and is idle. But for ready, another instance that comes to the same
    address meanwhile, as one that a supervisor starts, is not the one that is waited for.

    It waits for 60 seconds, or as long as --timeout says.

    Exit codes: 0 it is so, 2 wrong usage, 3 nothing runs, or the instance has ended, 4 it runs, but is not so in time,
    5 permission denied, 8 the server does not speak this protocol.
    """
    if (condition == "generation") != (number is not None):
        raise click.UsageError("generation needs a number, and nothing else takes one: flask-ctl wait generation 3")
    began, timeout = time.monotonic(), TIMEOUT if settings().timeout is None else settings().timeout or 0.0
    try:
        with _client(began + (timeout if condition == "ready" else 0.0)) as client:
            left = max(0.0, began + timeout - time.monotonic())
            result = client.wait(condition, generation=number, pid=pid, timeout=left)
    except NotRunning:
        if condition != "gone":
            raise
        result = {"reached": "gone", "pid": pid, "proof": "absence", "elapsed": 0.0}
    if settings().json or not settings().quiet:
        print_result("wait", result, as_json=settings().json)


def _client(deadline: float) -> ControlClient:
    """A client of the selected instance. Without an address the search for it goes on until the deadline."""
    while True:
        try:
            return settings().client()
        except NotRunning:
            if time.monotonic() >= deadline:
                raise
        except AmbiguousTarget as error:
            if not error.none_matches:
                raise
            # Only apps of other directories run.
            if time.monotonic() >= deadline:
                raise NotRunning(error.message, error.data) from None
        time.sleep(RETRY_INTERVAL)
