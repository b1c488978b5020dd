"""A reload by the master: it replaces its workers, and the hub watches until the last old one has ended."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import NOT_SUPPORTED, SERVER_DIED, CommandError
from ...lifecycle.cutting import oldest
from ...lifecycle.operation import MAX_SECONDS, MAX_WAIT, CalledOff
from ...lifecycle.reload import ReloadOperation, ReloadRequest
from ...system.preflight import Preflight
from ...system.standby import StandbyThread
from ..messages import SavedReload
from .cutting import oldest_of, requests_in_flight
from .master import ANSWER_TIMEOUT, MasterServer
from .requests import WorkerRequests
from .table import Worker
from .turnover import Turnover

UNHEARD_INTERVAL = 0.05
"""Seconds between two looks at old workers that have not introduced themselves to this hub."""

logger = logging.getLogger("flask_ctl")


class PreflightCommand:
    """The command that loads the new code and ends, as a worker has described it."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.command: list[str] = described["command"]
        self.directory: str = described["directory"]
        self._environment: dict[str, str] = described["environment"]

    def environment_for_preflight(self) -> dict[str, str]:
        return self._environment


class HubReload(ReloadOperation):
    """A reload under way: the preflight, new workers by the master, the wait for the last old and the last new one."""

    def __init__(
        self,
        server: MasterServer,
        requests: WorkerRequests,
        request: ReloadRequest,
        save_state: Callable[[], Any],
        on_success: Callable[[HubReload, int], dict[str, Any]],
        on_failure: Callable[[HubReload, CommandError], Any],
        begun: SavedReload | None = None,
    ) -> None:
        """All functions are called on the control thread.

        `save_state` is called once `export_state` has something to tell, `on_success` with the number of requests that
        were cut, for the result. With `begun` it is the rest of a reload that a previous hub began.
        """
        super().__init__(request, "load")
        self._server = server
        self._requests = requests
        self._save_state = save_state
        self._on_success = on_success
        self._on_failure = on_failure
        self.loaded = False
        """Whether the new code serves, whatever becomes of the old workers."""
        self.old_left = 0
        """Old workers that finish their last requests, after a reload that did not cut them."""
        self._called_off = False
        self.turnover = Turnover(requests.workers)
        if begun is not None:
            self.began, self._deadline = begun.began, begun.deadline
            self.turnover.restore_state(begun, server.pid)

    def export_state(self) -> SavedReload | None:
        """On the control thread: the state for the next hub, None if the master has not been signalled yet."""
        turnover, request = self.turnover, self._request
        if turnover.signalled_at is None:
            return None
        return SavedReload(
            turnover.signalled_at, self.began, self._deadline, request.by, request.grace, request.preflight_timeout,
            request.cut, turnover.cut, turnover.count, turnover.passed, turnover.left(), oldest(turnover.cut_requests),
        )  # fmt: skip

    def start(self) -> None:
        def run() -> None:
            try:
                self._attempt()
            finally:
                self.turnover.close()

        self._thread = StandbyThread("flask-ctl-reload")
        self._thread.run(run)

    def cancel(self, *, by_stop: bool = True) -> bool:
        """Give it up, for a stop, or because the master has ended; what the master has begun goes on."""
        with self._changed:
            self._cancelled = True
            self._called_off = self._called_off or by_stop
            if self._preflight is not None:
                self._preflight.cancel()
            self._changed.notify_all()
        return True

    def progress(self) -> dict[str, Any]:
        """How far it is: the phase, requests in flight in old workers, how many old and new workers there are."""
        old, new = self.turnover.old(), self.turnover.new()
        in_flight = sum(worker.figures.in_flight for worker in old)
        fields = {**super().progress(), "in_flight": in_flight, "waiting_for": [], "old": len(old), "new": len(new)}
        request = oldest_of(old)
        return fields if request is None else {**fields, "oldest_request": request}

    def _run(self) -> None:
        if self.turnover.signalled_at is None:
            self._ask_master()
        self.enter("load")
        self._wait_for_new()
        self.loaded = True
        self.enter("drain")
        self._wait_for_old()

    def _ask_master(self) -> None:
        latest = self._requests.workers.latest
        if latest is not None and latest.directory is not None:
            latest.directory.check()
        if self._request.preflight:
            self.enter("preflight")
            self._run_preflight()
        self._deadline = time.monotonic() + min(self._request.grace, MAX_SECONDS)
        # Their own patience must not be shorter than what was asked for.
        self._requests.ask_all("extend_grace", {"seconds": self._request.grace}, ANSWER_TIMEOUT)
        with self._changed:
            self._check()
            self.turnover.begin()
        # Whatever becomes of this hub from here on, the next one watches the rest.
        self._requests.on_control(self._save_state)
        if self._request.cut:
            self._cut_previous()
        self._server.reload()

    def _run_preflight(self) -> None:
        described = self._preflight_command()
        if described is None:
            message = "no preflight is possible here, and if the new code is broken the server may die of it"
            raise CommandError(
                f"{message}; reload without preflight all the same, or stop and start", code=NOT_SUPPORTED
            )
        with self._changed:
            self._check()
            self._preflight = Preflight(PreflightCommand(described), self._request.preflight_timeout, by_exit=True)
        self._preflight.run()
        self._check()

    def _cut_previous(self) -> None:
        """End the workers that previous reloads left to their last requests: the master may wait for them first."""
        newest = self._requests.workers.newest()
        left = [
            worker for worker in self.turnover.old() if newest is not None and worker.generation < newest.generation
        ]
        if left:
            self._requests.refresh_now()
            self._end_by_force(left)

    def _preflight_command(self) -> Any:
        """The description of a PreflightCommand by the newest worker that answers; None if the server has none."""
        limit = time.monotonic() + self._request.preflight_timeout
        while True:
            answers = self._requests.ask_all("preflight", {}, ANSWER_TIMEOUT)
            self._check()
            for worker, described in sorted(answers, key=lambda answer: answer[0].hello.loaded.at, reverse=True):
                if not isinstance(described, CommandError):
                    return described
                if self._lives(worker):
                    raise described
            # All have ended meanwhile, and others come.
            if not self.wait_until(lambda: self._cancelled or len(self._requests.workers) > 0, lambda: limit):
                # No TimedOut, which stands for old code that serves everybody.
                numbers = {**self.turnover.numbers(), "new": 0, "old": 0}
                raise CommandError(f"no worker has come within {self._request.preflight_timeout:g} s", numbers)

    def _wait_for_new(self) -> None:
        limit = time.monotonic() + self._request.preflight_timeout
        # Such a master starts no new worker before the last old one has ended.
        in_turn = not self._requests.drains_by_itself()
        if self._request.cut and in_turn and not self.wait_until(self._has_loaded, lambda: min(limit, self._deadline)):
            self._end_by_force(self.turnover.old())
        if not self.wait_until(self._has_loaded, lambda: limit):
            numbers = self.turnover.numbers()
            count = f"{numbers['new']} of {numbers['wanted']} new workers serve"
            late = f"{count} after {self._request.preflight_timeout:g} s; the server's log may tell why"
            raise CommandError(late, numbers)
        self._check()

    def _wait_for_old(self) -> None:
        # No event tells of the end of a worker that has not introduced itself to this hub.
        interval = UNHEARD_INTERVAL if self.turnover.unheard else MAX_WAIT
        gone = self.wait_until(lambda: self._cancelled or not self.turnover.left(), lambda: self._deadline, interval)
        self._check()
        if self._request.cut and not gone:
            for handle in self.turnover.missing():
                # What it has in flight is not known.
                self.turnover.cut += 1
                handle.kill()
            self._end_by_force(self.turnover.old())

    def _succeed(self) -> None:
        self.settle(self._requests.on_control(self._result))

    def _result(self) -> dict[str, Any]:
        """On the control thread, on which workers end: what comes later is no part of this reload any more."""
        left = self.turnover.left()
        self.old_left = len(left)
        if left:
            late = f"after {self._request.grace:g} s of grace old workers still answer requests"
            logger.warning("%s: %s; the new code serves", late, ", ".join(map(str, left)))
        return self._on_success(self, self.turnover.cut)

    def _end_by_force(self, workers: list[Worker]) -> None:
        """Kill them, and wait for their end."""

        def have_leave() -> None:
            for worker in filter(self._lives, workers):
                worker.tell("leave", {})

        # Before the question about requests, whose answer comes behind it.
        self._requests.on_control(have_leave)
        in_flight = requests_in_flight(self._requests).values()
        unheard = self._requests.wait_for(self._requests.refresh)

        def kill() -> None:
            for worker in filter(self._lives, workers):
                # What one has in flight that does not answer is not known.
                count = worker.figures.in_flight or int(worker.pid in unheard)
                self.turnover.cut += count
                self.turnover.cut_requests += [one for one in in_flight if one["worker"] == worker.pid][:count]
                worker.counted_as_cut = True
                worker.handle.kill()

        self._requests.on_control(kill)
        self.wait_until(lambda: self._cancelled or not any(map(self._lives, workers)), lambda: math.inf)
        self._check()

    def _lives(self, worker: Worker) -> bool:
        return self._requests.workers.get(worker.pid) is worker

    def _has_loaded(self) -> bool:
        return self._cancelled or self.turnover.has_loaded()

    def _check(self) -> None:
        if self._called_off:
            raise CalledOff
        if self._server.has_ended():
            raise _died()

    def _fail(self, error: CommandError) -> None:
        if self._server.has_ended() and not self._called_off:
            # Whatever else went wrong: the caller must not conclude that the old code still serves.
            error = _died()
        self._requests.on_control(lambda: self._on_failure(self, error))
        self.settle(error)


def _died() -> CommandError:
    return CommandError(
        "the server died during the reload; its log may tell why", {"outcome": "died"}, code=SERVER_DIED
    )
