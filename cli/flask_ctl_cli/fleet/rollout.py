"""``flask-ctl fleet rollout``."""

from __future__ import annotations

import click

from ..rollout.member import QUESTION_TIMEOUT
from ..rollout.show import show_or_resume
from ..settings import settings
from .options import FleetCommand
from .rolling import FleetPlace
from .selection import opened, selecting_options


@click.command(
    cls=FleetCommand,
    examples=["flask-ctl fleet rollout status", "flask-ctl fleet rollout resume 20261130-1712"],
)
@click.argument("action", type=click.Choice(["status", "resume", "history"]))
@click.argument("id", required=False)
def rollout(action: str, id: str | None) -> None:
    """Show what rollouts over NATS have done, or go on with one.

    A rollout is begun by `flask-ctl fleet reload` or `stop` with --rolling. Its record is at the NATS servers, so any
    operator may go on with one whose operator was killed: 30 seconds after that the lease is free. ID, the actions and
    the outcomes are those of `flask-ctl help rollout`.

    Exit codes: 0 done, 1 no server can be reached, 2 wrong usage, there is no such record, or another operator is at
    work, 5 permission denied. resume has those of the command that it goes on with: the gravest of all instances, and 1
    if one is unknown, unreachable or not started.
    """
    given = settings()
    if selecting_options(given) or given.selected_all:
        raise click.UsageError("a rollout has its instances in its record: give its ID, and no options that select")
    with opened() as fleet:
        show_or_resume(action, id, FleetPlace(fleet, QUESTION_TIMEOUT))
