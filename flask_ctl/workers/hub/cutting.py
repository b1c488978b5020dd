"""The requests in flight in the workers that are about to be cut."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ...dispatch.futures import gather, then
from ...errors import RemoteProtocolError
from ...protocol.typed import from_json
from ..messages import NumberedRequest
from .requests import FIGURES_TIMEOUT, Outcome, WorkerRequests
from .table import Worker

Answers = Mapping[tuple[int, str], Mapping[int, Mapping[str, Any]]]
"""The oldest requests of each worker that has answered, by its pid and the app, and by number."""


def answers_in_flight(requests: WorkerRequests) -> Answers:
    """From another thread: ask all workers for the oldest requests of all apps, at once."""

    def ask() -> Future[list[tuple[str, list[Outcome]]]]:
        deadline = time.monotonic() + FIGURES_TIMEOUT
        apps = sorted({app for worker in requests.workers for app in worker.figures.apps})
        asked = [{"app": app, "question": "oldest", "params": {}} for app in apps]
        outcomes = gather([requests.ask(list(requests.workers), "answer", one, deadline) for one in asked])
        return then(outcomes, lambda results: list(zip(apps, results)))

    found = {}
    for app, outcomes in requests.wait_for(ask):
        for worker, answer in outcomes:
            # A worker of an older version does not know the question.
            with suppress(RemoteProtocolError):
                found[worker.pid, app] = {
                    one.number: {"method": one.method, "route": one.route, "age": one.age, "worker": worker.pid}
                    for one in from_json(list[NumberedRequest], answer, "the requests")
                }
    return found


def oldest_of(workers: Iterable[Worker]) -> dict[str, Any] | None:
    """The ``method``, ``route`` and ``age`` of the oldest request, as the workers have reported; None without one."""
    tallies = [tally for worker in workers for tally in worker.figures.apps.values()]
    oldest = max(tallies, key=lambda tally: tally.oldest or 0.0, default=None)
    if oldest is None or oldest.oldest is None or oldest.oldest_request is None:
        return None
    return {**oldest.oldest_request, "age": round(oldest.oldest, 3)}


def requests_in_flight(requests: WorkerRequests) -> dict[Hashable, Mapping[str, Any]]:
    """From another thread: the requests of `answers_in_flight`, by what tells one from all others."""
    answers = answers_in_flight(requests).items()
    return {(owner, number): request for owner, listed in answers for number, request in listed.items()}


def left_of(before: Answers, after: Answers) -> list[Mapping[str, Any]]:
    """The requests that are still in flight, or whose worker has not answered again."""
    return [
        request
        for owner, listed in before.items()
        for number, request in listed.items()
        if owner not in after or number in after[owner]
    ]
