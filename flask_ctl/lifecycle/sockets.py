"""The control sockets of one app, with the commands that can be called there and the guard that says who may."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable
from typing import Any

from ..dispatch.audit import Audit
from ..dispatch.commands import Command, CommandRegistry
from ..dispatch.dispatcher import Dispatcher, Submit
from ..dispatch.guard import Guard
from ..system.processes import process_sum
from ..transports.base import Handler, Listener
from ..transports.defaultname import DefaultName
from ..transports.registry import RegisteredApp
from .app import AppConfig, listener_at
from .commands import builtin_commands
from .controller import Controller

logger = logging.getLogger("flask_ctl")

Add = Callable[[Listener, Handler], Any]
"""`ControlServer.open` before its thread runs, `ControlServer.add` on that thread."""


class AppSockets:
    """The control sockets of one app. Belongs to the control thread once that runs."""

    def __init__(
        self,
        app: AppConfig,
        controller: Controller[Any],
        commands: Iterable[Command],
        submit: Submit,
        audit: Audit,
        *,
        hub: bool = False,
    ) -> None:
        self.app = app
        self.guard = Guard(app.policy, app.limits, audit)
        self._controller = controller
        self._master = controller.pid if hub else None
        self._listeners: dict[str, Listener] = {}
        self._default = DefaultName(app.endpoints[0], controller.pid, hub=hub) if app.by_default else None
        self._dispatcher = Dispatcher(self._registry(commands), submit, self.guard)
        self._fleet_begun = False

    def open(self, endpoint: str, add: Add) -> None:
        """Listen at an address; if another instance has the default one, at a name of our own for now.

        Raises ConfigurationError.
        """
        if self._default is None:
            self._listen(endpoint, add)
        else:
            self._default.open(lambda path: self._listen(path, add))

    def join_fleet(self, add: Add) -> None:
        """Take requests over NATS, too, if the app has servers for that; once. Raises ConfigurationError."""
        app, settings = self.app, self.app.fleet
        if settings is None or self._fleet_begun:
            return
        self._fleet_begun = True
        from ..fleet.agent import Identity
        from ..fleet.listener import FleetListener

        pid, host, fleets = self._controller.pid, platform.node(), self._controller.fleets
        # The same over a reload, and no other's: containers may have one name, and all of them process 1.
        instance = f"{host}-{pid}-{process_sum(pid)}"
        if app.name in fleets:
            instance += f"-{len(fleets)}"
        identity = Identity(app.name, instance, host, pid, app.versions["flask_ctl"], settings.labels)
        listener = FleetListener(settings, identity, self.guard)
        add(listener, self._dispatcher)
        fleets.setdefault(app.name, listener.describe)

    def tick(self, add: Add) -> None:
        """Called periodically: take the default name over once no other instance has it."""
        self.guard.tick()
        if self._default is not None and self._listeners:
            self._default.tend(lambda path: self._listen(path, add))

    def registered(self) -> RegisteredApp:
        """How the registry shows the app."""
        return RegisteredApp(self.app.name, self.app.root_path, list(self._listeners))

    def close(self) -> None:
        """After the listeners have been closed: log what the audit log lacks, remove a name of our own."""
        self.guard.close()
        if self._default is not None:
            self._default.close()

    def _listen(self, endpoint: str, add: Add) -> None:
        listener = listener_at(self.app, endpoint, self.guard, self._master)
        add(listener, self._dispatcher)
        self._listeners[endpoint] = listener
        # The user has read it when the server was started.
        level = logging.DEBUG if self._controller.has_predecessor else logging.INFO
        logger.log(level, "%s listens for control at %s", self.app.name, endpoint)

    def _registry(self, commands: Iterable[Command]) -> CommandRegistry:
        registry = CommandRegistry(commands)
        for command in builtin_commands(self._controller, self.app, registry):
            registry.add(command)
        return registry
