"""Streams on stdout: a line for each item, or a JSON document a line, until Ctrl-C or the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import click

from .many import for_each
from .output import write
from .settings import settings

ENDS = {"complete": 0, "cancelled": 0, "the server has ended": 3}
"""Exit codes."""

Note = Callable[[dict[str, Any]], str]
"""Makes a remark for stderr of what the server tells about a stream; "" for none."""


LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

_PAST = [
    click.option("--follow", "-f", is_flag=True, help="Go on with those to come, until Ctrl-C or the end."),
    click.option(
        "--lines",
        "-n",
        type=click.IntRange(min=0),
        default=100,
        show_default=True,
        help="Of the past of each instance.",
    ),
    click.option(
        "--since", metavar="TIME", default="", help="Not older than 90s, 10m, 2h, 1d, or than a time (RFC 3339)."
    ),
]
_WORKER = click.option("--worker", type=click.IntRange(min=1), metavar="PID", help="Only of this worker.")

EVENTS_OPTIONS = [*_PAST, _WORKER]
LOGS_OPTIONS = [
    *_PAST,
    click.option(
        "--level", type=click.Choice(LEVELS, case_sensitive=False), default=None, help="Of this level or above."
    ),
    click.option("--logger", metavar="NAME", default="", help="Of this logger, or below it."),
    click.option("--request", metavar="ID", default="", help="Of the request with this X-Request-ID."),
    click.option("--grep", metavar="TEXT", default="", help="With this text in the message or the traceback."),
    _WORKER,
]


def add_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for a command, which gets these options in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def print_stream(name: str, wanted: dict[str, Any], *, note: Note = lambda about: "") -> None:
    """Print what a command streams, until its end or Ctrl-C.

    Exit code 3 when the server has ended, 1 if the stream has failed or was too slow.
    """
    from flask_ctl import printable, render_message

    given = {key: value for key, value in wanted.items() if value not in (None, "")}
    if settings().selects_many and not given["follow"]:
        for_each(name, lambda client: list(client.follow(name, **given)), code=_code, text=partial(_text, name))
    with settings().client() as client, ended_by_ctrl_c():
        for message in client.follow(name, **given):
            if settings().json:
                write(json.dumps(message) + "\n")
            elif "about" in message:
                if remark := note(message["about"]):
                    settings().say(remark)
            elif "end" not in message:
                write(f"{render_message(name, message)}\n")
            elif message["end"] not in ENDS:
                click.echo(f"Error: {printable(str(message['end']))}", err=True)
            elif message["end"] != "complete":
                settings().say(f"— {message['end']} —")
            if "end" in message:
                raise click.exceptions.Exit(ENDS.get(message["end"], 1))


def _code(messages: list[dict[str, Any]]) -> int:
    return ENDS.get(messages[-1].get("end", ""), 1) if messages else 1


def _text(name: str, messages: list[dict[str, Any]]) -> str:
    from flask_ctl import render_message

    shown = [render_message(name, message) for message in messages if "about" not in message and "end" not in message]
    end = messages[-1].get("end") if messages else "no answer"
    return "\n".join([*shown, *([] if end == "complete" else [f"— {end} —"])])


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the block quietly."""
    try:
        yield
    except KeyboardInterrupt:
        if settings().json:
            write(json.dumps({"end": "interrupted"}) + "\n")
