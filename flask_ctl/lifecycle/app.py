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
from ..servers.middleware import RequestCounter
from ..system.addresses import parse_address
from ..transports.base import Listener
from ..transports.factory import CurveFiles, make_listener

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
    by_default: bool = False
    """Whether the address is the app's default socket, because no other one was given."""


@dataclass(frozen=True, kw_only=True)
class ServedApp(AppConfig):
    """An app that this process serves: its settings and commands, its counter, and the ways to call its functions."""

    requests: RequestCounter
    commands: Sequence[Command]
    stop_hooks: Sequence[Callable[[], Any]]
    reload_hooks: Sequence[Callable[[], Any]]
    run_command: Callable[[Callable[..., Any], dict[str, Any]], Any]
    """Calls a function in the app's context; the result is JSON."""
    run_hook: Callable[[Callable[[], Any]], Any]
    """Calls a function in the app's context."""
    directory: str | None = None
    """The directory in which a reload starts the program, None for the one in which it was started."""


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
