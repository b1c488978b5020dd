"""An app as the hub serves it: its control sockets, its commands, and who may use them."""

from __future__ import annotations

import functools
import logging
import time
from concurrent.futures import Future
from typing import Any

from ...dispatch.audit import Audit
from ...dispatch.commands import Command
from ...errors import INTERNAL_ERROR, CommandError, ConfigurationError
from ...lifecycle.controller import Controller
from ...lifecycle.sockets import Add, AppSockets
from ...system.packages import UNKNOWN, version_of
from ...transports.control_thread import ControlServer
from ...transports.registry import RegisteredApp
from ..messages import AppRecord, Hello, Welcome
from .commands import remote_commands
from .requests import WorkerRequests
from .table import Worker

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
        self._dispatcher.end_revoked_streams()
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
        before = self.app
        return (record.endpoints, record.curve, record.fleet) != (before.endpoints, before.curve, before.fleet)

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
        try:
            self.join_fleet(add)
        except ConfigurationError as error:
            self.problems["NATS"] = error.message


class HubApps:
    """The apps of the workers, and their control sockets."""

    def __init__(self, hub: Controller[Any], control: ControlServer, requests: WorkerRequests, audit: Audit) -> None:
        self._hub = hub
        self._control = control
        self._requests = requests
        self._audit = audit
        self._apps: dict[str, HubApp] = {}
        self._loaded_at = time.monotonic()
        self.outdated = False
        """Whether only another hub can do what the workers' newest code needs."""

    def watchdog_request(self) -> float:
        """The largest CTL_WATCHDOG_REQUEST."""
        return max((app.app.watchdog_request for app in self._apps.values()), default=0.0)

    def __getitem__(self, key: str) -> AppRecord:
        return self._apps[key].app

    def welcome(self, worker: Worker) -> Welcome:
        """The answer to a worker's Hello, by which its apps become known, and their addresses are opened."""
        hello, first, newest = worker.hello, not self._apps, self._requests.workers.newest()
        for record in hello.apps:
            app = self._apps.get(record.key)
            if app is None:
                self._apps[record.key] = HubApp(record, self._hub, self._requests, self._audit)
            elif worker is newest:
                if app.listens_elsewhere(record):
                    self._give_way(hello, f"{record.name} is to listen elsewhere, or with other keys")
                app.renew(record)
        if hello.package != package_version() and UNKNOWN not in (hello.package, package_version()):
            self._give_way(hello, f"flask-ctl {package_version()} is followed by {hello.package}")
        self.tick(worker)
        problems = [problem for app in self._apps.values() for problem in app.problems.values()]
        return Welcome(self._hub.endpoints, problems, self._requests.draining, first)

    def tick(self, asking: Worker | None = None) -> None:
        """Open the addresses that are not open yet, and tell the workers, except for the one that gets a Welcome."""
        before = self._control.endpoints
        for app in self._apps.values():
            app.tick(self._control.add)
        if self._control.endpoints != before:
            # Workers hold a lock beside each socket: it shows clients that they are alive.
            for worker in (worker for worker in self._requests.workers if worker is not asking):
                worker.tell("listening", {"endpoints": self._hub.endpoints})

    def registered(self) -> list[RegisteredApp]:
        """How the registry shows them."""
        return [app.registered() for app in self._apps.values()]

    def close(self) -> None:
        """When the control thread has ended."""
        for app in self._apps.values():
            app.close()

    def _give_way(self, hello: Hello, why: str) -> None:
        """Have the workers start another hub once no operation is under way. Only newer code causes this."""
        if hello.loaded.at > self._loaded_at:
            logger.info("another hub takes over: %s", why)
            self.outdated = True


def _submit(command: Command, arguments: dict[str, Any]) -> Future[Any]:
    raise CommandError(f"{command.name} does not run here", code=INTERNAL_ERROR)


@functools.cache
def package_version() -> str:
    """The version of this package."""
    return version_of("flask_ctl")
