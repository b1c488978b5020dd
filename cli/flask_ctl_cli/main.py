"""The program ``flask-ctl``."""

from __future__ import annotations

import os
from typing import NoReturn

import click

from .group import ControlGroup
from .settings import hosts_option
from .terminal import complete_streams

COMMANDS = (
    "call",
    "describe",
    "doctor",
    "drain",
    "events",
    "exceptions",
    "fleet",
    "help",
    "history",
    "keygen",
    "log-level",
    "logs",
    "ls",
    "metrics",
    "ping",
    "profile",
    "reload",
    "reopen-logs",
    "requests",
    "resume",
    "restart",
    "rollout",
    "routes",
    "run",
    "shell",
    "stacks",
    "status",
    "stop",
    "top",
    "wait",
    "workers",
)

cli = click.version_option(package_name="flask-ctl", prog_name="flask-ctl")(
    ControlGroup(
        "flask-ctl",
        builtin=COMMANDS,
        params=[hosts_option()],
        help="Stop, reload, inspect and call a Flask app that runs in another process.",
        epilog="Without --socket: FLASK_CTL_SOCKET, else the only instance that runs in this directory or below it.",
    )
)


def main() -> NoReturn:
    """Run the command line, and exit with one of the EXIT_CODES."""
    complete_streams()
    if instruction := os.environ.get("_FLASK_CTL_COMPLETE"):
        from .completion import begin

        begin(instruction)
    cli.main(prog_name="flask-ctl")
