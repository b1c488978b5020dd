"""Results laid out for a terminal: wrapped lines, tables that fit, and times relative to now."""

from __future__ import annotations

import re
import textwrap
from datetime import datetime
from typing import Any

from .text import (
    Column,
    instance_columns,
    notes_on_requests,
    render_result,
    request_columns,
    seconds,
    seconds_since,
    size,
    status_rows,
    table,
)

MIN_WIDTH = 20
"""Columns: a narrower terminal wraps the lines by itself."""

MIN_PROSE = 24
"""Columns that a table leaves at least for the text in its last column."""

MIN_PATH = 24
"""Columns that a table leaves at least for the path of a request, where it has room for one."""

CLOCK_TOLERANCE = 5.0
"""Seconds by which the clocks of server and client may differ; beyond that, times are shown as the server sent them."""


def render_for_terminal(method: str, result: Any, width: int, now: datetime) -> str:
    """The text for a command's result on a terminal of `width` columns; `now` is the time, with its time zone.

    Lines break between words, and tables leave out their least important columns. A result of the app's own commands
    is not changed.
    """
    width = max(width, MIN_WIDTH)
    if method == "status":
        return _status(result, width, now)
    if method == "commands":
        return _commands(result, width)
    if method == "requests":
        return _requests(result, width)
    if method == "ls" and result:
        return table(_fitting(instance_columns(result), width))
    text = render_result(method, result)
    return _wrap(text, width, "", "  ") if method in ("ping", "stop", "reload", "drain", "resume") else text


def _status(status: dict[str, Any], width: int, now: datetime) -> str:
    rows = status_rows(status, now if _clocks_agree(status, now) else None)
    # The name of an app may be long; in that case its text begins on the next line.
    room = max(len(label) for label, _ in rows if len(label) <= max(width // 3, len("directory")))
    lines = []
    for label, text in rows:
        if len(label) > room:
            lines.append(_wrap(label, width, "", "  "))
            label = ""
        lines.append(_wrap(text, width, f"{label:<{room}}  ", " " * (room + 2)))
    if status.get("workers"):
        lines.append("\n" + _workers(status["workers"], width))
    return "".join(lines)


def _clocks_agree(status: dict[str, Any], now: datetime) -> bool:
    return bool(abs(seconds_since(status["started_at"], now) - status["uptime"]) <= CLOCK_TOLERANCE)


_AFTER_NUMBER = re.compile(r"(?<=\d) |(?<=\d [dh]) (?=\d)|(?<=\d min) (?=\d)")
"""Spaces at which no line breaks, as in 2 h 5 min."""


def _workers(workers: list[dict[str, Any]], width: int) -> str:
    def column(heading: str, rank: int, name: str, text: Any = str, *, is_number: bool = True) -> Column:
        cells = ["" if worker.get(name) is None else text(worker[name]) for worker in workers]
        return Column(heading, rank, cells, is_number)

    columns = [
        column("worker", 0, "pid"),
        column("state", 3, "state", is_number=False),
        column("in flight", 1, "in_flight"),
        column("oldest", 2, "oldest", seconds),
        column("errors", 4, "errors"),
        column("generation", 5, "generation"),
        column("requests", 6, "total"),
        column("memory", 7, "rss", size),
    ]
    return table(_fitting(columns, width))


def _requests(result: dict[str, Any], width: int) -> str:
    columns = {column.heading: column for column in request_columns(result["requests"])}
    path = columns.pop("path", None)
    # Age and route stand side by side on any terminal.
    rooms = {"route": max(width // 3, min(width - 20, MIN_PATH)), "id": 36, "thread": 24}
    shown = [_shortened(column, rooms.get(column.heading, width)) for column in columns.values()]
    if path is not None and width >= 3 * MIN_PATH:
        shown = _fitting(shown, width - MIN_PATH - 2)
        shown.append(_shortened(path, width - sum(column.width + 2 for column in shown)))
    notes = "".join(_wrap(note, width, "", "  ") for note in notes_on_requests(result).splitlines())
    return (table(_fitting(shown, width)) if shown else "") + notes


def _shortened(column: Column, room: int) -> Column:
    return column._replace(cells=[cell if len(cell) <= room else cell[: room - 1] + "…" for cell in column.cells])


def _commands(commands: dict[str, Any], width: int) -> str:
    columns = [Column("command", 0, list(commands), is_number=False)]
    columns += [
        Column(name, rank, [command[name] for command in commands.values()], is_number=False)
        for name, rank in (("role", 1), ("scope", 2))
    ]
    columns = _fitting(columns, width - MIN_PROSE - 2)
    lines = []
    for row, summary in enumerate(["summary", *(command["summary"] for command in commands.values())]):
        start = "  ".join(column.cell(row) for column in columns) + "  "
        if len(start) + MIN_PROSE > width:
            lines += [start.rstrip() + "\n", _wrap(summary, width, "  ", "  ") if summary else ""]
        else:
            lines.append(_wrap(summary, width, start, " " * len(start)))
    return "".join(lines) if commands else ""


def _fitting(columns: list[Column], width: int) -> list[Column]:
    """The columns without those that have no room; at least one."""
    while len(columns) > 1 and sum(column.width + 2 for column in columns) - 2 > width:
        columns = [column for column in columns if column.rank != max(column.rank for column in columns)]
    return columns


def _wrap(text: str, width: int, first: str, rest: str) -> str:
    """The text in lines of at most `width` columns, unless a word is longer; a number stays with its unit."""
    filled = textwrap.fill(
        _AFTER_NUMBER.sub("\xa0", text),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return (filled.replace("\xa0", " ") or first.rstrip()) + "\n"
