"""An app as it is served: what has to be known of it to control it. Nothing here is Flask's."""

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


@dataclass(frozen=True)
class ServedApp:
    """An app's settings and commands, its counter, and the ways to call its functions."""

    name: str
    root_path: str
    requests: RequestCounter
    commands: Sequence[Command]
    stop_hooks: Sequence[Callable[[], Any]]
    reload_hooks: Sequence[Callable[[], Any]]
    run_command: Callable[[Callable[..., Any], dict[str, Any]], Any]
    """Calls a function in the app's context; the result is JSON."""
    run_hook: Callable[[Callable[[], Any]], Any]
    """Calls a function in the app's context."""
    endpoints: Sequence[str]
    required: bool
    policy: Policy
    curve: CurveFiles
    limits: Limits
    grace: float
    preflight_timeout: float
    versions: dict[str, str]
    directory: str | None = None
    """Where the program is to be started anew, None for wherever it was started."""
    by_default: bool = False
    """Whether it is to listen at its default socket, since nobody has given an address."""


def listener_at(app: ServedApp, endpoint: str, guard: Guard) -> Listener:
    """A listener for one of the app's addresses, not opened yet. Raises ConfigurationError like `make_listener`."""
    return make_listener(parse_address(endpoint), guard, app.curve)


def refuse_insecure(app: ServedApp) -> None:
    """Raises InsecureConfiguration for an address with which the app would not start; nothing is bound."""
    guard = Guard(app.policy, app.limits)
    for endpoint in app.endpoints:
        try:
            listener_at(app, endpoint, guard).check()
        except InsecureConfiguration:
            raise
        except ConfigurationError as error:
            logger.debug("%s can't be checked: %s", endpoint, error.message)
