"""Results on stdout, errors on stderr, and the exit code of each error."""

from __future__ import annotations

import contextlib
import json
import sys
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
    printable,
)

from .terminal import coloured, columns, wants_colour


class _Interrupted(ControlError):
    """Ctrl-C; the exit code is 128 plus SIGINT, as in a shell."""


class NothingSelected(NotRunning):
    """No instance is as the options want it; the message says which options."""


_EXITS: list[tuple[type[ControlError], int, str]] = [
    (_Interrupted, 130, ""),
    (ConfigurationError, 2, ""),
    (LocalProtocolError, 2, ""),
    (AmbiguousTarget, 2, ""),
    (NothingSelected, 3, "flask-ctl fleet ls lists the instances."),
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


def exit_code_of(error: ControlError) -> int:
    """The exit code of a command that has failed so."""
    return next(code for kind, code, _ in _EXITS if isinstance(error, kind))


def _report(error: ControlError, as_json: bool, hint: Hint) -> None:
    code, advice = next((code, text) for kind, code, text in _EXITS if isinstance(error, kind))
    if as_json:
        _print_document(code, error.code, error.message, error.data)
    else:
        traceback = traceback_of(error) if isinstance(error, ReloadFailed) else ""
        advice = hint(error) if isinstance(error, TimedOut) else advice
        told = [traceback.rstrip(), f"Error: {printable(error.message)}", advice]
        click.echo("\n".join(filter(None, told)), err=True)
    raise click.exceptions.Exit(code)


def traceback_of(error: ReloadFailed) -> str:
    """What the new code has written, without the frames of others."""
    from .frames import without_foreign_frames

    return printable(without_foreign_frames(error.data["traceback"], error.data.get("directory", "")))


def _print_document(exit: int, code: int | None, message: str, data: Any) -> None:
    print_json({"error": {"code": code, "message": message, "data": data}, "exit": exit})


def confirm(name: str, description: dict[str, Any], *, yes: bool) -> None:
    """Ask on a terminal whether a command of high impact is meant; exit code 1 if not. A script is not asked."""
    if description.get("impact") == "high" and not yes and sys.stdin.isatty() and sys.stderr.isatty():
        note = description.get("impact_note")
        question = f"{name} has a high impact{f': {note}' if note else ''}. Go on?"
        click.confirm(printable(question, keep=""), abort=True, err=True)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    write(json.dumps(value, indent=2) + "\n")


def write(text: str, *, control: bool = False) -> None:
    """Write text on stdout; exit code 1 with a message if that is not possible, as on a full disk.

    A `control` sequence of the terminal is written even where no colours are wanted.
    """
    try:
        click.echo(text, nl=False, color=True if control else wants_colour())
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
        write(result_text(method, result))


def print_found(method: str, result: Any, *, as_json: bool) -> None:
    """As `print_result`, for what the processes of a server have; exit code 4 if all that there is is silence."""
    print_result(method, result, as_json=as_json)
    if code := found_code(method, result):
        raise click.exceptions.Exit(code)


def found_code(method: str, result: Any) -> int:
    """The exit code for what the processes of a server have: 4 if all that there is is silence."""
    return 4 if result.get("unanswered") and not (result[method] or result.get("left_out")) else 0


def print_change(method: str, result: Any, *, as_json: bool, quiet: bool) -> None:
    """As `print_result`, for what each process was to do; exit code 4 if one has not confirmed it, 6 if a part failed.

    If all is done, `quiet` prints only JSON.
    """
    incomplete = change_code(result)
    if as_json or incomplete or not quiet:
        print_result(method, result, as_json=as_json)
    if incomplete:
        raise click.exceptions.Exit(incomplete)


def change_code(result: Any) -> int:
    """The exit code for what each process was to do."""
    return 4 if result["unanswered"] else 6 if result.get("hooks_failed") or result.get("failed") else 0


def result_text(method: str, result: Any) -> str:
    """The text for a result, on a terminal as wide as that. Raises RemoteProtocolError if it lacks a field."""
    width = columns(sys.stdout)
    try:
        if width is None:
            from flask_ctl import render_result

            text = render_result(method, result)
        else:
            from datetime import datetime, timezone

            from flask_ctl import render_for_terminal

            text = render_for_terminal(method, result, width, datetime.now(timezone.utc))
            # A file gets a text of the app's own commands as it is.
            text = printable(text, keep="\n\t")
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"the answer to {method} lacks a field that every server sends: {error}") from None
    return coloured(text) if method in ("describe", "status", "stop", "reload") else text
