"""``flask-ctl drain``."""

from __future__ import annotations

import click

from ..many import change
from ..settings import ClientCommand


@click.command(
    cls=ClientCommand,
    role="operate",
    impact="medium",
    impact_note="load balancers take the server out of service",
    examples=["flask-ctl drain --wait --timeout 30", "flask-ctl drain --checks 3 && flask-ctl stop"],
)
@click.option("--wait", is_flag=True, help="Return when no request is in flight.")
@click.option(
    "--checks",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="As --wait, and when N health checks have failed, so that the load balancer knows.",
)
def drain(wait: bool, checks: int) -> None:
    """Have health checks fail, so that load balancers send no more requests.

    The view control.health answers 503 from now on; requests are still served. It holds for workers to come and over
    reloads, until `flask-ctl resume`, or the end of the server.

    It waits for 60 seconds, or as long as --timeout says; if that passes, the drain goes on.

    Exit codes: 0 health checks fail, and the app's on_drain functions have run, with --wait also no request is in
    flight, 1 it failed, or a stop is under way, 2 wrong usage, 3 nothing is running, 4 a worker has not confirmed it,
    requests are in flight, or the server does not answer in time, 5 permission denied, 6 an on_drain function failed, 8
    the server does not speak this protocol.
    """
    change("drain", lambda client: client.drain(wait=wait, checks=checks))
