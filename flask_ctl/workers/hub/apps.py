"""An app as the hub serves it: its control sockets, its commands, and who may use them."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from ...dispatch.audit import Audit
from ...dispatch.commands import Command
from ...errors import INTERNAL_ERROR, CommandError, ConfigurationError
from ...lifecycle.controller import Controller
from ...lifecycle.sockets import Add, AppSockets
from ..messages import AppRecord
from .commands import remote_commands
from .requests import WorkerRequests

logger = logging.getLogger("flask_ctl")


class HubApp(AppSockets):
    """One app. Its commands run in the workers, and new code of theirs may change its settings."""

    app: AppRecord

    def __init__(self, record: AppRecord, hub: Controller[Any], requests: WorkerRequests, audit: Audit) -> None:
        super().__init__(record, hub, remote_commands(requests, record), _submit, audit, hub=True)
        self._requests = requests
        self._closed = list(record.endpoints)
        self.problems: dict[str, str] = {}
        """Why an address can't be used, by address."""

    def renew(self, record: AppRecord) -> None:
        """New code has been loaded."""
        self.app = record
        self._dispatcher.registry = self._registry(remote_commands(self._requests, record))
        self.guard.policy = record.policy
        self.guard.limits = record.limits
        for endpoint, listener in self._listeners.items():
            try:
                listener.renew_access()
            except ConfigurationError as error:
                logger.error("%s", error.message)
                self.problems[endpoint] = error.message
            else:
                self.problems.pop(endpoint, None)

    def listens_elsewhere(self, record: AppRecord) -> bool:
        """Whether new code wants other addresses or keys than this hub uses."""
        return (record.endpoints, record.curve) != (self.app.endpoints, self.app.curve)

    def tick(self, add: Add) -> None:
        """Called periodically: also listen at the addresses that were in use, for example by a previous master."""
        super().tick(add)
        for endpoint in list(self._closed):
            try:
                self.open(endpoint, add)
            except ConfigurationError as error:
                self.problems[endpoint] = error.message
            else:
                self._closed.remove(endpoint)
                self.problems.pop(endpoint, None)


def _submit(command: Command, arguments: dict[str, Any]) -> Future[Any]:
    raise CommandError(f"{command.name} does not run here", code=INTERNAL_ERROR)
