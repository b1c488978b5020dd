"""``flask-ctl status``."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import click

from ..output import print_result, write
from ..settings import ClientCommand, Seconds, settings

LEAST_INTERVAL = 0.1
"""Seconds between two questions of `status --watch`."""


@click.command(
    cls=ClientCommand,
    examples=["flask-ctl status", "flask-ctl status --watch 2", "flask-ctl status --json --socket /tmp/shop.sock"],
)
@click.option(
    "--watch",
    type=Seconds(),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Show it again every so many seconds (1), until Ctrl-C or the end of the server; with --json a line each.",
)
def status(watch: float | None) -> None:
    """Show the server's state, requests, workers and last reload.

    With --watch: exit code 3 when the server has ended.
    """
    with settings().client() as client:
        if watch is None:
            print_result("status", client.status(), as_json=settings().json)
            return
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                _show(client.status())
                time.sleep(max(watch, LEAST_INTERVAL))


def _show(status: dict[str, Any]) -> None:
    """One of many: in the same place on a terminal, below the one before in a file or a pipe."""
    if settings().json:
        write(json.dumps(status) + "\n")
    else:
        write("\033[H\033[J" if sys.stdout.isatty() else "")
        print_result("status", status, as_json=False)
        write("" if sys.stdout.isatty() else "\n")
