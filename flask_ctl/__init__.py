"""Stop, inspect and reload a Flask app from another process, over a control socket.

The names here are loaded when they are used, so that a client loads neither Flask nor a server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The alias of the same name marks a public name (PEP 484).
    from .client.client import ControlClient as ControlClient
    from .client.discovery import find_instance as find_instance
    from .client.discovery import find_instance_of as find_instance_of
    from .client.doctor import machine_findings as machine_findings
    from .client.doctor import version_findings as version_findings
    from .client.fleet import Fleet as Fleet
    from .client.instances import LiveInstance as LiveInstance
    from .client.instances import instances_at as instances_at
    from .client.instances import live_instances as live_instances
    from .client.instances import registered_instances as registered_instances
    from .client.instances import remove_dead_instances as remove_dead_instances
    from .client.supervision import service_findings as service_findings
    from .dispatch.redaction import masked_text as masked_text
    from .errors import AccessDenied as AccessDenied
    from .errors import AmbiguousTarget as AmbiguousTarget
    from .errors import CommandError as CommandError
    from .errors import ConfigurationError as ConfigurationError
    from .errors import ControlError as ControlError
    from .errors import InsecureConfiguration as InsecureConfiguration
    from .errors import LocalProtocolError as LocalProtocolError
    from .errors import NotRunning as NotRunning
    from .errors import ProtocolError as ProtocolError
    from .errors import ReloadFailed as ReloadFailed
    from .errors import RemoteProtocolError as RemoteProtocolError
    from .errors import ServerDied as ServerDied
    from .errors import ServerReloaded as ServerReloaded
    from .errors import TimedOut as TimedOut
    from .errors import WrongScheme as WrongScheme
    from .extension.background import BackgroundServer as BackgroundServer
    from .extension.control import Control as Control
    from .extension.settings import SETTINGS as SETTINGS
    from .fleet.settings import without_secret as without_secret
    from .inspection.exposition import exposition as exposition
    from .protocol.escaping import printable as printable
    from .protocol.items import render_message as render_message
    from .protocol.profiles import render_profile as render_profile
    from .protocol.screen import render_for_terminal as render_for_terminal
    from .protocol.text import render_result as render_result
    from .servers.launch import server_program as server_program
    from .servers.registry import prepare_server as prepare_server
    from .servers.registry import server_names as server_names
    from .system.preflight import preflighting as preflighting
    from .transports.zeromq.curve import write_key_pair as write_key_pair

_NAMES = {
    "client.client": ("ControlClient",),
    "client.discovery": ("find_instance", "find_instance_of"),
    "client.fleet": ("Fleet",),
    "client.doctor": ("machine_findings", "version_findings"),
    "client.supervision": ("service_findings",),
    "dispatch.redaction": ("masked_text",),
    "client.instances": (
        "LiveInstance",
        "instances_at",
        "live_instances",
        "registered_instances",
        "remove_dead_instances",
    ),
    "errors": (
        "AccessDenied",
        "AmbiguousTarget",
        "CommandError",
        "ConfigurationError",
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
    ),
    "extension.background": ("BackgroundServer",),
    "extension.control": ("Control",),
    "extension.settings": ("SETTINGS",),
    "fleet.settings": ("without_secret",),
    "inspection.exposition": ("exposition",),
    "protocol.screen": ("render_for_terminal",),
    "protocol.items": ("render_message",),
    "protocol.profiles": ("render_profile",),
    "protocol.escaping": ("printable",),
    "protocol.text": ("render_result",),
    "servers.launch": ("server_program",),
    "servers.registry": ("prepare_server", "server_names"),
    "system.preflight": ("preflighting",),
    "transports.zeromq.curve": ("write_key_pair",),
}
"""The public names of each module."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
