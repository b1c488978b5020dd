"""Watching whether the new code fails more often than the code before it, after a reload or a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import ControlError, NotRunning, ServerDied, TimedOut
from .stop import Progress

INTERVAL = 1.0
"""Seconds between two looks at the counters."""


class Confirmation:
    """The error rates before and after a reload or a restart. Created before that is requested."""

    def __init__(self, status: Callable[[], dict[str, Any]], seconds: float, max_errors: float) -> None:
        """`max_errors` is the share of requests, 0 to 1, by which the rate of errors may rise.

        Raises as `status` does, TimedOut excepted, which would mean something else.
        """
        self._status = status
        self._seconds = seconds
        self._max_errors = max_errors
        try:
            self._before = status()
        except TimedOut as error:
            raise ControlError(f"{error.message}; nothing was done", {**(error.data or {}), "begun": False}) from None

    def watch(self, result: dict[str, Any], on_progress: Progress | None) -> dict[str, Any]:
        """What `ControlClient.reload` tells as ``confirmed``, when the time has passed.

        `result` is that of the reload or the restart, with the ``pid`` and ``generation`` that serve. Raises ServerDied
        if the server has ended meanwhile, ControlError if it was replaced again, or does not answer at the end, with
        `result` in ``data["reload"]``.
        """
        try:
            return self._watch(result, on_progress)
        except ControlError as error:
            error.data = {**(error.data if isinstance(error.data, dict) else {}), "reload": result}
            raise

    def _watch(self, result: dict[str, Any], on_progress: Progress | None) -> dict[str, Any]:
        deadline = time.monotonic() + self._seconds
        start = seen = latest = self._look(result)
        left = self._seconds
        while left > 0:
            if on_progress is not None:
                in_flight = 0 if seen is None else seen["requests"]["in_flight"]
                on_progress({"phase": "confirm", "in_flight": in_flight, "remaining": left})
            time.sleep(min(INTERVAL, left))
            latest = self._look(result)
            start, seen = start or latest, latest or seen
            left = deadline - time.monotonic()
        if start is None or latest is None:
            raise ControlError("the new code serves, but is not confirmed: the server does not answer")
        before = _rate(*_ended(self._before))
        after = _rate(*(now - then for now, then in zip(_ended(latest), _ended(start))))
        if result.get("old_left"):
            after["old_left"] = result["old_left"]
        rise = (after["rate"] or 0.0) - (before["rate"] or 0.0)
        return {
            "ok": rise <= self._max_errors if after["requests"] else None,
            "seconds": self._seconds,
            "max_errors": self._max_errors,
            "before": {**before, "generation": self._before["generation"], "directory": self._before["directory"]},
            "after": after,
        }

    def _look(self, result: dict[str, Any]) -> dict[str, Any] | None:
        """The status, None if the server does not answer in time."""
        try:
            status = self._status()
        except (NotRunning, ServerDied) as error:
            raise ServerDied(f"the new code has ended: {error.message}") from None
        except TimedOut:
            return None
        if (status["pid"], status["generation"]) != (result["pid"], result["generation"]):
            other = f"generation {status['generation']} of pid {status['pid']}"
            raise ControlError(f"the new code is not confirmed: {other} has replaced it")
        return status


def _ended(status: dict[str, Any]) -> tuple[int, int]:
    """The requests that have ended, and those of them that have failed."""
    requests = status["requests"]
    return requests["total"] - requests["in_flight"], requests["errors"]


def _rate(requests: int, errors: int) -> dict[str, Any]:
    return {"requests": requests, "errors": errors, "rate": round(errors / requests, 6) if requests else None}
