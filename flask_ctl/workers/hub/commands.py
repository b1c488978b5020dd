"""The commands of a hub: the built-in ones are its own, the app's go to the workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ...dispatch.commands import Command
from ...dispatch.futures import chain, then
from ...dispatch.parameters import JSONSchema
from ...dispatch.replies import Call
from ...errors import INVALID_PARAMS, METHOD_NOT_FOUND, CommandError
from ..messages import AppRecord
from .requests import Outcome, WorkerRequests
from .table import Worker, Workers

ERROR: JSONSchema = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": {}},
    "required": ["code", "message"],
}
"""An error object (JSON-RPC 2.0, section 5.1)."""

ABSENCE = 30.0
"""Seconds to wait for a worker when none serves, unless the caller sets a time-out."""


@dataclass(frozen=True)
class RemoteCommand(Command):
    """A command of the app's: its parameters are checked where it runs."""

    description: dict[str, Any] = field(default_factory=dict)

    @property
    def parameter_names(self) -> list[str]:
        return list(self.description.get("parameters", {}).get("properties", {}))

    def bind(self, params: list[Any] | Mapping[str, Any]) -> dict[str, Any]:
        return {"params": params}

    def bind_text(self, params: Mapping[str, str]) -> dict[str, Any]:
        return {"texts": dict(params)}

    def describe(self) -> dict[str, Any]:
        return self.description

    def result_schema(self) -> JSONSchema:
        outcome = {"pid": {"type": "integer"}, "result": self.description.get("result", {}), "error": ERROR}
        item = {"type": "object", "properties": outcome, "required": ["pid"]}
        return {"type": "array", "items": item}


def remote_commands(requests: WorkerRequests, app: AppRecord) -> list[Command]:
    """An app's own commands, to be run by its workers."""
    return [_remote(requests, app.key, name, description) for name, description in app.commands.items()]


def _remote(requests: WorkerRequests, key: str, name: str, description: dict[str, Any]) -> RemoteCommand:
    scope = description.get("scope", "each")

    def run(call: Call, **arguments: Any) -> Future[list[dict[str, Any]]]:
        seconds = call.timeout
        deadline = time.monotonic() + seconds
        pid = call.meta.get("_pid")
        if pid is not None:
            return ask([requests.workers.named(pid, "_pid")], arguments, deadline)
        # Between two workers, as by gunicorn's --max-requests, there may be none for a moment.
        available = requests.when_a_worker_serves(time.monotonic() + min(seconds, ABSENCE))
        return chain(available, lambda: ask(_workers_for(requests.workers, scope), arguments, deadline))

    def ask(workers: list[Worker], arguments: dict[str, Any], deadline: float) -> Future[list[dict[str, Any]]]:
        return then(requests.ask(workers, "call", {"app": key, "name": name, **arguments}, deadline), _as_result)

    return RemoteCommand(
        name,
        run,
        (),
        summary=description.get("summary", ""),
        role=description.get("role", "operate"),
        scope=scope,
        builtin=True,
        description=description,
    )


def _workers_for(workers: Workers, scope: str) -> list[Worker]:
    """The workers that a call is for: the least busy one, or each."""
    if scope == "one":
        return [min(workers, key=lambda worker: (worker.figures.in_flight, -worker.heard))]
    return list(workers)


def _as_result(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """``{"pid", "result"}`` or ``{"pid", "error"}`` for each; raises the error with which all refuse the call."""
    refusals = {result.code for _, result in outcomes if isinstance(result, CommandError)}
    if len(refusals) == 1 and refusals <= {INVALID_PARAMS, METHOD_NOT_FOUND}:
        first = outcomes[0][1]
        if all(isinstance(result, CommandError) for _, result in outcomes):
            raise first
    return [{"pid": worker.pid, **_described(result)} for worker, result in outcomes]


def _described(result: Any) -> dict[str, Any]:
    if not isinstance(result, CommandError):
        return {"result": result}
    error: dict[str, Any] = {"code": result.code, "message": result.message}
    return {"error": error if result.data is None else {**error, "data": result.data}}
