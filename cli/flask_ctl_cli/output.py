"""Results on stdout, errors on stderr, and the exit code of each error."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import click

from flask_ctl import (
    AccessDenied,
    AmbiguousTarget,
    ConfigurationError,
    ControlError,
    LocalProtocolError,
    NotRunning,
    ReloadFailed,
    RemoteProtocolError,
    ServerDied,
    TimedOut,
    WrongScheme,
)


class _Interrupted(ControlError):
    """Ctrl-C; the exit code is 128 plus SIGINT, as in a shell."""


_EXITS: list[tuple[type[ControlError], int, str]] = [
    (_Interrupted, 130, ""),
    (ConfigurationError, 2, ""),
    (LocalProtocolError, 2, ""),
    (AmbiguousTarget, 2, ""),
    (NotRunning, 3, "Start it, or give its address by --socket; `flask --app … ctl` takes the address from the app."),
    (TimedOut, 4, ""),
    (AccessDenied, 5, ""),
    (ReloadFailed, 7, "The old code still serves."),
    (ServerDied, 6, "The app's log may have the reason."),
    (WrongScheme, 8, ""),
    (
        RemoteProtocolError,
        8,
        "Compare the address with what `flask --app … ctl status` shows, and the versions of flask-ctl.",
    ),
    (ControlError, 1, ""),
]
"""Exit code and advice of the first class that fits; "" where the message has the advice. For TimedOut see `hints`."""

Hint = Callable[[TimedOut], str]
"""Gives the advice after a time-out; "" if there is none."""


@contextlib.contextmanager
def report_errors(*, as_json: bool, hint: Hint = lambda error: "") -> Iterator[None]:
    """Turn an exception in the block into a message and an exit code; click prints its own errors, except as JSON."""
    try:
        yield
    except ControlError as error:
        _report(error, as_json, hint)
    except click.ClickException as error:
        if not as_json:
            raise
        _print_document(error.exit_code, None, error.format_message(), None)
        raise click.exceptions.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _report(_Interrupted("interrupted; the server continues with the command"), as_json, hint)


def _report(error: ControlError, as_json: bool, hint: Hint) -> None:
    code, advice = next((code, text) for kind, code, text in _EXITS if isinstance(error, kind))
    if as_json:
        _print_document(code, error.code, error.message, error.data)
    else:
        traceback = error.data["traceback"] if isinstance(error, ReloadFailed) else ""
        advice = hint(error) if isinstance(error, TimedOut) else advice
        click.echo("\n".join(filter(None, [traceback.rstrip(), f"Error: {error.message}", advice])), err=True)
    raise click.exceptions.Exit(code)


def _print_document(exit: int, code: int | None, message: str, data: Any) -> None:
    print_json({"error": {"code": code, "message": message, "data": data}, "exit": exit})


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    write(json.dumps(value, indent=2) + "\n")


def write(text: str) -> None:
    """Write text on stdout; exit code 1 with a message if that is not possible, as on a full disk."""
    # The de facto standard of https://no-color.org; click itself leaves colours out where stdout is no terminal.
    try:
        click.echo(text, nl=False, color=False if os.environ.get("NO_COLOR") else None)
    except BrokenPipeError:
        # click ends quietly.
        raise
    except OSError as error:
        click.echo(f"Error: the result can't be written to stdout: {error.strerror}", err=True)
        raise click.exceptions.Exit(1) from None


def print_result(method: str, result: Any, *, as_json: bool) -> None:
    """Print a command's result, as JSON or as text. Raises RemoteProtocolError if the text can't be made of it."""
    if as_json:
        print_json(result)
    else:
        write(_coloured(_text(method, result)))


_COLOURS = {
    r"(?<=  )(running)(?=, pid )": "green",
    r"(?<=  )(starting|reloading|stopping)(?=, pid )": "yellow",
    r"\b(CUT|DIED|FAILED|LEFT (?:UNFINISHED|BEHIND))\b": "red",
}
"""The state in the first line of `status`, and what was lost, in capitals."""


def _coloured(text: str) -> str:
    for pattern, colour in _COLOURS.items():
        text = re.sub(pattern, click.style(r"\1", fg=colour, bold=True), text)
    return text


def _text(method: str, result: Any) -> str:
    from flask_ctl import render_result

    try:
        return render_result(method, result)
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"the answer to {method} lacks a field that every server sends: {error}") from None
