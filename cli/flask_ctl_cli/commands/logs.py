"""``flask-ctl logs``."""

from __future__ import annotations

from typing import Any

import click

from ..settings import ClientCommand
from ..streams import print_stream

_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


@click.command(
    cls=ClientCommand,
    role="inspect",
    impact_note="with --follow, records of every level are taken, 2 us each",
    examples=["flask-ctl logs --since 10m --level ERROR", "flask-ctl logs --follow --logger shop --json"],
)
@click.option("--follow", "-f", is_flag=True, help="Go on with the records to come, until Ctrl-C or the end.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=100, show_default=True, help="Of the past.")
@click.option("--since", metavar="TIME", default="", help="Not older than 90s, 10m, 2h, 1d, or than a time (RFC 3339).")
@click.option("--level", type=click.Choice(_LEVELS, case_sensitive=False), default=None, help="Of this level or above.")
@click.option("--logger", metavar="NAME", default="", help="Of this logger, or below it.")
@click.option("--request", metavar="ID", default="", help="Of the request with this X-Request-ID.")
@click.option("--grep", metavar="TEXT", default="", help="With this text in the message or the traceback.")
@click.option("--worker", type=click.IntRange(min=1), metavar="PID", help="Only of this worker.")
def logs(level: str | None, **wanted: Any) -> None:
    """Show the app's last log records.

    Warnings and errors of the past are kept, of other levels only what came while a client followed.
    """
    print_stream("logs", {"level": level or "", **wanted}, note=lambda about: _note(about, level))


def _note(about: dict[str, Any], level: str | None) -> str:
    """What the records can't show; "" if they show what was asked for."""
    notes = []
    root = about.get("root_level")
    if level is not None and root in _LEVELS and _LEVELS.index(level.upper()) < _LEVELS.index(root):
        notes.append(f"the root logger's level is {root}: below it only loggers with a level of their own make records")
    if about.get("disabled"):
        notes.append(f"disabled loggers, which make no records: {', '.join(about['disabled'])}")
    if about.get("kept_since", {}).get("WARNING", "unknown") is None:
        notes.append("CTL_LOG_RING is 0: no record is kept")
    return "\n".join(notes)
