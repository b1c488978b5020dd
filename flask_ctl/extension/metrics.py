"""`Control.metrics`: the metrics of the app in a view of its own, and the registries that it adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, has_request_context, request

from ..inspection.exposition import exposition
from ..inspection.metrics import own_families
from ..inspection.registries import Registries

VIEW_TIMEOUT = 5.0
"""Seconds for the answer to a view."""


class Metrics:
    """The metrics of the apps of one Control."""

    def __init__(self, registries: Registries, app: Callable[[], Flask]) -> None:
        """`app` gives the app whose context this is, or the only one."""
        self._registries = registries
        self._app = app

    def register(self, registry: Any, aggregates: Mapping[str, str] | None = None) -> None:
        """Show a registry of prometheus_client, too; before the app is served.

        With several workers counters, histograms and summaries are summed, ended workers included. A gauge is shown for
        each worker, with the label ``worker`` (a stable number), or as its ``multiprocess_mode`` declares: ``sum``,
        ``max``, ``min``, or ``mostrecent``, which is the newest worker's here. `aggregates` says it by the name of the
        gauge: ``each``, ``sum``, ``max``, ``min`` or ``last``. No multiprocess directory is needed. Names that begin
        with ``flask_ctl_`` are ours. Raises ValueError for another aggregate.
        """
        self._registries.add(registry, aggregates or {})

    def __call__(self) -> Response:
        """View for Prometheus, in the format that its header Accept prefers; of all workers.

        ``app.add_url_rule("/metrics", "metrics", control.metrics)`` puts it where the scraper looks, who has to be
        the only one who can reach it. Raises ConfigurationError without prometheus_client (the extra ``metrics``).
        """
        accept = request.headers.get("Accept", "") if has_request_context() else ""
        text, content_type = exposition(self.read()["families"], accept)
        response = Response(text, content_type=content_type)
        response.vary.add("Accept")
        return response

    def read(self) -> dict[str, Any]:
        """What `ControlClient.metrics` returns; of this process alone where no server under control serves the app.

        Raises TimedOut if the server does not answer.
        """
        state: Any = self._app().extensions["ctl"]
        for instance in state.instances():
            result: dict[str, Any] = instance.read_metrics(state.requests, VIEW_TIMEOUT)
            return result
        return {"families": [*own_families(state.requests), *self._registries.families()], "unanswered": []}
