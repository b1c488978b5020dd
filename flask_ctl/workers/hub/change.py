"""One change of the number of workers, or a new worker in the place of one, by the master."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from ...errors import CONFLICT, INTERNAL_ERROR, NOT_SUPPORTED, CommandError, TimedOut
from ...system.native import new_future
from ...system.preflight import Preflight
from ...system.standby import StandbyThread
from .master import ANSWER_TIMEOUT, MasterServer
from .reload import PreflightCommand
from .requests import WorkerRequests
from .table import Worker

INTERVAL = 0.02
"""Seconds between two looks at the workers."""


class ChangeRequest(NamedTuple):
    """What is to be done until `deadline`: ``add`` or ``remove`` so many workers, or ``recycle`` one."""

    what: str
    number: int
    worker: Worker | None
    deadline: float
    preflight_timeout: float


class WorkerChange:
    """The change under way, in a thread of its own.

    The master is told step by step: signals that come too fast are merged by the kernel. A new worker loads the code
    that is on the disk; if that is broken, gunicorn's master would end, so there is a preflight before.
    """

    def __init__(
        self,
        server: MasterServer,
        requests: WorkerRequests,
        request: ChangeRequest,
        obstacle: Callable[[], str],
        on_step: Callable[[int], Any],
    ) -> None:
        """`obstacle` says why it can't go on, "" if it can; `on_step` gets how the expected number has changed."""
        self.result: Future[dict[str, Any]] = new_future()
        self.cut = 0
        """Requests that were lost with workers that have ended meanwhile."""
        self._server = server
        self._requests = requests
        self._request = request
        self._obstacle = obstacle
        self._on_step = on_step
        self._began = time.monotonic()
        self._preflight: Preflight | None = None
        self._before = {worker.pid for worker in requests.workers}

    def start(self) -> None:
        """Raises RuntimeError if the system has no thread left."""
        self._thread = StandbyThread("flask-ctl-workers")
        self._thread.run(self._run)

    def cancel(self) -> None:
        """Do not wait for the preflight: the master has ended."""
        if self._preflight is not None:
            self._preflight.cancel()

    def wait(self, timeout: float) -> bool:
        """Wait until its thread has ended, for at most `timeout` seconds; whether it has."""
        return self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._attempt()
            result = self._requests.on_control(self._describe)
        except CommandError as error:
            self.result.set_exception(error)
        except Exception as error:
            self.result.set_exception(CommandError(f"{type(error).__name__}: {error}", code=INTERNAL_ERROR))
        else:
            self.result.set_result(result)

    def _attempt(self) -> None:
        request = self._request
        if request.what != "remove":
            self._check_code()
        self._check()
        if time.monotonic() >= request.deadline:
            raise TimedOut("the preflight has taken all of the time; nothing was done")
        count = len(self._before)
        if request.worker is not None:
            worker = request.worker
            # On the control thread, on which workers end.
            self._requests.on_control(lambda: self._recycle(worker))
            self._wait(lambda: not self._lives(worker) and self._serving() >= count, count)
            return
        step = 1 if request.what == "add" else -1
        for _ in range(request.number):
            count += step
            self._server.signal(request.what)
            self._requests.on_control(lambda: self._on_step(step))
            self._wait(lambda wanted=count: (self._serving() - wanted) * step >= 0, count)  # type: ignore[misc]

    def _recycle(self, worker: Worker) -> None:
        # If it has ended during the preflight, the master has another one in its place anyway.
        if self._lives(worker):
            worker.handle.signal(self._requests.signals()["recycle"])

    def _lives(self, worker: Worker) -> bool:
        return self._requests.workers.get(worker.pid) is worker

    def _check_code(self) -> None:
        latest = self._requests.workers.latest
        if latest is None or latest.loaded.pid == self._server.pid:
            # The master has loaded the code, and its next worker is a copy.
            return
        answers = self._requests.ask_all("preflight", {}, ANSWER_TIMEOUT)
        described = next((answer for _, answer in answers if isinstance(answer, dict)), None)
        if described is None:
            message = "no preflight is possible here, and if the code on the disk is broken the server may die of it"
            raise CommandError(message, code=NOT_SUPPORTED)
        self._preflight = Preflight(PreflightCommand(described), self._request.preflight_timeout, by_exit=True)
        self._preflight.run()

    def _serving(self) -> int:
        return sum(worker.hello.ready for worker in list(self._requests.workers))

    def _check(self) -> None:
        if why := self._obstacle():
            raise CommandError(f"the change of workers was called off: {why}", code=CONFLICT)

    def _wait(self, done: Callable[[], bool], wanted: int) -> None:
        while not self._requests.on_control(done):
            self._check()
            if time.monotonic() >= self._request.deadline:
                elapsed = time.monotonic() - self._began
                count = self._serving()
                message = f"{count} workers serve after {elapsed:.1f} s, and {wanted} are wanted; the master goes on"
                raise TimedOut(message, {"workers": count, "wanted": wanted})
            time.sleep(INTERVAL)

    def _describe(self) -> dict[str, Any]:
        now = [worker.pid for worker in self._requests.workers]
        return {
            "workers": now,
            "started": [pid for pid in now if pid not in self._before],
            "ended": sorted(self._before - set(now)),
            "cut": self.cut,
            "elapsed": round(time.monotonic() - self._began, 3),
        }
