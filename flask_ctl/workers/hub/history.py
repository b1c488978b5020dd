"""What a server with workers has been through, which a hub leaves to the next one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from ...lifecycle.history import History
from ...lifecycle.operation import timestamp
from ...system import metrics
from ..messages import Hello, SavedHistory, SavedReload


class HubHistory(History):
    """The history of a master's server, and the reload that a previous hub began."""

    def __init__(self, master: int) -> None:
        super().__init__()
        # The server is as old as its master, whatever the age of this hub.
        age = metrics.age_of(master)
        self.began -= age
        self.started_at = timestamp(datetime.now(timezone.utc) - timedelta(seconds=age))
        self.renewed_at: float | None = None
        """Code that was loaded after this moment, on the system's monotonic clock, is of this generation."""
        self.begun: SavedReload | None = None
        """A reload that a previous hub began, and that this one does not watch yet."""

    def renew(self, since: float | None) -> None:
        """Code that was loaded after `since` serves: the next generation."""
        self.generation += 1
        self.renewed_at = since

    def generation_of(self, hello: Hello) -> int:
        """The generation of a worker's code, while no reload is under way."""
        return self.generation - (self.renewed_at is not None and hello.loaded.at <= self.renewed_at)

    def export_past(self, begun: SavedReload | None) -> SavedHistory:
        """All of it for the next hub; `begun` is the reload under way."""
        return SavedHistory(self.generation, self.reloaded_at, self.last_reload, self.renewed_at, begun)

    def restore_past(self, past: SavedHistory) -> None:
        """Go on from what a previous hub left, but for its reload."""
        self.generation, self.renewed_at = past.generation, past.renewed_at
        self.reloaded_at, self.last_reload = past.reloaded_at, past.last_reload
