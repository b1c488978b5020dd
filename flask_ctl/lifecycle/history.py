"""The history of a server, which continues over reloads."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from .operation import timestamp


class History:
    """Start, generation and last reload of a server."""

    def __init__(self) -> None:
        self.generation = 1
        self.started_at = now()
        self.began = time.monotonic()
        self.reloaded_at: str | None = None
        self.last_reload: dict[str, Any] | None = None

    @property
    def uptime(self) -> float:
        """Seconds since the first image began."""
        return round(time.monotonic() - self.began, 3)

    def export_state(self) -> dict[str, Any]:
        """What the next image carries on."""
        return {"generation": self.generation, "started_at": self.started_at, "began": self.began}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Be the generation after the one that the previous image has exported."""
        self.generation = state["generation"] + 1
        self.started_at, self.began = state["started_at"], state["began"]

    def reloaded(self, by: dict[str, Any], elapsed: float, cut: int) -> None:
        """This generation serves; `by` requested it, and `cut` requests were cut for it."""
        self._note(by, elapsed, None, cut)
        self.reloaded_at = now()

    def refused(self, by: dict[str, Any], elapsed: float, error: str) -> None:
        """A reload has failed, and this generation still serves."""
        self._note(by, elapsed, error, 0)

    def lost(self, count: int) -> None:
        """Add requests that were cut after the last reload, in workers that it had left to finish them."""
        if self.last_reload is not None:
            self.last_reload = {**self.last_reload, "cut": self.last_reload.get("cut", 0) + count}

    def _note(self, by: dict[str, Any], elapsed: float, error: str | None, cut: int) -> None:
        self.last_reload = {
            "ok": error is None,
            "at": now(),
            "by": by,
            "elapsed": elapsed,
            "generation": self.generation,
            "error": error,
            "cut": cut,
        }


def now() -> str:
    """The time, as `status` shows it."""
    return timestamp(datetime.now(timezone.utc))
