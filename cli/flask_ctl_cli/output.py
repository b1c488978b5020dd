"""What goes to stdout and stderr, and the exit codes."""

from __future__ import annotations

import json
from typing import Any

import click

from flask_ctl import (
    AccessDenied,
    AmbiguousTarget,
    ConfigurationError,
    ControlError,
    LocalProtocolError,
    NotRunning,
    RemoteProtocolError,
    ServerDied,
    TimedOut,
    render_result,
)

EXIT_CODES: list[tuple[type[ControlError], int]] = [
    (ConfigurationError, 2),
    (LocalProtocolError, 2),
    (AmbiguousTarget, 2),
    (NotRunning, 3),
    (TimedOut, 4),
    (AccessDenied, 5),
    (ServerDied, 6),
    (RemoteProtocolError, 8),
    (ControlError, 1),
]
"""The first class that fits gives the code; 1 is the server's refusal."""

OUTCOME_CODES = {"drained": 0, "forced": 6, "killed": 6, "died": 6}
"""By the outcome of a stop."""


def exit_code(error: ControlError) -> int:
    """The exit code for an error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def print_result(method: str, result: Any, *, as_json: bool) -> None:
    """A command's result, for a program or for a person."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(render_result(method, result), nl=False)


def print_error(message: str, *, exit_code: int, as_json: bool, code: int | None = None, data: Any = None) -> None:
    """An error, as one JSON document on stdout or as text on stderr."""
    if as_json:
        document = {"error": {"code": code, "message": message, "data": data}, "exit": exit_code}
        click.echo(json.dumps(document, indent=2, default=str))
    else:
        click.echo(f"Error: {message}", err=True)
