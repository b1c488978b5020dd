"""The progress line of a stop or a reload on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from .settings import settings


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A function that shows progress in one line on stderr; None if stderr is not a terminal, or with --quiet."""
    if settings().quiet or not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda progress: click.echo(f"\r\033[K{_describe(progress)}", err=True, nl=False)
    finally:
        click.echo("\r\033[K", err=True, nl=False)


def _describe(progress: Mapping[str, Any]) -> str:
    if threads := progress.get("waiting_for"):
        return f"waiting for {', '.join(map(str, threads))}"
    remaining = progress.get("remaining")
    left = f", {remaining:.0f} s left" if isinstance(remaining, (int, float)) else ""
    by = progress.get("deadline_by") or {}
    who = f", deadline set by {', '.join(f'{name} {value}' for name, value in by.items())}" if by else ""
    return f"{progress.get('phase', 'waiting')}: {progress.get('in_flight', 0)} in flight{left}{who}"
