"""Commands with --watch, which ask again and again."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from .output import print_result, result_text, write
from .settings import Seconds, settings
from .terminal import can_move, lines

LEAST_INTERVAL = 0.1
"""Seconds between two questions."""

watch_option = click.option(
    "--watch",
    type=Seconds(),
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Show it again every so many seconds (1), until Ctrl-C or the end of the server; with --json a line each.",
)


def show(method: str, ask: Callable[[], Any], watch: float | None) -> None:
    """Print the result of `method` that `ask` gives, once, or every `watch` seconds until Ctrl-C."""
    if watch is None:
        print_result(method, ask(), as_json=settings().json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            show_one(method, ask())
            time.sleep(max(watch, LEAST_INTERVAL))


def show_one(method: str, result: Any) -> None:
    """One of many: in the same place on a terminal, below the one before in a file or a pipe."""
    if settings().json:
        write(json.dumps(result) + "\n")
    elif can_move(sys.stdout):
        text = _cut(result_text(method, result).splitlines(keepends=True), lines(sys.stdout))
        write("\033[H\033[J", control=True)
        write(text)
    else:
        write(result_text(method, result) + "\n")


def _cut(shown: list[str], height: int) -> str:
    """As many lines as fit a terminal of that height, 0 for all, with a line that counts the others."""
    room = height - 2
    if 0 < room < len(shown):
        shown = [*shown[:room], f"… {len(shown) - room} more lines"]
    return "".join(shown)
