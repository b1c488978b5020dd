"""Requests to the workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from ...dispatch.futures import gather, settled, then
from ...errors import CONFLICT, CommandError, RemoteProtocolError, TimedOut
from ...protocol.typed import from_json
from ...system.native import new_future
from ..messages import Figures
from .table import Worker, Workers

T = TypeVar("T")

FIGURES_TIMEOUT = 0.5
"""Seconds for the workers to report their counts; for a silent worker the last known counts are shown."""

Outcome = tuple[Worker, Any]
"""A worker, and its result or the CommandError that there was instead."""


class WorkerRequests:
    """The workers, and requests to them. Belongs to the control thread, on which `call_soon` calls.

    `wake` is called for each new deadline, `on_news` for new counts of a worker.
    """

    def __init__(self, call_soon: Callable[..., Any], wake: Callable[[], Any], on_news: Callable[[], Any]) -> None:
        self.workers = Workers()
        self.draining = False
        """Whether the workers accept no new connections."""
        self.call_soon = call_soon
        self._wake = wake
        self._on_news = on_news
        self._waiting: list[tuple[float, Future[None]]] = []
        # Random, so that an answer to a previous hub matches no request of this one.
        self._last_id = int.from_bytes(os.urandom(5), "big")

    def signals(self) -> Mapping[str, int]:
        """The master's signals, by what they ask for."""
        hello = self.workers.latest
        return {} if hello is None else hello.signals

    def drains_by_itself(self) -> bool:
        """Whether the signal ``stop`` lets requests in flight end."""
        hello = self.workers.latest
        return hello is not None and hello.drains_by_itself

    def ask_all(
        self,
        method: str,
        params: Mapping[str, Any],
        timeout: float,
        on_answer: Callable[[Worker, Any], Any] | None = None,
    ) -> list[Outcome]:
        """From another thread: ask each worker and wait for the answers; what has not come in time is a TimedOut."""
        answered: list[Outcome] = self.wait_for(
            lambda: self.ask(list(self.workers), method, params, time.monotonic() + timeout, on_answer)
        )
        return answered

    def on_control(self, function: Callable[[], T]) -> T:
        """From another thread: what the function returns, or raises, on the control thread."""
        turn: Future[None] = new_future()
        result = then(turn, lambda _: function())
        self.call_soon(turn.set_result, None)
        answer: T = result.result()
        return answer

    def refresh_now(self) -> None:
        """From another thread: as `refresh`, and wait for that."""
        self.wait_for(self.refresh)

    def ask(
        self,
        workers: Sequence[Worker],
        method: str,
        params: Mapping[str, Any],
        deadline: float,
        on_answer: Callable[[Worker, Any], Any] | None = None,
    ) -> Future[list[Outcome]]:
        """Ask some workers at once; the Future gets the outcome of each. `on_answer` gets each answer as it comes."""

        def answered(worker: Worker) -> Future[Any]:
            self._last_id += 1
            asked = worker.ask(self._last_id, method, dict(params), deadline)

            def note(answer: Any) -> Any:
                if on_answer is not None:
                    on_answer(worker, answer)
                return answer

            return settled(then(asked, note), _as_error)

        outcomes = gather([answered(worker) for worker in workers])
        self._wake()
        return then(outcomes, lambda results: list(zip(workers, results)))

    def refresh(self) -> Future[set[int]]:
        """Have each worker report its counts; the Future gets the pids of the workers that did not answer in time."""

        def note(worker: Worker, figures: Any) -> None:
            # At once: when all have answered, it may have reported newer figures. It does not report these once more.
            worker.hear(from_json(Figures, figures, "figures"))
            self._on_news()

        def unheard(outcomes: list[Outcome]) -> set[int]:
            return {worker.pid for worker, result in outcomes if isinstance(result, CommandError)}

        deadline = time.monotonic() + FIGURES_TIMEOUT
        return then(self.ask(list(self.workers), "figures", {}, deadline, note), unheard)

    def when_a_worker_serves(self, deadline: float) -> Future[None]:
        """A Future that is done as soon as there is a worker; TimedOut at `deadline`."""
        future: Future[None] = new_future()
        if len(self.workers):
            future.set_result(None)
        else:
            self._waiting.append((deadline, future))
            self._wake()
        return future

    def arrived(self) -> None:
        """A worker has introduced itself."""
        if len(self.workers):
            waiting, self._waiting = self._waiting, []
            for _, future in waiting:
                future.set_result(None)

    def give_up(self) -> None:
        """The master has ended: no worker will come."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.set_exception(CommandError("the server has ended", code=CONFLICT))

    def expire(self) -> None:
        """Fail the requests whose deadline has passed."""
        self.workers.expire()
        now = time.monotonic()
        late = [future for deadline, future in self._waiting if deadline <= now]
        self._waiting = [(deadline, future) for deadline, future in self._waiting if deadline > now]
        for future in late:
            future.set_exception(TimedOut("no worker serves; the server's log may tell why"))

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        # The main thread asks, while the control thread adds some.
        deadlines = [self.workers.next_deadline(), *(deadline for deadline, _ in list(self._waiting))]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def wait_for(self, begin: Callable[[], Future[Any]]) -> Any:
        """From another thread: the result of what `begin` begins on the control thread."""
        return self.on_control(begin).result()


def _as_error(error: BaseException) -> Any:
    """The exception itself; for a RemoteProtocolError, which concerns one worker, a CommandError with its message."""
    return CommandError(error.message) if isinstance(error, RemoteProtocolError) else error
