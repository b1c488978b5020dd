"""The table of workers, as the hub sees them. It belongs to the control thread; others read only."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

from ...dispatch.commands import invalid_parameter
from ...errors import INTERNAL_ERROR, CommandError, TimedOut
from ...inspection.exceptions import ExceptionTable
from ...inspection.ring import Ring
from ...protocol.framing import MAX_FRAME
from ...system.native import new_future
from ...system.processes import ProcessHandle
from .. import messages
from ..messages import Figures, Hello, Tally

MAX_WORKERS = 1024
"""More are refused: each costs two descriptors and a line in `status`."""

RECEIPT_TIMEOUT = 5.0
"""Seconds for a worker to confirm that it has received a request; a thread of its own does so."""

Send = Callable[[bytes], Any]


class Snapshot(NamedTuple):
    """What a worker has counted for one app, as `pack` packs it: of its own accord, and in the app's registries."""

    own: str = ""
    registered: str = ""


class Call:
    """A request to a worker, until it has been answered."""

    def __init__(self, deadline: float, until_received: float) -> None:
        self.future: Future[Any] = new_future()
        self._deadline = deadline
        self._until_received = until_received

    @property
    def deadline(self) -> float:
        """The time at which it fails."""
        return min(self._deadline, self._until_received)

    def received(self) -> None:
        """The worker has received it; from now on the app takes its time."""
        self._until_received = self._deadline


