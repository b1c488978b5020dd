"""The methods of `ControlClient` that change how the app logs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from .methods import DEFAULT, Timeout

LOGGING_TIMEOUT = 10.0
"""Seconds for a thread of the app's to do it in each process."""


class LogMethods(ABC):
    """Levels for a time, and log files that are opened anew."""

    @abstractmethod
    def _limit(self, timeout: Timeout, default: float | None) -> float | None:
        """The seconds of a call, None for no limit."""

    @abstractmethod
    def call(self, name: str, /, *, timeout: Timeout = DEFAULT, **params: Any) -> Any:
        """The result of a command."""

    def log_level(
        self,
        logger: str | None = None,
        level: str | None = None,
        *,
        seconds: float = 600.0,
        timeout: Timeout = DEFAULT,
    ) -> dict[str, Any]:
        """Set the level of a `logger` (``root``, or its name) for some `seconds`; without a `level` show what holds.

        Of several leases of one logger the last one sets the level; when all have expired, or by the level ``reset``,
        the level from before comes back, unless the app has set another one meanwhile. It holds in all workers, those
        to come included, and over reloads.

        The result has ``loggers``: ``logger``, ``level`` (that holds), ``note`` (why records may not be seen all the
        same, or "") and ``workers`` (pids); ``leases``: ``logger``, ``level``, ``since``, ``until`` and ``by``; and
        ``unanswered``: ``worker`` and ``error`` for each worker that has not confirmed it.
        """
        params = {"logger": logger, "level": level, "seconds": seconds}
        given = {name: value for name, value in params.items() if value is not None}
        result: dict[str, Any] = self.call("log_level", timeout=self._limit(timeout, LOGGING_TIMEOUT), **given)
        return result

    def reopen_logs(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """Open the file of each log handler anew, in each process, as after logrotate has moved it.

        The result has ``files``: ``worker`` (a pid) and ``file``; ``failed``: the same with ``error``, where the old
        file stays open; and ``unanswered`` as in `log_level`.
        """
        result: dict[str, Any] = self.call("reopen_logs", timeout=self._limit(timeout, LOGGING_TIMEOUT))
        return result
