"""How a worker describes itself and its apps to the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def by_key(apps: Sequence[ServedApp]) -> dict[str, ServedApp]:
    """The apps by a key that is unique in one server, and the same in all of its workers and after a reload."""
    found: dict[str, ServedApp] = {}
    for app in apps:
        same = sum((other.name, other.root_path) == (app.name, app.root_path) for other in found.values())
        found[f"{app.name} {app.root_path} {same}"] = app
    return found


def _absolute(endpoint: str) -> str:
    """The address with an absolute path; a malformed one is left for the hub to report."""
    try:
        return str(parse_address(endpoint))
    except ConfigurationError:
        return endpoint
