"""``flask-ctl fleet ls`` and ``flask-ctl fleet status``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from flask_ctl import AccessDenied, ControlError, Fleet, printable

from ..many import first_of
from ..output import exit_code_of, print_json, write
from ..settings import settings
from .options import FleetCommand
from .selection import FleetTarget, last_seen, lost, opened, selected

if TYPE_CHECKING:
    from flask_ctl.fleet.roster import FleetInstance

TIMEOUT = 5.0
"""Seconds for the answers without --timeout."""


MISSING = ("not permitted", "no answer", "lost")
"""States of those of which nothing is known."""


class Row(NamedTuple):
    """An instance, and its status, or why there is none."""

    target: FleetTarget
    status: dict[str, Any] | None
    error: ControlError | None

    @property
    def code(self) -> int:
        """1 if nothing is known of it now."""
        if self.error is None:
            return 0
        return exit_code_of(self.error) if isinstance(self.error, AccessDenied) else 1

    @property
    def state(self) -> str:
        """As of the status; ``lost``, ``not permitted`` or ``no answer``."""
        if self.status is not None:
            return str(self.status["state"])
        if isinstance(self.error, AccessDenied):
            return "not permitted"
        return "lost" if self.target.one.lost else "no answer"


@click.command(
    cls=FleetCommand,
    role="observe",
    examples=["flask-ctl fleet ls", "flask-ctl fleet ls --name 'shop*' --label zone=a --json"],
)
def ls() -> None:
    """List the instances at the NATS servers.

    Each is asked for its state. The table also has those that do not answer (no answer), those that you may not ask
    (not permitted), and those of which nothing was heard for 35 seconds (lost), for a day.

    Exit codes: 0 listed, also with lost ones, 1 no server can be reached, 2 wrong usage, 3 nothing is selected, 5
    permission denied.
    """
    with opened() as fleet:
        rows = _rows(fleet)
    if settings().json:
        print_json([_as_json(row) for row in rows])
    else:
        write(table(rows))


@click.command(
    cls=FleetCommand,
    role="observe",
    examples=["flask-ctl fleet status --name shop", "flask-ctl fleet status --json --timeout 2"],
)
def status() -> None:
    """Show the states of the instances; with --json the whole status of each.

    Exit codes: 0 all have answered, 1 one has not, or is lost, or no server can be reached, 2 wrong usage, 3 nothing is
    selected, 5 permission denied.
    """
    with opened() as fleet:
        rows = _rows(fleet)
    if settings().json:
        print_json([_as_answer(row) for row in rows])
    else:
        write(table(rows))
    raise click.exceptions.Exit(first_of(row.code for row in rows))


def _rows(fleet: Fleet) -> list[Row]:
    given = settings()
    found, roster = selected(fleet)
    asked = [one for one in found if not one.lost]
    answers = fleet.ask("status", asked, roster, timeout=TIMEOUT if given.timeout is None else given.timeout)
    return [_row(FleetTarget(fleet, one), answers.get(one.key)) for one in found]


def _row(target: FleetTarget, answer: Any) -> Row:
    if answer is None:
        return Row(target, None, ControlError(lost(target.one)))
    return Row(target, None, answer) if isinstance(answer, ControlError) else Row(target, answer, None)


def table(rows: Sequence[Row]) -> str:
    """A line for each instance, under a head, and a line for those of which nothing is known."""
    head = ("APP", "INSTANCE", "HOST", "PID", "STATE", "GENERATION", "IN FLIGHT", "LABELS", "")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = "".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + "\n" for line in lines)
    missing = [state for state in MISSING for row in rows if row.state == state]
    told = ", ".join(f"{missing.count(state)} {state}" for state in dict.fromkeys(missing))
    return text + (f"{len(rows)} instances, {told}\n" if told else "")


def _cells(row: Row) -> tuple[str, ...]:
    presence, status = row.target.one.presence, row.status
    figures = ("-", "-") if status is None else (str(status["generation"]), str(status["requests"]["in_flight"]))
    labels = ",".join(f"{name}={value}" for name, value in sorted(presence.labels.items()))
    if row.state in ("no answer", "not permitted") and row.error is not None:
        why = row.error.message
    else:
        why = last_seen(row.target.one) if row.state == "lost" else ""
    cells = (presence.app, presence.instance, presence.host, str(presence.pid), row.state, *figures, labels or "-", why)
    return tuple(printable(cell, keep="") for cell in cells)


def _as_json(row: Row) -> dict[str, Any]:
    presence = row.target.one.presence
    return {
        **row.target.as_json(),
        "labels": presence.labels,
        "roles": presence.roles,
        "version": presence.version,
        "state": row.state,
        "last_seen": _time(row.target.one),
        "status": row.status,
        "problem": None if row.error is None else row.error.message,
    }


def _as_answer(row: Row) -> dict[str, Any]:
    told = {**row.target.as_json(), "labels": row.target.one.presence.labels, "last_seen": _time(row.target.one)}
    if row.error is None:
        return {**told, "exit": 0, "result": row.status}
    error = {"code": row.error.code, "message": row.error.message, "data": row.error.data}
    return {**told, "exit": row.code, "error": error}


def _time(one: FleetInstance) -> str:
    seen = datetime.now(timezone.utc) - timedelta(seconds=one.age)
    return seen.isoformat(timespec="seconds").replace("+00:00", "Z")
