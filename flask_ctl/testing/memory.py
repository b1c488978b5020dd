"""An app's own commands without a server and without a socket."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from flask import Flask

from ..client.client import ControlClient
from ..dispatch.audit import Audit
from ..dispatch.commands import Command, CommandRegistry
from ..dispatch.dispatcher import Dispatcher
from ..dispatch.guard import Guard
from ..dispatch.pool import Pool
from ..dispatch.replies import Call
from ..extension.control import state_of
from ..lifecycle.builtin import builtin, commands_of
from ..protocol import VERSION
from ..transports.control_thread import ControlServer
from ..transports.memory import MemoryListener


@contextlib.contextmanager
def control_client(app: Flask) -> Iterator[ControlClient]:
    """A client that calls the commands of the app's `Control` as it would over a socket, within this process.

    Parameters and results are checked and made JSON, commands run in the app's context, and what a command raises is a
    CommandError of the client. Of the commands of every server there are ``ping`` and ``commands``: nothing serves.
    Raises ConfigurationError for wrong settings of the app.
    """
    served = state_of(app).served_app([])
    registry = CommandRegistry(served.commands)
    for command in commands_of(_Commands(registry, served.versions["flask_ctl"])):
        registry.add(command)
    pool = Pool(lambda: None, served.limits.queue)

    def submit(command: Command, arguments: dict[str, Any]) -> Future[Any]:
        return pool.submit(lambda: served.run_command(command.function, arguments))

    guard = Guard(served.policy, served.limits, Audit())
    listener = MemoryListener(guard)
    server = ControlServer("flask-ctl-memory")
    try:
        server.start([(listener, Dispatcher(registry, submit, guard))])
        with ControlClient(listener) as client:
            yield client
    finally:
        server.close()
        pool.close()


class _Commands:
    """The commands of every server that need no server."""

    def __init__(self, registry: CommandRegistry, version: str) -> None:
        self._registry = registry
        self._version = version

    @builtin("observe")
    def ping(self, call: Call) -> dict[str, Any]:
        """Answer at once."""
        return {"pong": True, "protocol": VERSION, "pid": os.getpid(), "version": self._version}

    @builtin("observe")
    def commands(self, call: Call) -> dict[str, Any]:
        """Every command with its summary, role, scope, parameters and result."""
        return {command.name: command.describe() for command in sorted(self._registry, key=lambda c: c.name)}
