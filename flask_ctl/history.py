"""What an instance has been through: it outlives the images of its process."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from .operation import timestamp


class History:
    """Start, generation and last reload of an instance."""

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

    def leave(self) -> dict[str, Any]:
        """What the next image carries on."""
        return {"generation": self.generation, "started_at": self.started_at, "began": self.began}

    def carry_on(self, left: dict[str, Any]) -> None:
        """Be the next generation of what a former image has left."""
        self.generation = left["generation"] + 1
        self.started_at, self.began = left["started_at"], left["began"]

    def reloaded(self, by: dict[str, Any], elapsed: float) -> None:
        """This generation serves, as `by` has asked."""
        self._note(by, elapsed, None)
        self.reloaded_at = now()

    def refused(self, by: dict[str, Any], elapsed: float, error: str) -> None:
        """A reload has failed, and this generation serves on."""
        self._note(by, elapsed, error)

    def _note(self, by: dict[str, Any], elapsed: float, error: str | None) -> None:
        self.last_reload = {
            "ok": error is None,
            "at": now(),
            "by": by,
            "elapsed": elapsed,
            "generation": self.generation,
            "error": error,
        }


def now() -> str:
    """The time, as `status` shows it."""
    return timestamp(datetime.now(timezone.utc))
