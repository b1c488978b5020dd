"""``flask-ctl logs``."""

from __future__ import annotations

from typing import Any

import click

from ..settings import ClientCommand
from ..streams import LEVELS, LOGS_OPTIONS, add_options, print_stream


@click.command(
    cls=ClientCommand,
    role="inspect",
    impact_note="with --follow, records of every level are taken, 2 us each",
    examples=["flask-ctl logs --since 10m --level ERROR", "flask-ctl logs --follow --logger shop --json"],
)
@add_options(LOGS_OPTIONS)
def logs(level: str | None, **wanted: Any) -> None:
    """Show the app's last log records.

    Warnings and errors of the past are kept, of other levels only what came while a client followed.
    """
    print_stream("logs", {"level": level or "", **wanted}, note=lambda about: _note(about, level))


def _note(about: dict[str, Any], level: str | None) -> str:
    """What the records can't show; "" if they show what was asked for."""
    notes = []
    root = about.get("root_level")
    if level is not None and root in LEVELS and LEVELS.index(level.upper()) < LEVELS.index(root):
        notes.append(f"the root logger's level is {root}: below it only loggers with a level of their own make records")
    if about.get("disabled"):
        notes.append(f"disabled loggers, which make no records: {', '.join(about['disabled'])}")
    if about.get("kept_since", {}).get("WARNING", "unknown") is None:
        notes.append("CTL_LOG_RING is 0: no record is kept")
    return "\n".join(notes)
