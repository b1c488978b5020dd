"""``flask-ctl shell``."""

from __future__ import annotations

import sys

import click

from ..settings import ClientCommand, Session, settings


@click.command(
    cls=ClientCommand, examples=["flask-ctl shell", "flask-ctl shell --socket /run/shop/ctl.sock < commands"]
)
def shell() -> None:
    """Read commands and run them, on one connection.

    Each line is a command with its options, as behind flask-ctl. On a terminal there is a prompt with completion and a
    history, for which the extra "cli" is needed (pip install 'flask-ctl[cli]'); values that look like secrets are not
    kept. The prompt shows the exit code of the last command unless it is 0. A line that begins with # is a comment;
    exit, quit, or the end of the input end the shell, with the exit code of the last command.
    """
    from ..prompt import lines_of
    from ..session import KeptClient, run_all

    if Session.current is not None:
        raise click.UsageError("this is the shell already")
    given = settings()
    # The narrower rule of the search: what is found now is also stopped by a stop.
    with given.client(operate=True) as client:
        status = client.status()
        given.socket = client.endpoint
    kept = KeptClient.of(given)
    try:
        Session(given, kept).begin()
        code = run_all(lines_of(sys.stdin, str(status["app"])))
    finally:
        Session.current = None
        kept.close()
    raise click.exceptions.Exit(code)
