"""The commands that tell what the server is made of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from ..dispatch.commands import Impact
from ..dispatch.futures import then
from ..dispatch.replies import Call
from ..inspection.questions import Answer, gathered
from .app import AppConfig
from .builtin import builtin
from .controller import Controller

SHARED = ("cgroup ", "user")
"""To what a limit applies that several processes share."""


class DescribeCommands:
    """How the serving processes of one app were started, and what they may use; which URLs the app has."""

    def __init__(self, controller: Controller[Any], app: AppConfig) -> None:
        self._controller = controller
        self._app = app

    @builtin("inspect", Impact("low"))
    def describe(self, call: Call, worker: int | None = None) -> Future[dict[str, Any]]:
        """How the server was started: program, directory, settings with their origin; its limits and memory."""

        def merge(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            return {
                "app": self._app.name,
                "pid": self._controller.pid,
                "directory": self._directory(),
                "commit": self._controller.commit,
                "programs": once(found, "program"),
                "settings": once(found, "settings"),
                "left_out": sum(one["left_out"] for one in found),
                "limits": _limits(found),
                "processes": [{name: one[name] for name in ("worker", "memory", "gc")} for one in found],
                "unanswered": errors,
            }

        return then(self._controller.processes.ask(self._app, "describe", {}, worker), merge)

    @builtin("observe", Impact("low"))
    def routes(self, call: Call, worker: int | None = None) -> Future[dict[str, Any]]:
        """The app's routes: rule, methods and endpoint."""

        def merge(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            left_out = max((one["left_out"] for one in found), default=0)
            return {"routes": once(found, "routes"), "left_out": left_out, "unanswered": errors}

        return then(self._controller.processes.ask(self._app, "routes", {}, worker), merge)

    def _directory(self) -> dict[str, str] | None:
        directory = self._controller.start_directory
        if directory is None:
            return None
        return {"path": directory.path, "loaded": directory.real, "now": os.path.realpath(directory.path)}


def once(answers: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The objects that the processes have under that name, equal ones once.

    Those that are not the same in every process have the pids of their ``workers``.
    """
    found: dict[str, dict[str, Any]] = {}
    pids: dict[str, list[int]] = {}
    for answer in answers:
        value = answer[name]
        for item in value if isinstance(value, list) else [value]:
            key = json.dumps(item, sort_keys=True)
            found.setdefault(key, item)
            pids.setdefault(key, []).append(answer["worker"])
    everywhere = len(answers)
    return [item if len(pids[key]) == everywhere else {**item, "workers": pids[key]} for key, item in found.items()]


def _limits(answers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The limits of each process; of those that processes share the reading with the most in use."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for answer in answers:
        for limit in answer["limits"]:
            of = limit["of"]
            shared = of.startswith(SHARED) or limit["limit"] == "backlog"
            row = limit if shared else {**limit, "worker": answer["worker"]}
            key = (limit["limit"], of, None if shared else answer["worker"])
            known = found.get(key)
            if known is None or (known["used"] or 0) < (row["used"] or 0):
                found[key] = row
    order = ["descriptors", "threads", "backlog", "memory"]
    return sorted(found.values(), key=lambda row: order.index(row["limit"]))