class Worker:
    """One worker: its Hello and its counts, its unanswered requests, and a pidfd as the proof of its end."""

    def __init__(self, hello: Hello, handle: ProcessHandle, send: Send, generation: int) -> None:
        self.hello = hello
        self.handle = handle
        self.figures = hello.figures
        self.heard = time.monotonic()
        self.generation = generation
        self.joined = False
        """Whether it is known that it serves."""
        self.final = False
        """Whether it has sent its final report: it ends in order."""
        self.exceptions: dict[str, list[dict[str, Any]]] = {}
        """By app, what it has left to the hub at its end."""
        self.left: dict[str, Ring] | None = None
        """By feed, the items that it has left; None if it has not said."""
        self.snapshots: dict[str, Snapshot] = {}
        """By app, what it has counted when it was heard last."""
        self.has_last_snapshot = False
        self.index = 0
        """Of those that serve, from 1 on: a later worker takes it over."""
        self.number = 0
        """Of all workers that this hub has seen: unlike the pid it is never another one's."""
        self.counted_as_cut = False
        """Whether what it has in flight has been counted as cut already."""
        self._send = send
        self._calls: dict[int, Call] = {}

    @property
    def pid(self) -> int:
        return self.hello.pid

    def renew(self, hello: Hello, send: Send) -> None:
        """It has connected again."""
        self.hello, self._send = hello, send
        self.hear(hello.figures)
        self._fail("it has connected anew")

    def hear(self, figures: Figures) -> None:
        """Note the counts that it reported."""
        self.figures, self.heard = figures, time.monotonic()

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification."""
        self._send(messages.request(method, params))

    def ask(self, id: int, method: str, params: dict[str, Any], deadline: float) -> Future[Any]:
        """Send a request; the Future gets its result or CommandError, TimedOut at `deadline` or without a receipt."""
        call = Call(deadline, min(deadline, time.monotonic() + RECEIPT_TIMEOUT))
        line = messages.request(method, params, id)
        if len(line) > MAX_FRAME:
            call.future.set_exception(
                invalid_parameter("parameters", f"take {len(line)} bytes, and {MAX_FRAME} is the most")
            )
            return call.future
        self._calls[id] = call
        self._send(line)
        return call.future

    def received(self, id: int) -> None:
        """It has received a request."""
        if id in self._calls:
            self._calls[id].received()

    def settle(self, id: Any, value: dict[str, Any]) -> None:
        """It has answered a request; an answer after the deadline is ignored."""
        call = self._calls.pop(id, None)
        if call is None:
            return
        if "error" in value:
            call.future.set_exception(messages.error_of(value))
        else:
            call.future.set_result(value.get("result"))

    def expire(self, now: float) -> None:
        """Fail the requests whose deadline has passed."""
        for id, call in list(self._calls.items()):
            if call.deadline <= now:
                del self._calls[id]
                silent = time.monotonic() - self.heard
                call.future.set_exception(TimedOut(f"it does not answer; it was last heard {silent:.1f} s ago"))

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        # The main thread asks, too, while the control thread adds some.
        return min((call.deadline for call in list(self._calls.values())), default=None)

    def close(self) -> None:
        """It has ended."""
        self._fail("it has ended")
        self.handle.close()

    def _fail(self, why: str) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.future.set_exception(CommandError(why, code=INTERNAL_ERROR))


class Workers:
    """The live workers, and the totals of the ended ones."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}
        self._numbers = itertools.count(1)
        self._past: dict[str, Tally] = {}
        self._past_exceptions: dict[str, ExceptionTable] = {}
        self.latest: Hello | None = None
        """The Hello of the worker with the newest code, which may have ended; the master's facts in it still hold."""
        self.died = 0
        """Workers that ended without a final report, although they run their exit handlers."""
        self._lost = 0
        self._cut_off = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, pid: int | None) -> Worker | None:
        return self._workers.get(pid) if pid is not None else None

    def named(self, pid: Any, parameter: str) -> Worker:
        """The worker with a pid that a caller has given, also as text. Raises CommandError -32602 if there is none."""
        worker = self.get(int(pid)) if str(pid).isdecimal() else None
        if worker is None:
            known = ", ".join(str(worker.pid) for worker in self)
            raise invalid_parameter(parameter, f"no worker has the pid {pid}; there are: {known or 'none'}")
        return worker

    def add(self, worker: Worker) -> None:
        """Raises CommandError if there are too many."""
        if len(self._workers) >= MAX_WORKERS:
            raise CommandError(f"there are {MAX_WORKERS} workers already")
        self._workers[worker.pid] = worker
        worker.number = next(self._numbers)
        taken = {other.index for other in self if other is not worker}
        told = worker.hello.index
        worker.index = told if told > 0 and told not in taken else min({*range(1, len(taken) + 2)} - taken)
        self.heard_of(worker.hello)

    def heard_of(self, hello: Hello) -> None:
        """A worker has introduced itself, perhaps anew."""
        if self.latest is None or hello.loaded.at >= self.latest.loaded.at:
            self.latest = hello

    @property
    def lost(self) -> int:
        """Requests, commands and connections that ended with their worker, or that the server itself has ended."""
        return self._lost + sum(worker.figures.aborted for worker in self)

    def remove(self, worker: Worker) -> int:
        """It has ended, and its totals stay; the number of requests that were lost with it."""
        if self._workers.pop(worker.pid, None) is None:
            return 0
        figures = worker.figures
        lost = figures.aborted + (0 if worker.counted_as_cut else figures.in_flight)
        self._lost += lost
        self.died += worker.hello.runs_exit_handlers and not (worker.final or worker.counted_as_cut)
        for key, tally in figures.apps.items():
            past = self._past.get(key, Tally())
            self._past[key] = Tally(0, None, past.total + tally.total, past.errors + tally.errors)
            self._cut_off += tally.in_flight + tally.aborted
        for key, entries in worker.exceptions.items():
            known = self._past_exceptions.setdefault(key, ExceptionTable())
            for entry in entries:
                known.add({**entry, "worker": worker.pid})
        worker.close()
        return lost

    def past_exceptions(self, key: str) -> list[dict[str, Any]]:
        """Those of one app that ended workers have left, each with the ``worker`` that had it last."""
        return self._past_exceptions[key].entries() if key in self._past_exceptions else []

    def newest(self) -> Worker | None:
        """The worker whose code was loaded last."""
        return max(self, key=lambda worker: worker.hello.loaded.at, default=None)

    def tally(self, key: str) -> Tally:
        """The counts of all workers for one app, ended workers included."""
        past = self._past.get(key, Tally())
        now = [worker.figures.apps.get(key, Tally()) for worker in self]
        oldest = max(now, key=lambda tally: tally.oldest or 0.0, default=Tally())
        return Tally(
            in_flight=sum(tally.in_flight for tally in now),
            oldest=oldest.oldest,
            oldest_request=oldest.oldest_request,
            total=past.total + sum(tally.total for tally in now),
            errors=past.errors + sum(tally.errors for tally in now),
        )

    @property
    def in_flight(self) -> int:
        """Requests and commands in flight."""
        return sum(worker.figures.in_flight for worker in self)

    @property
    def waiting(self) -> int:
        """Connections that wait to be accepted; the workers share their listeners, so they all see the same."""
        return max((worker.figures.waiting for worker in self), default=0)

    @property
    def silent(self) -> int:
        """Connections that have been accepted and have not sent a byte."""
        return sum(worker.figures.silent for worker in self)

    def finished(self) -> int:
        """Requests that have been answered, of all apps."""
        keys = {*self._past, *(key for worker in self for key in worker.figures.apps)}
        ended = sum(tally.total - tally.in_flight for tally in map(self.tally, keys))
        return ended - self._cut_off - sum(worker.figures.aborted for worker in self)

    def expire(self) -> None:
        """Fail the requests whose deadline has passed."""
        now = time.monotonic()
        for worker in self:
            worker.expire(now)

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        deadlines = [worker.next_deadline() for worker in self]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def export_totals(self) -> dict[str, tuple[int, int]]:
        """The totals of ended workers by app, for the next hub."""
        return {key: (tally.total, tally.errors) for key, tally in self._past.items()}

    def restore_totals(self, totals: dict[str, tuple[int, int]]) -> None:
        """Continue from the totals that a previous hub exported."""
        self._past = {key: Tally(0, None, total, errors) for key, (total, errors) in totals.items()}
