"""The master and its workers as one HTTP server, which a stop drains and ends."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from ...dispatch.futures import then
from ...errors import CONFLICT, NOT_SUPPORTED, CommandError
from ...system.processes import ProcessHandle
from .requests import WorkerRequests
from .table import Worker

ANSWER_TIMEOUT = 2.0
"""Seconds for the workers to do what takes no time."""

PAUSE_TIMEOUT = 0.5
"""Seconds for idle workers to accept the connections that wait. Busy workers accept none."""

SIGNAL_TIMEOUT, SIGNAL_INTERVAL = 0.2, 0.005
"""Seconds for an idle worker to end of the master's signal, and between two looks; busy ones take their time."""

HAND_ON_TIMEOUT = 1.0
"""Seconds for the master's signal to arrive at its workers, before they are killed."""

EXIT_TIMEOUT = 1.0
"""Seconds for a worker whose requests are cut to run its exit handlers."""

logger = logging.getLogger("flask_ctl")


class MasterServer:
    """What a Stop drains.

    The kernel holds new connections back, so that all accepted requests are answered before the master is signalled:
    the master's own time-out for its workers does not matter.
    """

    embedded = False

    def __init__(self, requests: WorkerRequests, master: ProcessHandle) -> None:
        self._requests = requests
        self._master = master
        self.notify: Callable[[], Any] = lambda: None
        self._draining = False
        self._held = True
        self._confirmed = False
        self._awaits_silent = True
        self._unheard: set[int] = set()
        self._confirming = False
        self._signalled = False
        self._cutting: set[int] | None = None
        self._left: set[int] = set()

    @property
    def pid(self) -> int:
        return self._master.pid

    @property
    def activated(self) -> list[str]:
        latest = self._requests.workers.latest
        names: list[str] = [] if latest is None else latest.server.get("activated", [])
        return names

    @property
    def stops_accepting(self) -> bool:
        """Whether no new request begins once it drains."""
        return self._held or self._requests.drains_by_itself()

    def in_flight(self) -> int:
        return self._requests.workers.in_flight

    def hear_all(self) -> Future[None]:
        """On the control thread: have all workers report, whose last reports may be a second old."""
        return then(self._requests.refresh(), self._note_unheard)

    def at_stake(self) -> int:
        """What is cut if all of it ends now. A worker that has not answered counts as one: what it does is unknown."""
        workers = self._requests.workers
        unknown = [worker for worker in workers if worker.pid in self._unheard and not worker.figures.in_flight]
        # Where systemd keeps the socket, the next process answers them.
        waiting = 0 if self.activated else workers.waiting
        return workers.in_flight + len(unknown) + waiting

    def drain(self) -> None:
        self._draining = True
        self._requests.draining = True
        answers = self._requests.ask_all("drain", {}, ANSWER_TIMEOUT)
        # A worker that does not answer may still do it later; the others drain meanwhile.
        self._held = not any(held is False for _, held in answers)
        if not self._held and self._requests.drains_by_itself():
            # Its listeners are shared with others, or are no TCP sockets: only the master can let go of them.
            logger.info("new connections can't be held back; the master drains in its own way")
            self._signal("stop")
        self._requests.call_soon(self.look_again)

    def greet(self, worker: Worker) -> None:
        """On the control thread: signal a worker that introduces itself after the master was told to end.

        It may have been forked at that moment: then it had no signal handler yet when the master signalled its workers.
        """
        if self._signalled and self._requests.drains_by_itself():
            worker.handle.signal(self._requests.signals()["stop"])

    def look_again(self) -> None:
        """On the control thread, the workers have changed: if nothing seems to be left, all of them have to confirm."""
        if not self._draining:
            return
        if not self._signalled and not self._confirming and self._is_empty():
            self._confirming = True
            self.hear_all().add_done_callback(self._confirm)
        self.notify()

    def quiet(self) -> bool:
        return (self._confirmed and self._is_empty()) or not len(self._requests.workers)

    def close_idle(self) -> None:
        self._requests.ask_all("close_silent", {}, ANSWER_TIMEOUT)
        self._awaits_silent = False
        self._requests.call_soon(self.look_again)

    def cut(self) -> int:
        # If one was busy all the time, the others have not been asked for long.
        self._requests.wait_for(self.hear_all)
        return self._requests.on_control(self._choose_to_cut)

    def leave_behind(self, pids: set[int]) -> None:
        """These workers would never end by themselves: `end` ends them."""
        self._left = pids

    def end(self) -> None:
        """Have the master end, and with it the workers that are to be cut or left behind."""
        if self._left or (self._cutting and not self._requests.drains_by_itself()):
            # They would not come to their exit handlers, or the master's signal would end them without.
            self._requests.ask_all("exit", {"wait": True}, EXIT_TIMEOUT)
        self._signal("stop")
        self._cutting = (self._cutting or set()) | self._left
        if self.has_ended():
            # The master can no longer signal them.
            self._cutting = {worker.pid for worker in self._requests.workers}
        if self._cutting:
            self._requests.ask_all("exit", {}, EXIT_TIMEOUT)
            self._requests.call_soon(self._kill, self._cutting)

    def end_at_once(self) -> None:
        """On the control thread: end all of it; neither hooks nor exit handlers are run."""
        for worker in self._requests.workers:
            # The master may tell them to end in their own way, or start others for those that are killed first.
            worker.handle.suspend()
        self._signal("fast")
        # A master that sees a worker die before it has begun to end them takes that for a failure, and exits with 1.
        workers, limit = list(self._requests.workers), time.monotonic() + HAND_ON_TIMEOUT
        while not all(worker.handle.signal_pends() for worker in workers) and time.monotonic() < limit:
            time.sleep(SIGNAL_INTERVAL)
        self._kill({worker.pid for worker in self._requests.workers})

    def has_ended(self) -> bool:
        """Whether the master is gone."""
        return self._master.ended()

    def check(self) -> None:
        """Raises CommandError -32001 if the master can't be signalled."""
        if self._master.ended():
            raise CommandError(f"the master, pid {self.pid}, has ended", code=CONFLICT)
        try:
            self._master.signal(0)
        except PermissionError:
            message = f"the master, pid {self.pid}, belongs to another user than its workers, who alone can signal it"
            raise CommandError(message, code=NOT_SUPPORTED) from None

    def signal(self, what: str) -> None:
        """Ask the master for what a signal of its own stands for, such as ``add``."""
        self._master.signal(self._requests.signals()[what])

    def reload(self) -> None:
        """From another thread: have the master replace its workers."""
        with contextlib.nullcontext() if self._requests.drains_by_itself() else self._paused():
            self._master.signal(self._requests.signals()["reload"])

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """No connection is being accepted meanwhile: it would be closed with its worker, which counts as idle."""
        self._requests.ask_all("pause", {}, ANSWER_TIMEOUT)
        try:
            limit = time.monotonic() + PAUSE_TIMEOUT
            self._requests.refresh_now()
            while self._requests.workers.waiting and time.monotonic() < limit:
                self._requests.refresh_now()
            yield
            # The master hands the signal on in its own time: the first to end has had it.
            count, limit = len(self._requests.workers), time.monotonic() + SIGNAL_TIMEOUT
            while len(self._requests.workers) == count and time.monotonic() < limit:
                time.sleep(SIGNAL_INTERVAL)
        finally:
            self._requests.ask_all("resume", {}, ANSWER_TIMEOUT)

    def _choose_to_cut(self) -> int:
        self._cutting = set()
        for worker in self._requests.workers:
            worker.counted_as_cut = worker.figures.in_flight > 0 or worker.pid in self._unheard
            if worker.counted_as_cut:
                self._cutting.add(worker.pid)
        return self.at_stake()

    def _note_unheard(self, unheard: set[int]) -> None:
        self._unheard = unheard

    def _confirm(self, _heard: Future[None]) -> None:
        self._confirming = False
        self._confirmed = not self._unheard and self._is_empty()
        if self._unheard:
            self._requests.call_soon(self.look_again)
        self.notify()

    def _is_empty(self) -> bool:
        workers = self._requests.workers
        return not (workers.in_flight or workers.waiting or (self._awaits_silent and workers.silent))

    def _signal(self, what: str) -> None:
        if self._signalled and what == "stop":
            return
        self._master.signal(self._requests.signals()[what])
        self._signalled = True

    def _kill(self, pids: set[int]) -> None:
        for worker in self._requests.workers:
            if worker.pid in pids:
                worker.handle.kill()
