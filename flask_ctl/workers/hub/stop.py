"""A stop of the master and its workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any

from ...lifecycle.cutting import oldest
from ...lifecycle.operation import MAX_WAIT
from ...lifecycle.stop import Stop, StopRequest
from ...system.standby import StandbyThread
from .cutting import Answers, answers_in_flight, left_of, oldest_of, requests_in_flight
from .master import MasterServer
from .requests import WorkerRequests
from .table import Worker

logger = logging.getLogger("flask_ctl")


class WorkersWork:
    """What a stop drains and calls beside the connections; commands are in the workers' own figures."""

    def __init__(self, requests: WorkerRequests) -> None:
        self._requests = requests
        self._through: set[int] = set()
        self.patience = 0.0
        """Seconds that the workers wait for `on_ready` and `on_drain` functions."""
        self.left: dict[int, str] = {}
        """By pid, the name of such a function that still ran then."""

    def finished_count(self) -> int:
        return self._requests.workers.finished()

    def commands_in_flight(self) -> int:
        return 0

    def oldest_request(self) -> Mapping[str, Any] | None:
        return oldest_of(self._requests.workers)

    def requests_in_flight(self) -> dict[Hashable, Mapping[str, Any]]:
        return requests_in_flight(self._requests)

    def running_hook(self) -> None:
        """Each worker waits for its own."""

    def run_stop_hooks(self) -> None:
        """Each worker's, until the last has come to an end."""
        self._requests.ask_all("run_stop_hooks", {"patience": self.patience}, MAX_WAIT, self._note)

    def hanging(self) -> set[int]:
        """The workers whose hooks have not come to an end."""
        return {worker.pid for worker in self._requests.workers} - self._through

    def _note(self, worker: Worker, left: Any) -> None:
        self._through.add(worker.pid)
        if isinstance(left, str):
            self.left[worker.pid] = left


class HubStop(Stop):
    """A stop under way; the workers that stay are named."""

    def __init__(self, server: MasterServer, requests: WorkerRequests, request: StopRequest) -> None:
        self._hooks = WorkersWork(requests)
        super().__init__(server, self._hooks, request, server.pid)  # type: ignore[arg-type]
        self._master = server
        self._requests = requests
        self._lost_before = requests.workers.lost
        self._died_before = requests.workers.died
        self._to_cut: Answers = {}
        self._cut_at_end: int | None = None

    def give_up(self) -> None:
        self.settle(self._result(self._master.at_stake()))

    def start(self, on_done: Callable[[], Any], threads: tuple[StandbyThread, StandbyThread]) -> None:
        # The counts that the workers reported may be a second old. Asked for now, they are those of the time before
        # anybody was told that the server stops.
        self._counted = self._requests.refresh()
        self._counted.add_done_callback(self._note_finished)
        super().start(on_done, threads)

    def _run(self) -> None:
        self._requests.wait_for(lambda: self._counted)
        super()._run()

    def _note_finished(self, counted: Future[set[int]]) -> None:
        self._finished_before = self._work.finished_count()

    def _cut(self) -> int:
        count = self._server.cut()
        busy = {worker.pid for worker in self._requests.workers if worker.counted_as_cut}
        found = answers_in_flight(self._requests)
        self._to_cut = {(pid, app): listed for (pid, app), listed in found.items() if pid in busy}
        return count

    def _run_hooks(self) -> None:
        entered = time.monotonic()
        self._hooks.patience = self._readiness_deadline(entered) - entered
        super()._run_hooks()
        if self._to_cut:
            # The workers have answered on, and are killed only now.
            self._cut_requests = left_of(self._to_cut, answers_in_flight(self._requests))
        for pid, hook in self._hooks.left.items():
            logger.warning("the hook %s of pid %d still runs; the on_stop hooks did not wait for it", hook, pid)
        if self._hooks_left:
            self._master.leave_behind(self._hooks.hanging())
        self._hooks_left |= bool(self._hooks.left)
        if not self._master.stops_accepting:
            # The workers have answered on, and have begun others.
            self._cut_at_end = self._cut()
            self._cut_requests = left_of(self._to_cut, self._to_cut)

    def _result(self, cut: int) -> dict[str, Any]:
        cut = cut if self._cut_at_end is None else self._cut_at_end
        # A worker that was killed meanwhile can't have answered what it had in flight.
        workers = self._requests.workers
        cut += workers.lost - self._lost_before
        self._cut_requests = oldest(self._cut_requests)[:cut]
        result = super()._result(cut)
        died = workers.died - self._died_before
        return {**result, "died": died} if died else result

    def _waiting_for(self) -> list[str]:
        if self.phase != "end":
            return []
        return [f"master {self._pid}", *(f"worker {worker.pid}" for worker in self._requests.workers)]
