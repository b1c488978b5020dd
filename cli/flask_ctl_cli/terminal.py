"""The terminal, if there is one: its width, and whether colours and movements of the cursor are wanted."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO, Any

import click

DEFAULT_WIDTH = 80
"""Columns, if the terminal does not tell its own number."""

_STYLES = {
    r"(?<=  )(running)(?=, pid )": "green",
    r"(?<=  )(starting|draining|reloading|stopping)(?=, pid )": "yellow",
    r"(\(\d+%\) HIGH)\b": "red",
    r"\b(CUT|DIED|FAILED|LEFT\s+(?:UNFINISHED|BEHIND))\b": "red",
}
"""Colours of the state in the first line of `status`, of limits that are nearly reached, and of what was lost."""


class _Lossy(io.FileIO):
    """An open descriptor; what can't be written to it is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def complete_streams() -> None:
    """Have /dev/null in the place of each standard stream that is closed: Python has None there.

    What is written to it is dropped, it is no terminal, and its descriptor becomes no socket's. What is told on a
    stderr that can't be written, as on a full disk, is dropped, too: it keeps no command from being done.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8", errors="replace")  # noqa: SIM115
            # Programs that are started here, such as ssh, need one, too.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    # Another object in its place may have no descriptor.
    with contextlib.suppress(OSError):
        told = io.BufferedWriter(_Lossy(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(told, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


def columns(stream: IO[Any]) -> int | None:
    """The width of the terminal that a stream writes to; None if it writes to a pipe or a file."""
    if not stream.isatty():
        return None
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"]) or DEFAULT_WIDTH
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def lines(stream: IO[Any]) -> int:
    """The height of the terminal that a stream writes to; 0 if it is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).lines
    except OSError:
        return 0


def can_move(stream: IO[Any]) -> bool:
    """Whether the cursor can be moved there, to write over what was written before."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def wants_colour() -> bool | None:
    """True and False as the user has said it, None for colours on a terminal only.

    The variables are those of https://no-color.org and https://bixense.com/clicolors.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    return False if os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb" else None


def coloured(text: str) -> str:
    """A result of our own commands with styles, which `click.echo` removes where they are not wanted."""
    import re

    for pattern, colour in _STYLES.items():
        text = re.sub(pattern, click.style(r"\1", fg=colour, bold=True), text)
    return text
