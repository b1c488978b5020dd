"""The commands that every server answers."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .commands import Command, CommandRegistry, command_from, invalid_parameter
from .dispatcher import Call
from .protocol import VERSION
from .stopping import Mode

if TYPE_CHECKING:
    from .instance import Instance, ServedApp


def builtin_commands(instance: Instance, app: ServedApp, registry: CommandRegistry) -> list[Command]:
    """ping, status, stop and commands for one app of an instance."""

    def ping(call: Call) -> dict[str, Any]:
        """Answer at once: the server's pid and version."""
        return {"pong": True, "protocol": VERSION, "pid": instance.pid, "version": app.versions["flask_ctl"]}

    def status(call: Call) -> dict[str, Any]:
        """What the server is, does and has done."""
        return instance.status(app)

    def stop(
        call: Call, mode: Mode = "graceful", grace: float | None = None, delay: float = 0.0
    ) -> Future[dict[str, Any]]:
        """End the server once its requests are answered, or grace has passed."""
        for name, value in (("grace", grace), ("delay", delay)):
            if value is not None and value < 0:
                raise invalid_parameter(name, "must be 0 or more seconds")
        return instance.stop(mode, app.grace if grace is None else grace, delay, call.peer.describe(), call.progress)

    def commands(call: Call) -> dict[str, Any]:
        """Every command with its summary, role, scope and parameters."""
        return {command.name: command.describe() for command in sorted(registry, key=lambda c: c.name)}

    return [
        command_from(ping, role="observe", scope="one", builtin=True),
        command_from(status, role="observe", scope="one", builtin=True),
        command_from(stop, role="operate", scope="one", builtin=True),
        command_from(commands, role="observe", scope="one", builtin=True),
    ]
