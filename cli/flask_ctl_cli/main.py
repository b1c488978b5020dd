"""The program ``flask-ctl``."""

from __future__ import annotations

from typing import NoReturn

import click

from .group import ControlGroup

COMMANDS = ("call", "help", "keygen", "ping", "reload", "run", "status", "stop")

cli = click.version_option(package_name="flask-ctl", prog_name="flask-ctl")(
    ControlGroup(
        "flask-ctl",
        builtin=COMMANDS,
        help="Stop, reload, inspect and call a Flask app that runs in another process.",
        epilog="Without --socket: FLASK_CTL_SOCKET, else the only instance that runs in this directory or below it.",
    )
)


def main() -> NoReturn:
    """Run the command line, and exit with one of the EXIT_CODES."""
    cli.main(prog_name="flask-ctl")
