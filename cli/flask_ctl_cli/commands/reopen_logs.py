"""``flask-ctl reopen-logs``."""

from __future__ import annotations

import click

from ..many import change
from ..settings import ClientCommand


@click.command("reopen-logs", cls=ClientCommand, role="operate", examples=["flask-ctl reopen-logs --quiet"])
def reopen_logs() -> None:
    """Open the log files anew, in all workers, as after logrotate has moved them.

    Every handler of the logging package that writes to a file opens it again by its name. A master's own handlers are
    not among them: gunicorn opens its files anew at the signal USR1.

    Exit codes: 0 all are open anew, 1 it was refused, 2 wrong usage, 3 nothing is running, 4 a worker has not confirmed
    it in time, or the server does not answer, 5 permission denied, 6 a file can't be opened: the old one stays open, 8
    the server does not speak this protocol.
    """
    change("reopen_logs", lambda client: client.reopen_logs())
