"""The commands that every server answers."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Literal

from ..dispatch.commands import Command, CommandRegistry, Impact, invalid_parameter
from ..dispatch.futures import then
from ..dispatch.openrpc import DISCOVER, describe
from ..dispatch.replies import Call
from ..errors import NOT_SUPPORTED, CommandError
from ..protocol import VERSION
from .app import AppConfig
from .builtin import builtin, commands_of
from .controller import Controller
from .describe import DescribeCommands
from .doctor import DoctorCommands
from .draining import DrainCommands
from .inspection import InspectionCommands
from .logs import LogCommands
from .metrics import MetricsCommands
from .profile import ProfileCommands
from .reload import ReloadRequest
from .stop import Mode, StopRequest
from .workforce import WorkerCommands

RELOAD_IMPACT = Impact(
    "medium", "another process imports the new code first; then new connections wait for a second import"
)


def builtin_commands(controller: Controller[Any], app: AppConfig, registry: CommandRegistry) -> list[Command]:
    """The commands that every server has, for the control sockets of one app."""
    lifecycle = LifecycleCommands(controller, app, registry)
    return [
        *commands_of(lifecycle),
        *commands_of(InspectionCommands(controller, app)),
        *commands_of(DescribeCommands(controller, app)),
        *commands_of(ProfileCommands(controller, app)),
        *commands_of(DrainCommands(controller)),
        *commands_of(WorkerCommands(controller, app)),
        *commands_of(DoctorCommands(controller, app)),
        *commands_of(LogCommands(controller)),
        *commands_of(MetricsCommands(controller, app)),
        # Its name is the specification's, and no Python name.
        Command(
            DISCOVER,
            lifecycle.discover,
            (),
            "The OpenRPC document of this server.",
            "observe",
            "one",
            True,
            {"type": "object"},
        ),
    ]


class LifecycleCommands:
    """Stop and reload, and what the server is and can do."""

    def __init__(self, controller: Controller[Any], app: AppConfig, registry: CommandRegistry) -> None:
        self._controller = controller
        self._app = app
        self._registry = registry

    @builtin("observe")
    def ping(self, call: Call) -> dict[str, Any]:
        """Answer at once: the server's pid and version, and the pid of its hub if it has one."""
        answer = {
            "pong": True,
            "protocol": VERSION,
            "pid": self._controller.pid,
            "version": self._app.versions["flask_ctl"],
        }
        return answer if self._controller.hub_pid is None else {**answer, "hub": self._controller.hub_pid}

    @builtin("observe")
    def status(self, call: Call) -> Any:
        """What the server is, does and has done."""
        return self._controller.status(self._app)

    @builtin("observe")
    def history(self, call: Call) -> dict[str, Any]:
        """The start and the last reloads: when, by whom, how long, with what outcome, and of which directory."""
        return {"history": self._controller.history()}

    @builtin("operate", Impact("high", "it ends the server"))
    def stop(
        self, call: Call, mode: Mode = "graceful", grace: float | None = None, delay: float = 0.0, begin: bool = True
    ) -> Future[dict[str, Any]]:
        """End the server once its requests are answered, or grace has passed."""
        _refuse_negative(grace=grace, delay=delay)
        explicit = grace is not None
        request = StopRequest(mode, self._app.grace if grace is None else grace, call.peer.describe(), delay, explicit)
        # A follower's own mode and grace must not count: it may have gone when another one's stop begins.
        progress = call.progress
        stopped = self._controller.stop(request, progress) if begin else self._controller.follow_stop(progress)
        supervisor = self._controller.supervisor
        return then(stopped, lambda result: {**result, "supervisor": supervisor})

    @builtin("operate", RELOAD_IMPACT)
    def reload(
        self,
        call: Call,
        what: Literal["code", "config"] = "code",
        grace: float | None = None,
        cut: bool = False,
        preflight: bool = True,
    ) -> Future[dict[str, Any]]:
        """Serve the program's new code; or only run the app's reload hooks."""
        if what == "config":
            return self._controller.reload_config()
        if call.reply is None:
            raise CommandError("a reload of the code can't be part of a batch", code=NOT_SUPPORTED)
        _refuse_negative(grace=grace)
        grace = self._app.grace if grace is None else grace
        request = ReloadRequest(grace, cut, preflight, self._app.preflight_timeout, call.peer.describe())
        return self._controller.reload(request, call.reply, call.progress)

    @builtin("observe")
    def commands(self, call: Call) -> dict[str, Any]:
        """Every command with its summary, role, scope, parameters and result."""
        return {command.name: command.describe() for command in sorted(self._registry, key=lambda c: c.name)}

    @builtin("observe")
    def cancel(self, call: Call, subscription: int) -> dict[str, bool]:
        """End a stream of this connection; whether there was one with that number."""
        if call.reply is None:
            raise CommandError("a stream can't be ended in a batch", code=NOT_SUPPORTED)
        return {"cancelled": call.reply.connection.cancel(subscription)}

    def discover(self, call: Call) -> dict[str, Any]:
        """The OpenRPC document of this server."""
        return describe(f"{self._app.name}, controlled by flask-ctl", self._app.versions["flask_ctl"], self._registry)


def _refuse_negative(**seconds: float | None) -> None:
    for name, value in seconds.items():
        if value is not None and value < 0:
            raise invalid_parameter(name, "must be 0 or more seconds")
