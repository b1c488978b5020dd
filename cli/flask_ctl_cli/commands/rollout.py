"""``flask-ctl rollout``."""

from __future__ import annotations

import click

from ..rollout.place import LocalPlace
from ..rollout.show import show_or_resume
from ..settings import ClientCommand


@click.command(
    cls=ClientCommand,
    examples=["flask-ctl rollout status", "flask-ctl rollout resume 20261130-1712", "flask-ctl rollout history"],
)
@click.argument("action", type=click.Choice(["status", "resume", "history"]))
@click.argument("id", required=False)
def rollout(action: str, id: str | None) -> None:
    r"""Show what rollouts have done, or go on with one.

    A rollout is begun by reload, restart or stop with --rolling. Its record says what has become of each instance, and
    what serves there. ID is that of the record, or its beginning; without it the last one is meant.

    status: that record. history: all that are kept, the last 100. resume: ask the instances where nothing is done.
    Where the outcome is not known, it looks what serves there. --max-failures counts from then on.

    \b
    done         the command is done, and the instance is well
    refused      nothing was done: the new code was refused, requests did not end in time, or permission is denied
    cut          done, but requests were cut, or hooks or threads were left unfinished
    failed       the new code serves, but fails, or the process has ended
    unknown      it was asked, and has not answered
    unreachable  it could not be asked
    not started  it was not asked

    Exit codes: 0 done, 2 wrong usage, or there is no such record. resume has those of the command that it goes on
    with: the gravest of all instances, and 1 if one is unknown, unreachable or not started.
    """
    show_or_resume(action, id, LocalPlace())
