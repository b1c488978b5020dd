"""``flask-ctl events``."""

from __future__ import annotations

from typing import Any

import click

from ..settings import ClientCommand
from ..streams import EVENTS_OPTIONS, add_options, print_stream


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=["flask-ctl events --since 1d", "flask-ctl events --follow --lines 0 --json"],
)
@add_options(EVENTS_OPTIONS)
def events(**wanted: Any) -> None:
    """Show what has happened: starts, stops, reloads, workers, commands, slow requests, exceptions.

    Stacks and texts need the role inspect.
    """
    print_stream("events", wanted)
