"""The audit log behind a hub: it is where the app has put it, so a worker writes it."""

from __future__ import annotations

import time
from typing import Any

from ...dispatch.audit import Audit, write_record
from ...errors import CommandError
from .requests import Outcome, WorkerRequests

WRITE_TIMEOUT = 5.0
"""Seconds for a worker to write a record; after that it is written here."""


class HubAudit(Audit):
    """The log of all apps. A record that no worker can write, as that of the last one's end, goes to standard error."""

    def __init__(self, requests: WorkerRequests) -> None:
        super().__init__(self._write_soon)
        self._requests = requests
        self._closed = False

    def close(self) -> None:
        """When the control thread has ended."""
        self._closed = True
        super().close()

    def _write_soon(self, level: int, fields: dict[str, Any]) -> None:
        if self._closed:
            write_record(level, fields)
        else:
            self._requests.call_soon(self._have_written, level, fields)

    def _have_written(self, level: int, fields: dict[str, Any]) -> None:
        def check(outcomes: list[Outcome]) -> None:
            if not outcomes or isinstance(outcomes[0][1], CommandError):
                write_record(level, fields)

        newest = self._requests.workers.newest()
        record = {"level": level, "fields": fields}
        asked = self._requests.ask([newest] if newest else [], "audit", record, time.monotonic() + WRITE_TIMEOUT)
        asked.add_done_callback(lambda future: check(future.result()))
