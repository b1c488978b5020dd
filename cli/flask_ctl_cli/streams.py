"""Streams on stdout: a line for each item, or a JSON document a line, until Ctrl-C or the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click

from .many import for_each
from .output import write
from .settings import settings

_ENDS = {"complete": 0, "cancelled": 0, "the server has ended": 3}
"""Exit codes."""

Note = Callable[[dict[str, Any]], str]
"""Makes a remark for stderr of what the server tells about a stream; "" for none."""


def print_stream(name: str, wanted: dict[str, Any], *, note: Note = lambda about: "") -> None:
    """Print what a command streams, until its end or Ctrl-C.

    Exit code 3 when the server has ended, 1 if the stream has failed or was too slow.
    """
    from flask_ctl import render_message

    given = {key: value for key, value in wanted.items() if value not in (None, "")}
    if settings().selects_many and not given["follow"]:
        for_each(name, lambda client: list(client.follow(name, **given)), code=_code, text=partial(_text, name))
    with settings().client() as client, _ended_by_ctrl_c():
        for message in client.follow(name, **given):
            if settings().json:
                write(json.dumps(message) + "\n")
            elif "about" in message:
                if remark := note(message["about"]):
                    settings().say(remark)
            elif "end" not in message:
                write(f"{render_message(name, message)}\n")
            elif message["end"] not in _ENDS:
                click.echo(f"Error: {message['end']}", err=True)
            elif message["end"] != "complete":
                settings().say(f"— {message['end']} —")
            if "end" in message:
                raise click.exceptions.Exit(_ENDS.get(message["end"], 1))


def _code(messages: list[dict[str, Any]]) -> int:
    return _ENDS.get(messages[-1].get("end", ""), 1) if messages else 1


def _text(name: str, messages: list[dict[str, Any]]) -> str:
    from flask_ctl import render_message

    shown = [render_message(name, message) for message in messages if "about" not in message and "end" not in message]
    end = messages[-1].get("end") if messages else "no answer"
    return "\n".join([*shown, *([] if end == "complete" else [f"— {end} —"])])


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if settings().json:
            write(json.dumps({"end": "interrupted"}) + "\n")
