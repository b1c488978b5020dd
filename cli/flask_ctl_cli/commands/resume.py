"""``flask-ctl resume``."""

from __future__ import annotations

import click

from ..many import change
from ..settings import ClientCommand


@click.command(cls=ClientCommand, role="operate", examples=["flask-ctl resume", "flask-ctl resume --json"])
def resume() -> None:
    """End a drain: have health checks pass again.

    Exit codes: 0 health checks pass, and the app's on_ready functions have run, 1 it failed, or a stop is under way, 2
    wrong usage, 3 nothing is running, 4 a worker has not confirmed it in time, or the server does not answer, 5
    permission denied, 6 an on_ready function failed, 8 the server does not speak this protocol.
    """
    change("resume", lambda client: client.resume())
