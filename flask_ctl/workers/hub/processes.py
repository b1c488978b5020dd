"""What the built-in commands ask of the workers, and of what the hub keeps of those that have ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from ...dispatch.futures import chain, gather, then
from ...dispatch.streams import Stream
from ...errors import CommandError
from ...inspection.feeds import StreamStart, read
from ...inspection.questions import Answer
from ...inspection.ring import Ring
from ...lifecycle.metrics import COLLECT_TIMEOUT, Measured
from ...lifecycle.processes import Processes
from ...system.native import new_future
from ..messages import AppRecord
from .history import HubHistory
from .left import LeftFeeds
from .metrics import Merges
from .requests import Outcome, WorkerRequests
from .silence import explained
from .stream import Place, Reader, WorkersStream
from .table import Snapshot, Worker

INSPECTION_TIMEOUT = 2.0
"""Seconds for a worker to answer a question about itself; a thread of its own does so, unless the GIL is held."""


class WorkerProcesses(Processes):
    """The workers of one master."""

    def __init__(
        self,
        requests: WorkerRequests,
        left: LeftFeeds,
        history: HubHistory,
        call_soon: Callable[..., Any],
    ) -> None:
        self._requests = requests
        self._left = left
        self._history = history
        self._call_soon = call_soon
        self._merges = Merges(history.metrics, call_soon)
        # Numbers of items begin anew with each hub.
        self._epoch = os.urandom(8).hex()

    def ask(self, app: AppRecord, question: str, params: Mapping[str, Any], pid: int | None) -> Future[list[Answer]]:
        every = self._requests.workers
        workers = list(every) if pid is None else [every.named(pid, "worker")]
        asked = {"app": app.key, "question": question, "params": params}
        outcomes = self._requests.ask(workers, "answer", asked, time.monotonic() + INSPECTION_TIMEOUT)
        answers = then(outcomes, lambda outcomes: [Answer(worker.pid, value) for worker, value in outcomes])
        if question == "exceptions" and pid is None:
            past = every.past_exceptions
            return then(answers, lambda answers: [Answer(os.getpid(), past(app.key)), *answers])
        return explained(answers, self._call_soon) if question == "stacks" else answers

    def run_chore(self, name: str, params: Mapping[str, Any], deadline: float) -> Future[list[Answer]]:
        asked = self._requests.ask(list(self._requests.workers), "chore", {"name": name, "params": params}, deadline)
        return then(asked, lambda outcomes: [Answer(worker.pid, value) for worker, value in outcomes])

    def measure(self, app: AppRecord) -> Future[Measured]:
        workers, errors = list(self._requests.workers), dict[int, str]()

        def note(worker: Worker, own: str = "", registered: str = "") -> None:
            # At once: it may end before the others have answered.
            before = worker.snapshots.get(app.key, Snapshot())
            worker.snapshots[app.key] = Snapshot(own or before.own, registered or before.registered)

        def ask(method: str, params: dict[str, Any], on_answer: Callable[[Worker, Any], Any]) -> Future[Any]:
            asked = self._requests.ask(workers, method, params, time.monotonic() + COLLECT_TIMEOUT, on_answer)

            def note_errors(outcomes: list[Outcome]) -> None:
                errors.update(
                    {worker.pid: value.message for worker, value in outcomes if isinstance(value, CommandError)}
                )

            return then(asked, note_errors)

        question = {"app": app.key, "question": "metrics", "params": {}}
        asked = [ask("answer", question, lambda worker, answer: note(worker, own=answer[0]["own"]))]
        if app.has_registries:
            asked.append(ask("collect", {"app": app.key}, lambda worker, text: note(worker, registered=str(text))))
        # Of those that live now, as what the others have counted is in the totals.
        measured: Future[Measured] = chain(gather(asked), lambda: self._merges.measured(app.key))

        def with_errors(found: Measured) -> Measured:
            unanswered = [{"worker": pid, "error": error} for pid, error in errors.items()]
            return found._replace(unanswered=unanswered, stale=frozenset(errors))

        return then(measured, with_errors)

    def stream(
        self, app: AppRecord, name: str, wanted: Mapping[str, Any], start: StreamStart, pid: int | None
    ) -> Stream:
        if pid is not None and not any(self._left.of(name, pid)):
            self._requests.workers.named(pid, "worker")
        lines = None if start.epoch else start.lines

        def options(place: Place | None, room: int, late: float | None) -> dict[str, Any]:
            asked: dict[str, Any] = {"name": name, "wanted": dict(wanted), "follow": start.follow, "room": room}
            if place is not None:
                return {**asked, "after": place.after, "quiet": place.quiet}
            if late is not None:
                return {**asked, "wanted": {**wanted, "since": max(late, wanted["since"])}}
            return {**asked, "lines": lines}

        def reader(worker: Worker) -> Reader:
            def read_worker(*step: Any) -> Future[list[Answer]]:
                return self.ask(app, "read", options(*step), worker.pid)

            return Reader(worker.pid, worker.generation, read_worker, worker.number)

        def reader_here(pid: int, generation: int, number: int = 0, ring: Ring | None = None) -> Reader:
            def read_here(*step: Any) -> Future[list[Answer]]:
                answers: Future[list[Answer]] = new_future()
                answers.set_result([Answer(pid, read(app, **options(*step), ring=ring))])
                return answers

            return Reader(pid, generation, read_here, number, ended=ring is not None)

        def readers() -> list[Reader]:
            own = [reader_here(0, self._history.generation)] if pid is None and name == "events" else []
            ended = [reader_here(one.pid, one.generation, one.number, ring) for one, ring in self._left.of(name, pid)]
            return [*own, *ended, *(reader(worker) for worker in self._requests.workers if pid in (None, worker.pid))]

        head = {"epoch": self._epoch, "generation": self._history.generation}
        return WorkersStream(name, start, head, readers, one=pid is not None)
