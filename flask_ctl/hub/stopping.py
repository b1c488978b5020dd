"""A stop of the master and its workers."""

from __future__ import annotations

from ..operation import MAX_WAIT
from ..stopping import Stop, StopRequest
from .master import MasterServer
from .staff import Staff


class StaffWork:
    """What a stop drains and calls beside the connections; commands are in the workers' own figures."""

    def __init__(self, staff: Staff) -> None:
        self._staff = staff

    def finished_count(self) -> int:
        return self._staff.workers.finished()

    def commands_in_flight(self) -> int:
        return 0

    def run_stop_hooks(self) -> None:
        """Each worker's; one that hangs is waited for until somebody stops once more, by `fast`."""
        self._staff.ask_all("stop_hooks", {}, MAX_WAIT)


class HubStop(Stop):
    """A stop under way; the workers that stay are named."""

    def __init__(self, server: MasterServer, staff: Staff, request: StopRequest) -> None:
        super().__init__(server, StaffWork(staff), request, server.pid)  # type: ignore[arg-type]
        self._staff = staff
        self._lost_before = staff.workers.lost

    def _run(self) -> None:
        # What the workers have told may be a second old.
        self._staff.refresh_now()
        self._finished_before = self._work.finished_count()
        super()._run()

    def _finish(self, cut: int) -> None:
        # A worker that was killed meanwhile can't have answered what it had in flight.
        super()._finish(cut + self._staff.workers.lost - self._lost_before)

    def _waiting_for(self) -> list[str]:
        if self.phase != "end":
            return []
        return [f"master {self._pid}", *(f"worker {worker.pid}" for worker in self._staff.workers)]
