"""``flask-ctl fleet forget``."""

from __future__ import annotations

import click

from flask_ctl import printable

from ..output import print_json, write
from ..settings import settings
from .options import FleetCommand
from .selection import FleetTarget, last_seen, opened, selected


@click.command(
    cls=FleetCommand,
    examples=["flask-ctl fleet forget --name shop", "flask-ctl fleet forget --all"],
)
def forget() -> None:
    """Take lost instances from the list: those of the selected ones of which nothing was heard for 35 seconds.

    A rollout counts a lost instance as a failure. Forget those that do not come back, as after a kill or on a machine
    that is gone; one that does comes back to the list. Any other instance is left.

    Exit codes: 0 none of the selected ones is lost any more, 1 no server can be reached, 2 wrong usage, 3 nothing is
    selected, 5 permission denied.
    """
    with opened() as fleet:
        found, _ = selected(fleet, operate=True)
        # An instance that has renewed its presence meanwhile stays.
        forgotten = [FleetTarget(fleet, one) for one in found if one.lost and fleet.forget(one)]
    if settings().json:
        print_json([target.as_json() for target in forgotten])
    elif forgotten:
        for target in forgotten:
            write(f"{printable(target.name, keep='')}  forgotten, {last_seen(target.one)}\n")
    else:
        settings().say("no selected instance is lost")
