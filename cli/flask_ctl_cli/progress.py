"""The progress of a stop or a reload on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from flask_ctl import printable

from .settings import settings
from .terminal import DEFAULT_WIDTH, can_move, columns

PHASES = {
    "delay": "delay, new connections are accepted",
    "preflight": "preflight of the new code",
    "load": "new workers load the code",
    "replace": "replacing the code",
    "hooks": "on_stop hooks",
    "confirm": "watching the error rate",
    "end": "end of the process",
}
"""What a phase of a stop or a reload does; `drain` explains itself."""


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A function that shows progress on stderr; None if stderr is not a terminal, or with --quiet.

    It writes over one line, or below each other on a terminal that can't (TERM=dumb) one line for each phase.
    """
    if settings().quiet or not sys.stderr.isatty():
        yield None
    elif not can_move(sys.stderr):
        phases: list[Any] = []

        def show_phase(progress: Mapping[str, Any]) -> None:
            if phases[-1:] != [progress.get("phase")]:
                phases.append(progress.get("phase"))
                click.echo(describe(progress, columns(sys.stderr) or DEFAULT_WIDTH), err=True)

        yield show_phase
    else:

        def show(progress: Mapping[str, Any]) -> None:
            # The terminal may be resized meanwhile. In the last column some terminals begin a new line.
            width = (columns(sys.stderr) or DEFAULT_WIDTH) - 1
            click.echo(f"\r\033[K{describe(progress, width)}", err=True, nl=False)

        try:
            yield show
        finally:
            click.echo("\r\033[K", err=True, nl=False)


def describe(progress: Mapping[str, Any], width: int) -> str:
    """The progress in one line of at most `width` columns: the phase, and of the rest what fits, first things first."""
    rest: list[str] = []
    if threads := progress.get("waiting_for"):
        first = f"waiting for {', '.join(map(str, threads))}"
    else:
        phase, remaining = str(progress.get("phase", "waiting")), progress.get("remaining")
        first = f"{phase}: {progress.get('in_flight') or 0} in flight"
        if isinstance(remaining, (int, float)):
            rest.append(f", {remaining:.0f} s left")
        if oldest := progress.get("oldest_request"):
            rest.append(f", oldest {oldest['method']} {oldest['route'] or '(no route)'} {oldest['age']:.0f} s")
        if "old" in progress and "new" in progress:
            rest.append(f", {progress['old']} old and {progress['new']} new workers")
        if by := progress.get("deadline_by"):
            rest.append(f", deadline set by {', '.join(f'{name} {value}' for name, value in by.items())}")
        if phase in PHASES:
            rest.append(f" ({PHASES[phase]})")
    line = first
    for part in rest:
        line += part if len(line) + len(part) <= width else ""
    line = printable(line, keep="")
    return line if len(line) <= width else line[: width - 1] + "…"
