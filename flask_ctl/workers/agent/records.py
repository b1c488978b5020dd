"""How a worker describes itself and its apps to the hub."""

from __future__ import annotations

import os
from dataclasses import fields

from ...errors import ConfigurationError
from ...lifecycle.app import AppConfig, ServedApp
from ...system.addresses import parse_address
from ...transports.factory import CurveFiles
from ..messages import AppRecord


def record_of(key: str, app: ServedApp) -> AppRecord:
    """What the hub has to know of an app; paths are absolute, because it is in another directory."""
    config = {field.name: getattr(app, field.name) for field in fields(AppConfig)}
    config["endpoints"] = [_absolute(endpoint) for endpoint in app.endpoints]
    config["curve"] = CurveFiles(*(path and os.path.abspath(path) for path in (app.curve.key, app.curve.clients)))
    commands = {command.name: command.describe() for command in app.commands}
    return AppRecord(**config, key=key, commands=commands, has_registries=bool(app.registries))


def _absolute(endpoint: str) -> str:
    """The address with an absolute path; a malformed one is left for the hub to report."""
    try:
        return str(parse_address(endpoint))
    except ConfigurationError:
        return endpoint
