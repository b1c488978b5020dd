"""The description of a server's commands as an OpenRPC document (https://spec.open-rpc.org, version 1.3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .commands import Command

OPENRPC_VERSION = "1.3.2"

DISCOVER = "rpc.discover"
"""The method that answers the document; the document does not list it."""


def describe(title: str, version: str, commands: Iterable[Command]) -> dict[str, Any]:
    """The OpenRPC document of a server with these commands. `version` is that of flask-ctl."""
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {"title": title, "version": version},
        "methods": [
            _method(command)
            for command in sorted(commands, key=lambda command: command.name)
            if command.name != DISCOVER
        ],
    }


def _method(command: Command) -> dict[str, Any]:
    described = command.describe()
    parameters = described["parameters"]
    return {
        "name": command.name,
        "summary": described["summary"],
        "paramStructure": "either",
        "params": [
            {"name": name, "required": name in parameters["required"], "schema": schema}
            for name, schema in parameters["properties"].items()
        ],
        "result": {"name": "result", "schema": command.result_schema()},
        "x-role": described["role"],
        "x-scope": described["scope"],
    }
