"""``flask-ctl history``."""

from __future__ import annotations

import click

from ..output import print_result
from ..settings import ClientCommand, settings


@click.command(cls=ClientCommand, role="observe", examples=["flask-ctl history", "flask-ctl history --json"])
def history() -> None:
    """Show the start of the instance and its last reloads, also those that have failed, and why.

    Each with the generation that served then, who asked for it, how long it took, and the directory and git commit of
    the code. The last one of 20 is at the end.
    """
    with settings().client() as client:
        print_result("history", client.history(), as_json=settings().json)
