"""An app under control: its settings, and what its process has to know to control it. Nothing here is Flask's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..dispatch.commands import Command
from ..dispatch.guard import Guard
from ..dispatch.limits import Limits
from ..dispatch.policy import Policy
from ..errors import ConfigurationError, InsecureConfiguration
from ..fleet.settings import FleetSettings
from ..inspection.exceptions import ExceptionTable
from ..inspection.registries import Registries
from ..servers.middleware import RequestCounter
from ..system.addresses import parse_address
from ..system.threads import ThreadExceptions
from ..transports.base import Listener
from ..transports.factory import CurveFiles, make_listener

WATCHDOG_REQUEST = 60.0

logger = logging.getLogger("flask_ctl")


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """An app's settings; nothing in them belongs to one process, so that they can be sent to another one as JSON."""

    name: str
    root_path: str
    endpoints: list[str]
    """The addresses to listen at."""
    required: bool
    """Whether the app is not to serve without a control socket."""
    grace: float
    """Seconds that a stop or a reload waits for requests, if its caller does not say."""
    preflight_timeout: float
    """Seconds for the new code to load."""
    versions: dict[str, str]
    policy: Policy
    limits: Limits
    curve: CurveFiles
    watchdog_request: float = WATCHDOG_REQUEST
    """Seconds that a request may take before the service manager's watchdog is fed only if others are answered."""
    fleet: FleetSettings | None = None
    """The NATS servers over which the app is controlled, too; None without."""
    by_default: bool = False
    """Whether the address is the app's default socket, because no other one was given."""


@dataclass(frozen=True, kw_only=True)
class ServedApp(AppConfig):
    """An app that this process serves: settings, commands, counts, and the ways to call its functions."""

    requests: RequestCounter
    registries: Registries
    """Of prometheus_client, with the app's own metrics."""
    exceptions: ExceptionTable
    commands: Sequence[Command]
    stop_hooks: Sequence[Callable[[], Any]]
    reload_hooks: Sequence[Callable[[], Any]]
    run_command: Callable[[Callable[..., Any], dict[str, Any]], Any]
    """Calls a function in the app's context; the result is JSON."""
    run_hook: Callable[[Callable[[], Any]], Any]
    """Calls a function in the app's context."""
    ready_hooks: Sequence[Callable[[], Any]] = ()
    drain_hooks: Sequence[Callable[[], Any]] = ()
    slow_request: float = 0.0
    """Seconds after which a request is an event; 0 for never."""
    log_ring: int = 0
    """Log records of a kind that are kept."""
    settings: Callable[[], list[dict[str, Any]]] = list
    """Gives the app's settings with their origin, without secrets; any thread may call it."""
    routes: Callable[[], list[dict[str, Any]]] = list
    """Gives the app's URL rules, likewise."""
    watch_routes: Callable[[Callable[[str], Any]], Callable[[], Any]] = lambda note: lambda: None
    """Has a function called with method and rule, in what answers a request, once Flask has found these; ends that."""
    directory: str | None = None
    """The directory in which a reload starts the program, None for the one in which it was started."""


def by_key(apps: Sequence[ServedApp]) -> dict[str, ServedApp]:
    """The apps by a key that is unique in one server, and the same in all of its workers and after a reload."""
    found: dict[str, ServedApp] = {}
    for app in apps:
        same = sum((other.name, other.root_path) == (app.name, app.root_path) for other in found.values())
        found[f"{app.name} {app.root_path} {same}"] = app
    return found


def note_thread_exceptions(apps: Sequence[ServedApp]) -> ThreadExceptions:
    """Note the exceptions that end threads of this process, for each of its apps, until `end`."""

    def note(error: BaseException) -> None:
        for app in apps:
            app.exceptions.note(error, "thread")

    return ThreadExceptions(note)


def listener_at(app: AppConfig, endpoint: str, guard: Guard, master: int | None = None) -> Listener:
    """A listener for one of the app's addresses, not opened yet. Raises ConfigurationError like `make_listener`."""
    return make_listener(parse_address(endpoint), guard, app.curve, master)


def refuse_insecure(app: AppConfig) -> None:
    """Raises InsecureConfiguration for an address with which the app would not start; nothing is bound."""
    guard = Guard(app.policy, app.limits)
    for endpoint in app.endpoints:
        try:
            listener_at(app, endpoint, guard).check()
        except InsecureConfiguration:
            raise
        except ConfigurationError as error:
            logger.debug("%s can't be checked: %s", endpoint, error.message)
