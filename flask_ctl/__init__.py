"""Stop, inspect and reload a Flask app from another process, over a control socket.

The names here are loaded when they are used, so that a client loads neither Flask nor a server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import prepare_server, servers
    from .adapters.programs import server_program
    from .background import BackgroundServer
    from .client import ControlClient
    from .discovery import find_instance, find_instance_of, live_instances
    from .errors import (
        AccessDenied,
        AmbiguousTarget,
        CommandError,
        ConfigurationError,
        ControlError,
        InsecureConfiguration,
        LocalProtocolError,
        NotRunning,
        ProtocolError,
        ReloadFailed,
        RemoteProtocolError,
        ServerDied,
        TimedOut,
        WrongScheme,
    )
    from .extension import Control
    from .keys import write_key_pair
    from .reload.preflight import preflighting
    from .render import render_result

_MODULES = {
    "AccessDenied": "errors",
    "AmbiguousTarget": "errors",
    "BackgroundServer": "background",
    "CommandError": "errors",
    "ConfigurationError": "errors",
    "Control": "extension",
    "ControlClient": "client",
    "ControlError": "errors",
    "InsecureConfiguration": "errors",
    "LocalProtocolError": "errors",
    "NotRunning": "errors",
    "ProtocolError": "errors",
    "ReloadFailed": "errors",
    "RemoteProtocolError": "errors",
    "ServerDied": "errors",
    "TimedOut": "errors",
    "WrongScheme": "errors",
    "find_instance": "discovery",
    "find_instance_of": "discovery",
    "live_instances": "discovery",
    "preflighting": "reload.preflight",
    "prepare_server": "adapters",
    "render_result": "render",
    "server_program": "adapters.programs",
    "servers": "adapters",
    "write_key_pair": "keys",
}

__all__ = [
    "AccessDenied",
    "AmbiguousTarget",
    "BackgroundServer",
    "CommandError",
    "ConfigurationError",
    "Control",
    "ControlClient",
    "ControlError",
    "InsecureConfiguration",
    "LocalProtocolError",
    "NotRunning",
    "ProtocolError",
    "ReloadFailed",
    "RemoteProtocolError",
    "ServerDied",
    "TimedOut",
    "WrongScheme",
    "find_instance",
    "find_instance_of",
    "live_instances",
    "preflighting",
    "prepare_server",
    "render_result",
    "server_program",
    "servers",
    "write_key_pair",
]


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
