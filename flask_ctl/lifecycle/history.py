"""The history of a server and its drain, which continue over reloads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..dispatch.redaction import cut, masked_text
from ..inspection.levels import Lease
from .operation import timestamp
from .readiness import Drain

MAX_ENTRIES = 20
"""The most entries that are kept."""


class Code(NamedTuple):
    """Where the code that serves was loaded: the resolved directory, and its git commit then, None if unknown."""

    directory: str
    commit: str | None


class History:
    """Start, generation, last reload and drain of a server."""

    def __init__(self) -> None:
        self.generation = 1
        self.started_at = now()
        self.began = time.monotonic()
        self.reloaded_at: str | None = None
        self.last_reload: dict[str, Any] | None = None
        self.failed_reloads = 0
        self.entries: list[dict[str, Any]] = []
        """What `history` answers: the start, and each reload, the last one at the end."""
        self.drain: Drain | None = None
        """The drain in force."""
        self.leases: list[Lease] = []
        """Levels of loggers for a time; some may have expired."""

    @property
    def uptime(self) -> float:
        """Seconds since the first image began."""
        return round(time.monotonic() - self.began, 3)

    def export_state(self) -> dict[str, Any]:
        """What the next image carries on."""
        return {
            "generation": self.generation,
            "started_at": self.started_at,
            "began": self.began,
            "entries": self.entries,
            "failed_reloads": self.failed_reloads,
            "drain": None if self.drain is None else asdict(self.drain),
            "leases": [asdict(lease) for lease in self.leases],
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """Be the generation after the one that the previous image has exported."""
        self.generation = state["generation"] + 1
        self.started_at, self.began = state["started_at"], state["began"]
        # An image of an older version has none of these.
        self.entries = state.get("entries", [])
        self.failed_reloads = state.get("failed_reloads", 0)
        self.leases = [Lease(**lease) for lease in state.get("leases", [])]
        drain = state.get("drain")
        self.drain = None if drain is None else Drain(**drain)

    def started(self, code: Code) -> None:
        """The first generation serves; nothing happens if that is known."""
        if self.generation == 1 and not self.entries:
            self._add("started", self.started_at, None, None, None, 0, code)

    def reloaded(self, by: dict[str, Any], elapsed: float, cut: int, code: Code) -> None:
        """This generation serves; `by` requested it, and `cut` requests were cut for it."""
        self._note(by, elapsed, None, cut)
        self._add("reloaded", now(), by, elapsed, None, cut, code)
        self.reloaded_at = now()

    def refused(self, by: dict[str, Any], elapsed: float, error: str, code: Code) -> None:
        """A reload has failed, and this generation still serves, of that code.

        The error may end with a line of the app's own output, and every observer sees it in `status`.
        """
        error = cut(masked_text(error))
        self.failed_reloads += 1
        self._note(by, elapsed, error, 0)
        self._add("failed", now(), by, elapsed, error, 0, code)

    def lost(self, count: int) -> None:
        """Add requests that were cut after the last reload, in workers that it had left to finish them."""
        if self.last_reload is not None:
            self.add_to_last_reload({"cut": self.last_reload.get("cut", 0) + count})

    def add_to_last_reload(self, fields: Mapping[str, Any]) -> None:
        """Note more of the last reload."""
        if self.last_reload is not None:
            self.last_reload = {**self.last_reload, **fields}
            if self.entries and "cut" in fields:
                self.entries[-1] = {**self.entries[-1], "cut": fields["cut"]}

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

    def _add(
        self,
        outcome: str,
        at: str,
        by: dict[str, Any] | None,
        elapsed: float | None,
        error: str | None,
        cut: int,
        code: Code,
    ) -> None:
        entry = {"generation": self.generation, "outcome": outcome, "at": at, "by": by, "elapsed": elapsed}
        entry |= {"error": error, "cut": cut, "directory": code.directory, "commit": code.commit}
        self.entries = [*self.entries, entry][-MAX_ENTRIES:]


def now() -> str:
    """The time, as `status` shows it."""
    return timestamp(datetime.now(timezone.utc))
