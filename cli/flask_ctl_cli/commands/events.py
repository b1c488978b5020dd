"""``flask-ctl events``."""

from __future__ import annotations

from typing import Any

import click

from ..settings import ClientCommand
from ..streams import print_stream


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=["flask-ctl events --since 1d", "flask-ctl events --follow --lines 0 --json"],
)
@click.option("--follow", "-f", is_flag=True, help="Go on with the events to come, until Ctrl-C or the end.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=100, show_default=True, help="Of the past.")
@click.option("--since", metavar="TIME", default="", help="Not older than 90s, 10m, 2h, 1d, or than a time (RFC 3339).")
@click.option("--worker", type=click.IntRange(min=1), metavar="PID", help="Only of this worker.")
def events(**wanted: Any) -> None:
    """Show what has happened: starts, stops, reloads, workers, commands, slow requests, exceptions.

    Stacks and texts need the role inspect.
    """
    print_stream("events", wanted)
