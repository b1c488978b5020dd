"""A stop of the master and its workers."""

from __future__ import annotations

from typing import Any

from ...lifecycle.operation import MAX_WAIT
from ...lifecycle.stop import Stop, StopRequest
from .master import MasterServer
from .requests import WorkerRequests
from .table import Worker


class WorkersWork:
    """What a stop drains and calls beside the connections; commands are in the workers' own figures."""

    def __init__(self, requests: WorkerRequests) -> None:
        self._requests = requests
        self._through: set[int] = set()

    def finished_count(self) -> int:
        return self._requests.workers.finished()

    def commands_in_flight(self) -> int:
        return 0

    def run_stop_hooks(self) -> None:
        """Each worker's, until the last has come to an end."""
        self._requests.ask_all("run_stop_hooks", {}, MAX_WAIT, self._note)

    def hanging(self) -> set[int]:
        """The workers whose hooks have not come to an end."""
        return {worker.pid for worker in self._requests.workers} - self._through

    def _note(self, worker: Worker, _result: Any) -> None:
        self._through.add(worker.pid)


class HubStop(Stop):
    """A stop under way; the workers that stay are named."""

    def __init__(self, server: MasterServer, requests: WorkerRequests, request: StopRequest) -> None:
        self._hooks = WorkersWork(requests)
        super().__init__(server, self._hooks, request, server.pid)  # type: ignore[arg-type]
        self._master = server
        self._requests = requests
        self._lost_before = requests.workers.lost
        self._died_before = requests.workers.died

    def _run(self) -> None:
        # The counts that the workers reported may be a second old.
        self._requests.refresh_now()
        self._finished_before = self._work.finished_count()
        super()._run()

    def _run_hooks(self) -> None:
        super()._run_hooks()
        if self._hooks_left:
            self._master.leave_behind(self._hooks.hanging())

    def _result(self, cut: int) -> dict[str, Any]:
        # A worker that was killed meanwhile can't have answered what it had in flight.
        workers = self._requests.workers
        result = super()._result(cut + workers.lost - self._lost_before)
        died = workers.died - self._died_before
        return {**result, "died": died} if died else result

    def _waiting_for(self) -> list[str]:
        if self.phase != "end":
            return []
        return [f"master {self._pid}", *(f"worker {worker.pid}" for worker in self._requests.workers)]
