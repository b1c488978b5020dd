"""``flask-ctl status``."""

from __future__ import annotations

import click

from ..output import print_result
from ..settings import ClientCommand, settings


@click.command(cls=ClientCommand, examples=["flask-ctl status", "flask-ctl status --json --socket /tmp/shop.sock"])
def status() -> None:
    """Show the server's state, requests, workers and last reload."""
    with settings().client() as client:
        print_result("status", client.status(), as_json=settings().json)
