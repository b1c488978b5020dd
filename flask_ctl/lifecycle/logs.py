"""The commands that change how the app logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any

from ..dispatch.commands import Impact, invalid_parameter
from ..dispatch.futures import then
from ..dispatch.replies import Call
from ..errors import CONFLICT, CommandError
from ..inspection.levels import Lease
from ..inspection.questions import Answer, gathered
from .builtin import builtin
from .controller import Controller
from .history import now
from .operation import timestamp

MAX_LEASE = 30 * 86400.0
"""Longest lease, in seconds."""

MAX_LEASES = 100
"""Leases of one server at a time."""

MAX_NAME = 200
"""Characters in the name of a logger."""


class LogCommands:
    """Levels of loggers for a time, and log files that are opened anew, in each serving process."""

    def __init__(self, controller: Controller[Any]) -> None:
        self._controller = controller

    @builtin("operate", Impact("low", "records of a low level cost time and space"))
    def log_level(
        self, call: Call, logger: str | None = None, level: str = "", seconds: float = 600.0
    ) -> Future[dict[str, Any]]:
        """Set the level of a logger for a time; or show the levels, and which of them hold for a time."""
        name = None if logger is None else "" if logger == "root" else logger
        leases = [lease for lease in self._controller.leases if lease.until > time.monotonic()]
        if level:
            leases = self._changed(leases, name, level, seconds, call.peer.describe())
            self._controller.keep_leases(leases)
        params = {"leases": [asdict(lease) for lease in leases], "loggers": None if name is None else [name]}

        def result(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            shown = [_described(lease) for lease in leases if name in (None, lease.logger)]
            return {"loggers": _by_process(found), "leases": shown, "unanswered": errors}

        return then(self._controller.processes.run_chore("log_levels", params, time.monotonic() + call.timeout), result)

    @builtin("operate", Impact("low"))
    def reopen_logs(self, call: Call) -> Future[dict[str, Any]]:
        """Open the log files anew, as after their rotation."""

        def result(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            return {
                "files": [{"worker": one["worker"], "file": one["file"]} for one in found if one["error"] is None],
                "failed": [one for one in found if one["error"] is not None],
                "unanswered": errors,
            }

        return then(self._controller.processes.run_chore("reopen_logs", {}, time.monotonic() + call.timeout), result)

    def _changed(
        self, leases: list[Lease], name: str | None, level: str, seconds: float, by: dict[str, Any]
    ) -> list[Lease]:
        """The leases with one more, or without those of the logger."""
        if name is None or len(name) > MAX_NAME:
            raise invalid_parameter("logger", f"must be the name of a logger, of at most {MAX_NAME} characters")
        if level == "reset":
            return [lease for lease in leases if lease.logger != name]
        number = logging.getLevelName(level.upper())
        if not isinstance(number, int):
            raise invalid_parameter("level", f"{level!r} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL, reset")
        if not 0 < seconds <= MAX_LEASE:
            raise invalid_parameter("seconds", f"must be more than 0, and at most {MAX_LEASE:.0f}")
        if len(leases) >= MAX_LEASES:
            raise CommandError(f"{MAX_LEASES} levels are set for a time already; reset some", code=CONFLICT)
        until = time.monotonic() + seconds
        return [*leases, Lease(time.monotonic_ns(), name, number, until, now(), by)]


def _described(lease: Lease) -> dict[str, Any]:
    until = datetime.now(timezone.utc) + timedelta(seconds=lease.until - time.monotonic())
    return {
        "logger": lease.logger or "root",
        "level": logging.getLevelName(lease.level),
        "since": lease.since,
        "until": timestamp(until),
        "by": lease.by,
    }


def _by_process(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is the same in several processes, once, with the pids of its ``workers``."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in found:
        row = {name: one[name] for name in ("logger", "level", "note")}
        rows.setdefault(tuple(row.values()), {**row, "workers": []})["workers"].append(one["worker"])
    return list(rows.values())
