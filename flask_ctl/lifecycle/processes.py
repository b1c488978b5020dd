"""What the built-in commands ask of the processes that serve an app, and have them do."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from ..dispatch.commands import invalid_parameter
from ..dispatch.futures import then
from ..dispatch.pool import Pool, SingleFlight
from ..dispatch.streams import Stream
from ..errors import CommandError
from ..inspection import feeds
from ..inspection.feeds import FeedStream, StreamStart
from ..inspection.levels import CHORES, levels
from ..inspection.metrics import PROCESSOR_TIME, Part, Totals, merged, own_families, unpack
from ..inspection.questions import Answer, answer
from ..system import logs
from ..system.native import new_future
from ..transports.control_thread import ControlServer
from .app import ServedApp
from .history import History
from .metrics import COLLECT_TIMEOUT, Measured

logger = logging.getLogger("flask_ctl")


class Processes(ABC):
    """The processes that serve. Belongs to the control thread."""

    @abstractmethod
    def ask(self, app: Any, question: str, params: Mapping[str, Any], pid: int | None) -> Future[list[Answer]]:
        """The answers of all of them to one of the QUESTIONS, or of the one with that pid.

        Raises CommandError -32602 if no such process serves.
        """

    @abstractmethod
    def stream(self, app: Any, name: str, wanted: Mapping[str, Any], start: StreamStart, pid: int | None) -> Stream:
        """What one of their FEEDS has, or that of the one with that pid. Raises likewise."""

    @abstractmethod
    def run_chore(self, name: str, params: Mapping[str, Any], deadline: float) -> Future[list[Answer]]:
        """The answers of all of them to one of the CHORES, which a thread of the app's does in each."""

    @abstractmethod
    def measure(self, app: Any) -> Future[Measured]:
        """What all of them have counted, ended ones included."""


class OwnProcess(Processes):
    """This process, which serves by itself."""

    def __init__(self, pool: Pool, history: History, control: ControlServer, apps: Mapping[str, ServedApp]) -> None:
        """The apps that it serves are given by a key, see `by_key`."""
        self._apps = apps
        self._pool = pool
        self._chores = SingleFlight(pool.submit)
        self._history = history
        self._control = control
        self._pid = os.getpid()
        self.past: dict[str, Totals] = {}
        """By the app's key, what previous images have counted."""

    def ask(self, app: Any, question: str, params: Mapping[str, Any], pid: int | None) -> Future[list[Answer]]:
        self._check_pid(pid)
        answers: Future[list[Answer]] = new_future()
        answers.set_result([Answer(self._pid, answer(app, question, params))])
        return answers

    def stream(self, app: Any, name: str, wanted: Mapping[str, Any], start: StreamStart, pid: int | None) -> Stream:
        self._check_pid(pid)
        head = {"epoch": feeds.epoch, "generation": self._history.generation}
        if start.epoch == feeds.epoch and start.after is not None:
            # Exactly behind that item, whatever the clock has done since.
            exact = {**wanted, "since": 0.0}
            return FeedStream(name, exact, after=start.after, follow=start.follow, head=head)
        if start.epoch:
            return FeedStream(name, wanted, follow=start.follow, head=head, gap=True)
        return FeedStream(name, wanted, lines=start.lines, follow=start.follow, head=head)

    def run_chore(self, name: str, params: Mapping[str, Any], deadline: float) -> Future[list[Answer]]:
        done = self._pool.submit(lambda: CHORES[name](**params))
        return then(done, lambda value: [Answer(self._pid, value)])

    def measure(self, app: ServedApp) -> Future[Measured]:
        errors: Future[BaseException | None] = new_future()
        key = next(key for key, served in self._apps.items() if served is app)

        def measured(error: BaseException | None) -> Measured:
            families, left_out = unpack(app.registries.packed)
            parts = [Part("", self._history.generation, [*own_families(app.requests), *families])]
            past = self.past.get(key, Totals())
            unanswered = [{"worker": self._pid, "error": str(error)}] if error else []
            return Measured(merged(past, parts), unanswered, left_out + past.left_out)

        def tell_with(error: BaseException | None) -> None:
            if not errors.done():
                errors.set_result(error)

        answer = then(errors, measured)
        if not app.registries:
            tell_with(None)
            return answer
        try:
            app.registries.check_idle()
            collected = self._chores.submit(app.registries.collect)
        except CommandError as error:
            tell_with(error)
            return answer
        collected.add_done_callback(lambda done: self._control.call_soon(tell_with, done.exception()))
        self._control.call_later(
            COLLECT_TIMEOUT, tell_with, CommandError("a collector of the app has not returned in time")
        )
        return answer

    def expire_levels(self) -> None:
        """End the leases of log levels that have expired; called now and then."""
        if levels.due():
            # If too many commands wait, the next time.
            with contextlib.suppress(CommandError):
                self._chores.submit(levels.expire)

    def export_totals(self) -> dict[str, str]:
        """At the end of this image: what the next one has to add to its own counts, by the key of an app."""
        deadline = time.monotonic() + COLLECT_TIMEOUT
        for key, app in self._apps.items():
            totals = self.past.setdefault(key, Totals())
            # The kernel goes on with the processor time over the exec.
            own = [one for one in own_families(app.requests) if one["name"] != PROCESSOR_TIME]
            totals.add(own, self._history.generation)
            if app.registries:
                # A collector of the app's must not keep the next image from its start, even if it hangs.
                try:
                    collected = self._pool.submit(app.registries.collect_last)
                    error = collected.exception(max(deadline - time.monotonic(), 0.0))
                except (CommandError, FutureTimeout) as why:
                    error = why
                if error is not None:
                    logger.warning("the last metrics of %s can't be collected: %r", app.name, error)
                    # The exec comes next.
                    logs.flush()
            totals.add(unpack(app.registries.packed).families, self._history.generation)
        return {key: totals.pack() for key, totals in self.past.items()}

    def _check_pid(self, pid: int | None) -> None:
        if pid not in (None, self._pid):
            raise invalid_parameter("worker", f"no worker has the pid {pid}; there is only this process, {self._pid}")
