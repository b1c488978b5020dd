"""What a server with workers has been through, which a hub leaves to the next one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from ...lifecycle.history import History
from ...lifecycle.operation import timestamp
from ...system import metrics
from ..messages import Hello, SavedHistory, SavedMetrics, SavedReload, SavedState, as_json
from ..state_file import StateFile
from .metrics import WorkersMetrics
from .table import Workers

MAX_TOLD = 16 * 1024
"""Characters of totals of metrics of which each worker keeps a copy; longer ones are only in the file."""


class HubHistory(History):
    """The history of a master's server; `save` and `restore` carry it on, with the totals of ended workers."""

    def __init__(self, master: int, workers: Workers, file: StateFile) -> None:
        super().__init__()
        # The server is as old as its master, whatever the age of this hub.
        age = metrics.age_of(master)
        self.began -= age
        self.started_at = timestamp(datetime.now(timezone.utc) - timedelta(seconds=age))
        self.renewed_at: float | None = None
        """Code that was loaded after this moment, on the system's monotonic clock, is of this generation."""
        self.begun: SavedReload | None = None
        """A reload that a previous hub began, and that this one does not watch yet."""
        self.resized = 0
        """How many workers have been added to the number in the master's setting, negative for removed ones."""
        self.saves = 0
        """How often it has been saved, by all hubs of the server."""
        self._workers = workers
        self.metrics = WorkersMetrics(workers)
        self._file = file
        self.restore(file.read())

    def renew(self, since: float | None) -> None:
        """Code that was loaded after `since` serves: the next generation."""
        self.generation += 1
        self.renewed_at = since
        # At a reload the master goes back to its setting.
        self.resized = 0

    def generation_of(self, hello: Hello, reload_since: float | None) -> int:
        """The generation of a worker's code; `reload_since` is when the master was signalled to reload, if it was."""
        if reload_since is not None and hello.loaded.at > reload_since:
            return self.generation + 1
        return self.generation - (self.renewed_at is not None and hello.loaded.at <= self.renewed_at)

    def save(self, begun: SavedReload | None) -> None:
        """Leave it to the next hub, in the file of the lock and with each worker; `begun` is the reload under way."""
        self.saves += 1
        past = SavedHistory(
            self.generation,
            self.reloaded_at,
            self.last_reload,
            self.renewed_at,
            begun,
            self.entries,
            self.resized,
            self.started_at,
            self.failed_reloads,
        )
        metrics = self.metrics.export()
        state = SavedState(self.saves, self._workers.export_totals(), past, self.drain, self.leases, metrics)
        self._file.write(state)
        if sum(map(len, metrics.totals.values())) > MAX_TOLD:
            state = replace(state, metrics=SavedMetrics())
        for worker in self._workers:
            worker.tell("save_state", as_json(state))

    def restore(self, state: SavedState | None, *, reloading: bool = False) -> None:
        """Go on from what a previous hub has saved, if that is news; while `reloading` the reload is this hub's own."""
        if state is None or state.number <= self.saves:
            return
        self.saves = state.number
        self._workers.restore_totals(state.totals)
        past = state.history
        self.generation, self.renewed_at = past.generation, past.renewed_at
        self.reloaded_at, self.last_reload = past.reloaded_at, past.last_reload
        self.entries, self.resized = past.entries or self.entries, past.resized
        self.started_at = past.started_at or self.started_at
        self.failed_reloads = past.failed_reloads
        if state.metrics.totals or any(state.metrics.ended):
            self.metrics.restore(state.metrics)
        self.drain, self.leases = state.drain, state.leases
        if not reloading:
            self.begun = past.begun
