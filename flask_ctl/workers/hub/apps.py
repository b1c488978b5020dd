"""An app as the hub serves it: its control sockets, its commands, and who may use them."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from ...dispatch.audit import Audit
from ...dispatch.commands import Command, CommandRegistry
from ...dispatch.dispatcher import Dispatcher
from ...dispatch.guard import Guard
from ...dispatch.limits import Limits
from ...dispatch.policy import Policy
from ...errors import INTERNAL_ERROR, CommandError, ConfigurationError
from ...lifecycle.commands import Answering, builtin_commands
from ...system.addresses import parse_address
from ...transports.base import Listener
from ...transports.control_thread import ControlServer
from ...transports.defaultname import DefaultName
from ...transports.factory import CurveFiles, make_listener
from ..messages import AppRecord, known
from .commands import remote_commands
from .requests import Staff

logger = logging.getLogger("flask_ctl")


class HubApp:
    """One app. Belongs to the control thread."""

    def __init__(self, record: AppRecord, hub: Answering, staff: Staff, audit: Audit) -> None:
        self._hub = hub
        self._staff = staff
        self._closed = list(record.endpoints)
        self._default = DefaultName(record.endpoints[0], hub.pid, hub=True) if record.by_default else None
        self._listeners: dict[str, Listener] = {}
        self.record = record
        self.problems: dict[str, str] = {}
        """Why an address can't be used, by address."""
        self._guard = Guard(Policy.from_json(record.policy), known(Limits, record.limits), audit)
        self._dispatcher = Dispatcher(self._registry(record), _submit, self._guard)

    def renew(self, record: AppRecord) -> None:
        """New code has been loaded."""
        self.record = record
        self._dispatcher.registry = self._registry(record)
        self._guard.policy = Policy.from_json(record.policy)
        self._guard.limits = known(Limits, record.limits)
        for endpoint, listener in self._listeners.items():
            try:
                listener.renew_access()
            except ConfigurationError as error:
                logger.error("%s", error.message)
                self.problems[endpoint] = error.message
            else:
                self.problems.pop(endpoint, None)

    def listens_elsewhere(self, record: AppRecord) -> bool:
        """Whether new code wants other addresses or keys than those that are in use here."""
        return (record.endpoints, record.curve) != (self.record.endpoints, self.record.curve)

    def tick(self) -> None:
        """Called now and then."""
        self._guard.tick()

    def close(self) -> None:
        """When nobody listens any more: tell the audit log what it has not been told."""
        self._guard.close()
        if self._default is not None:
            self._default.close()

    def open(self, control: ControlServer) -> None:
        """Listen at the addresses where nobody does, or note why not: a former master may still have one of them."""
        if self._default is not None and not self._closed:
            self._default.tend(lambda path: self._listen(path, control))
        for endpoint in list(self._closed):
            try:
                if self._default is None:
                    self._listen(endpoint, control)
                else:
                    self._default.open(lambda path: self._listen(path, control))
            except ConfigurationError as error:
                self.problems[endpoint] = error.message
            else:
                self._closed.remove(endpoint)
                self.problems.pop(endpoint, None)

    def _listen(self, endpoint: str, control: ControlServer) -> None:
        curve = CurveFiles(self.record.curve.get("key"), self.record.curve.get("clients"))
        listener = make_listener(parse_address(endpoint), self._guard, curve, master=self._hub.pid)
        control.add(listener, self._dispatcher)
        self._listeners[endpoint] = listener

    def _registry(self, record: AppRecord) -> CommandRegistry:
        registry = CommandRegistry(remote_commands(self._staff, record))
        for command in builtin_commands(self._hub, record, registry):
            registry.add(command)
        return registry


def _submit(command: Command, arguments: dict[str, Any]) -> Future[Any]:
    raise CommandError(f"{command.name} does not run here", code=INTERNAL_ERROR)
