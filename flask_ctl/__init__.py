"""Stop, inspect and reload a Flask app from another process, over a control socket.

The names here are loaded when they are used, so that a client loads neither Flask nor a server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.client import ControlClient
    from .client.discovery import find_instance, find_instance_of, live_instances
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
        ServerReloaded,
        TimedOut,
        WrongScheme,
    )
    from .extension.background import BackgroundServer
    from .extension.control import Control
    from .protocol.text import render_result
    from .servers.launch import server_program
    from .servers.registry import prepare_server, server_names
    from .system.preflight import preflighting
    from .transports.zeromq.curve import write_key_pair

_MODULES = {
    "AccessDenied": "errors",
    "AmbiguousTarget": "errors",
    "BackgroundServer": "extension.background",
    "CommandError": "errors",
    "ConfigurationError": "errors",
    "Control": "extension.control",
    "ControlClient": "client.client",
    "ControlError": "errors",
    "InsecureConfiguration": "errors",
    "LocalProtocolError": "errors",
    "NotRunning": "errors",
    "ProtocolError": "errors",
    "ReloadFailed": "errors",
    "RemoteProtocolError": "errors",
    "ServerDied": "errors",
    "ServerReloaded": "errors",
    "TimedOut": "errors",
    "WrongScheme": "errors",
    "find_instance": "client.discovery",
    "find_instance_of": "client.discovery",
    "live_instances": "client.discovery",
    "preflighting": "system.preflight",
    "prepare_server": "servers.registry",
    "render_result": "protocol.text",
    "server_names": "servers.registry",
    "server_program": "servers.launch",
    "write_key_pair": "transports.zeromq.curve",
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
    "ServerReloaded",
    "TimedOut",
    "WrongScheme",
    "find_instance",
    "find_instance_of",
    "live_instances",
    "preflighting",
    "prepare_server",
    "render_result",
    "server_names",
    "server_program",
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
