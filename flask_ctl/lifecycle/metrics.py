"""The command `metrics`: what the processes have counted, and what is known of the server itself."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any, NamedTuple

from ..dispatch.replies import Call
from ..inspection.metrics import LEFT_OUT, Family, Sample, family
from .app import AppConfig
from .builtin import builtin
from .state import DRAINING, State

COLLECT_TIMEOUT = 1.0
"""Seconds for the registries of an app; after that the figures of the last time are told."""


STATES = [*(state.value for state in State if state is not State.STOPPED), DRAINING]


class Measured(NamedTuple):
    """What the processes that serve an app have counted.

    `workers` are the stable numbers of the workers by pid, `stale` are those of them whose figures are of an earlier
    time. `ended` are the numbers of workers that ended with and without a last snapshot. None and empty for a process
    that serves by itself.
    """

    families: list[Family]
    unanswered: list[dict[str, Any]]
    left_out: int
    workers: Mapping[int, str] = {}
    stale: frozenset[int] = frozenset()
    ended: tuple[int, int] | None = None


class MetricsCommands:
    """The metrics of one app."""

    def __init__(self, controller: Any, app: AppConfig) -> None:
        self._controller = controller
        self._app = app

    @builtin("observe")
    def metrics(self, call: Call) -> Future[dict[str, Any]]:
        """Requests, durations, workers, reloads, processes, and the app's own metrics."""
        metrics: Future[dict[str, Any]] = self._controller.metrics(self._app)
        return metrics


def result_of(status: Mapping[str, Any], measured: Measured, failed_reloads: int) -> dict[str, Any]:
    """The answer to `metrics`; `status` is that of the server."""
    left_out = family(LEFT_OUT, "gauge", "Samples for which there was no room.", [["", {}, measured.left_out]])
    families = [*_server_families(status, failed_reloads), *_worker_families(status, measured), left_out]
    return {"families": [*families, *measured.families], "unanswered": measured.unanswered}


def _server_families(status: Mapping[str, Any], failed_reloads: int) -> list[Family]:
    server, versions, process = status["server"], status["versions"], status["process"]
    build = {
        "app": status["app"],
        "version": versions["flask_ctl"],
        "python": versions["python"],
        "server": f"{server.get('name', '')} {server.get('version', '')}".strip(),
    }
    outcomes = {"done": status["generation"] - 1, "failed": failed_reloads}
    started_at = datetime.fromisoformat(status["started_at"].replace("Z", "+00:00")).timestamp()
    return [
        family("flask_ctl_build", "info", "The app, and versions of what serves it.", [["_info", build, 1]]),
        family(
            "flask_ctl_state",
            "stateset",
            "The state of the server.",
            [["", {"flask_ctl_state": state}, int(state == status["state"])] for state in STATES],
        ),
        family(
            "flask_ctl_start_time_seconds",
            "gauge",
            "Start of the server since the Unix epoch; reloads do not change it.",
            [["", {}, started_at]],
            unit="seconds",
        ),
        family(
            "flask_ctl_generation", "gauge", "Generation of the code that serves.", [["", {}, status["generation"]]]
        ),
        family(
            "flask_ctl_reloads",
            "counter",
            "Reloads of the code by outcome.",
            [["_total", {"outcome": outcome}, count] for outcome, count in outcomes.items()],
        ),
        family(
            "flask_ctl_process_threads", "gauge", "Threads of the serving processes.", [["", {}, process["threads"]]]
        ),
        family(
            "flask_ctl_process_open_fds",
            "gauge",
            "Open descriptors of the serving processes.",
            [["", {}, process["fds"]]] if process["fds"] is not None else [],
        ),
        family(
            "flask_ctl_control_restarts",
            "counter",
            "How often the control thread began anew after an error.",
            [["_total", {}, status["control"]["restarts"]]],
        ),
        family(
            "flask_ctl_control_sockets",
            "gauge",
            "Addresses at which the server listens for control.",
            [["", {}, len(status["control"]["sockets"])]],
        ),
    ]


def _worker_families(status: Mapping[str, Any], measured: Measured) -> list[Family]:
    resident = "flask_ctl_process_resident_memory_bytes", "gauge", "Resident memory of a serving process."
    if measured.ended is None:
        return [family(*resident, [["", {}, status["process"]["rss"]]], unit="bytes")]
    workers = [(measured.workers[one["pid"]], one) for one in status["workers"] if one["pid"] in measured.workers]
    memory: list[Sample] = [["", {"worker": n}, one["rss"]] for n, one in workers if one["rss"] is not None]
    complete, missing = measured.ended
    return [
        family(*resident, memory, unit="bytes"),
        family("flask_ctl_workers", "gauge", "Workers that serve.", [["", {}, len(status["workers"])]]),
        family(
            "flask_ctl_workers_expected",
            "gauge",
            "Workers that the server's settings ask for.",
            [["", {}, status["workers_expected"]]],
        ),
        family(
            "flask_ctl_worker_generation",
            "gauge",
            "Generation of the code of a worker.",
            [["", {"worker": number}, one["generation"]] for number, one in workers],
        ),
        family(
            "flask_ctl_worker_stale",
            "gauge",
            "Whether the figures of a worker are of an earlier time, because it has not answered.",
            [["", {"worker": number}, int(one["pid"] in measured.stale)] for number, one in workers],
        ),
        family(
            "flask_ctl_workers_ended",
            "counter",
            "Workers that have ended; without a last snapshot what they counted at the end is missing in all counters.",
            [["_total", {"last_snapshot": "yes"}, complete], ["_total", {"last_snapshot": "no"}, missing]],
        ),
    ]
