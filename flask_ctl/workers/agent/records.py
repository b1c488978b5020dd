"""How a worker describes itself and its apps to the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

from ...errors import ConfigurationError
from ...lifecycle.app import ServedApp
from ...system.addresses import parse_address
from ..messages import AppRecord


def record_of(key: str, app: ServedApp) -> AppRecord:
    """What the hub has to know of an app; paths are absolute, because it is in another directory."""
    return AppRecord(
        key=key,
        name=app.name,
        root_path=app.root_path,
        endpoints=[_absolute(endpoint) for endpoint in app.endpoints],
        required=app.required,
        grace=app.grace,
        preflight_timeout=app.preflight_timeout,
        versions=app.versions,
        commands={command.name: command.describe() for command in app.commands},
        policy=app.policy.as_json(),
        limits=asdict(app.limits),
        curve={name: path and os.path.abspath(path) for name, path in app.curve._asdict().items()},
        by_default=app.by_default,
    )


def by_key(apps: Sequence[ServedApp]) -> dict[str, ServedApp]:
    """The apps by what tells those of one server from each other, in all of its workers and through reloads."""
    found: dict[str, ServedApp] = {}
    for app in apps:
        same = sum((other.name, other.root_path) == (app.name, app.root_path) for other in found.values())
        found[f"{app.name} {app.root_path} {same}"] = app
    return found


def current_directory() -> str:
    """The working directory, empty if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _absolute(endpoint: str) -> str:
    """The address, for a process in another directory; one that is none is the hub's to complain of."""
    try:
        return str(parse_address(endpoint))
    except ConfigurationError:
        return endpoint
