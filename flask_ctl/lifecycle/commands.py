"""The commands that every server answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

from ..dispatch.commands import Command, CommandRegistry, Role, command_from, invalid_parameter
from ..dispatch.openrpc import DISCOVER, describe
from ..dispatch.replies import Call
from ..errors import NOT_SUPPORTED, CommandError
from ..protocol import VERSION
from .app import AppConfig
from .controller import Controller
from .reload import ReloadRequest
from .results import RESULTS
from .stop import Mode, StopRequest


def builtin_commands(controller: Controller[Any], app: AppConfig, registry: CommandRegistry) -> list[Command]:
    """The commands in RESULTS and `rpc.discover`, for the control sockets of one app."""

    def ping(call: Call) -> dict[str, Any]:
        """Answer at once: the server's pid and version, and the pid of its hub if it has one."""
        answer = {"pong": True, "protocol": VERSION, "pid": controller.pid, "version": app.versions["flask_ctl"]}
        return answer if controller.hub_pid is None else {**answer, "hub": controller.hub_pid}

    def status(call: Call) -> Any:
        """What the server is, does and has done."""
        return controller.status(app)

    def stop(
        call: Call, mode: Mode = "graceful", grace: float | None = None, delay: float = 0.0
    ) -> Future[dict[str, Any]]:
        """End the server once its requests are answered, or grace has passed."""
        _refuse_negative(grace=grace, delay=delay)
        explicit = grace is not None
        request = StopRequest(mode, app.grace if grace is None else grace, call.peer.describe(), delay, explicit)
        return controller.stop(request, call.progress)

    def reload(
        call: Call,
        what: Literal["code", "config"] = "code",
        grace: float | None = None,
        cut: bool = False,
        preflight: bool = True,
    ) -> Future[dict[str, Any]]:
        """Serve the program's new code; or only run the app's reload hooks."""
        if what == "config":
            return controller.reload_config()
        if call.reply is None:
            raise CommandError("a reload of the code can't be part of a batch", code=NOT_SUPPORTED)
        _refuse_negative(grace=grace)
        grace = app.grace if grace is None else grace
        request = ReloadRequest(grace, cut, preflight, app.preflight_timeout, call.peer.describe())
        return controller.reload(request, call.reply, call.progress)

    def commands(call: Call) -> dict[str, Any]:
        """Every command with its summary, role, scope, parameters and result."""
        return {command.name: command.describe() for command in sorted(registry, key=lambda c: c.name)}

    def discover(call: Call) -> dict[str, Any]:
        """The OpenRPC document of this server."""
        return describe(f"{app.name}, controlled by flask-ctl", app.versions["flask_ctl"], registry)

    roles: dict[Role, list[Callable[..., Any]]] = {"observe": [ping, status, commands], "operate": [stop, reload]}
    return [
        *(
            command_from(function, role=role, scope="one", builtin=True, result=RESULTS[function.__name__])
            for role, functions in roles.items()
            for function in functions
        ),
        # Its name is the specification's, and no Python name.
        Command(
            DISCOVER, discover, (), "The OpenRPC document of this server.", "observe", "one", True, {"type": "object"}
        ),
    ]


def _refuse_negative(**seconds: float | None) -> None:
    for name, value in seconds.items():
        if value is not None and value < 0:
            raise invalid_parameter(name, "must be 0 or more seconds")
