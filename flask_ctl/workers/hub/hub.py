"""The hub: one small process beside the master, which answers for all of its workers."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

from ...dispatch.audit import asker
from ...dispatch.dispatcher import Reply
from ...dispatch.peer import Peer
from ...errors import CONFLICT, NOT_SUPPORTED, CommandError
from ...lifecycle.history import History
from ...lifecycle.operation import Progress, timestamp
from ...lifecycle.reload import ReloadRequest
from ...lifecycle.state import Event, Lifecycle, State
from ...lifecycle.stop import Mode, StopRequest
from ...system import metrics
from ...system.processes import ProcessHandle
from ...system.waiting import Waker, wait_readable
from ...transports.control_thread import ControlServer
from ..agent.notebook import Notebook
from ..messages import AppRecord, Begun, Hello, Memory, Past, Welcome, as_json
from . import status
from .apps import HubApp
from .audit import HubAudit
from .endpoint import Gate, WorkersSocket
from .master import MasterServer
from .reload import HubReload
from .requests import Outcome, Staff, then
from .stop import HubStop
from .table import Worker, Workers

EXPIRY_INTERVAL = 0.05
"""Seconds between two looks at requests that workers have to answer in time."""

logger = logging.getLogger("flask_ctl")


class Hub:
    """Answers for the workers of one master, until that ends.

    Its state belongs to the control thread; the main thread waits for the master's end.
    """

    def __init__(self, path: str, lock: int, master: ProcessHandle, control: ControlServer | None = None) -> None:
        self._path = path
        self._master = master
        self._control = control or ControlServer("flask-ctl-hub")
        self._waker = Waker()
        # The main thread watches over deadlines.
        self._staff = Staff(self._control.call_soon, self._waker.wake, self.changed)
        self._server = MasterServer(self._staff, master)
        self._server.notify = self._poke_stop
        self._gate = Gate(self)
        self._socket = WorkersSocket(path, lock, self._gate.attach, self._tick)
        self._audit = HubAudit(self._staff)
        self._apps: dict[str, HubApp] = {}
        self._readers: dict[int, metrics.ProcessFigures] = {}
        self._lifecycle = Lifecycle()
        self._history = History()
        self._stop: HubStop | None = None
        self._reload: HubReload | None = None
        self._loaded_at = time.monotonic()
        self._outdated = False
        self._memory_number = 0
        self._notebook = Notebook(lock)
        self._renewed_at: float | None = None
        self._begun: Begun | None = None
        age = metrics.age_of(master.pid)
        self._history.began -= age
        self._history.started_at = timestamp(datetime.now(timezone.utc) - timedelta(seconds=age))
        self._recall(self._notebook.read())

    @property
    def pid(self) -> int:
        """The process to signal: the master."""
        return self._master.pid

    @property
    def workers(self) -> Workers:
        """Those of the master."""
        return self._staff.workers

    def run(self) -> None:
        """Serve until the master has ended (with its workers, if that was asked for here), or a new version is due."""
        self._control.start([(self._socket, self._gate)])
        # Asked once in each round: nothing wakes us for an end that only the first of two questions has missed.
        while not self._is_over(ended := self._master.ended()):
            deadline = self._staff.next_deadline()
            timeout = None if deadline is None or deadline == math.inf else EXPIRY_INTERVAL
            watched = [self._waker.fileno()] if ended else [self._waker.fileno(), self._master.fileno()]
            wait_readable(watched, timeout)
            self._waker.clear()
            self._control.call_soon(self._staff.expire)
            reload = self._reload
            if reload is not None and self._master.ended():
                reload.cancel(by_stop=False)
        for operation in (self._stop, self._reload):
            while operation is not None and not operation.wait(EXPIRY_INTERVAL):
                self._control.call_soon(self._staff.expire)
        self._control.call_soon(self._staff.give_up)
        # The answer to who has asked, and for the workers what the next hub has to know.
        self._control.flush()
        # Nobody needs the lock's file from now on, and it is ours until the lock is closed.
        with contextlib.suppress(OSError):
            os.unlink(self._path + ".lock")
        self._control.close()
        for app in self._apps.values():
            app.close()
        self._audit.close()

    def _is_over(self, ended: bool) -> bool:
        if self._outdated and self._stop is None and self._reload is None:
            return self._staff.next_deadline() is None
        return ended and (self._stop is None or not len(self._staff.workers))

    # What workers have to say

    def generation_of(self, hello: Hello) -> int:
        self._recall(hello.memory)
        if self._begun is not None or self._reload is not None:
            new = hello.loaded.at > self._begun.since if self._begun else self._reload and self._reload.is_new(hello)
            if new:
                return self._history.generation + 1
        return self._history.generation - (self._renewed_at is not None and hello.loaded.at <= self._renewed_at)

    def welcome(self, worker: Worker) -> Welcome:
        hello = worker.hello
        first = not self._apps
        self._recall(hello.memory)
        for record in hello.apps:
            self._note_app(record, hello)
        self._open_sockets(worker)
        self._server.greet(worker)
        if self._lifecycle.state is State.STARTING:
            self._lifecycle.advance(Event.SERVE)
        self._resume_reload()
        if hello.package != _package_version():
            self._give_way(hello, f"flask-ctl {_package_version()} is followed by {hello.package}")
        if self._memory_number:
            self._control.call_soon(self.remember)
        # Not before it has its welcome.
        self._control.call_soon(self._staff.arrived)
        self.changed()
        return Welcome(
            endpoints=self._control.endpoints[1:],
            problems=[problem for app in self._apps.values() for problem in app.problems.values()],
            holding=self._staff.holding,
            first=first,
        )

    def ended(self, worker: Worker) -> None:
        lost = self._staff.workers.remove(worker)
        of_reload = self._reload is not None and self._reload.ended(worker, lost)
        if lost and not of_reload and worker.generation < self._history.generation:
            logger.warning("pid %d, left to its last requests by a reload, has ended: %d cut", worker.pid, lost)
            self._history.lost(lost)
        self.remember()
        self.changed()

    def changed(self) -> None:
        self._server.look_again()
        reload = self._reload
        if reload is not None:
            reload.poke()
        self._waker.wake()

    def remember(self) -> None:
        """Have the workers keep what the next hub has to know."""
        self._memory_number += 1
        history, begun = self._history, self._begun if self._reload is None else self._reload.leave()
        past = Past(history.generation, history.reloaded_at, history.last_reload, self._renewed_at, begun)
        left = Memory(self._memory_number, self._staff.workers.leave(), past)
        self._notebook.write(left)
        memory = as_json(left)
        for worker in self._staff.workers:
            worker.tell("memory", memory)

    def stop_asked(self, mode: Mode, grace: float, peer: Peer) -> None:
        try:
            self.stop(StopRequest(mode, grace, peer.describe()))
        except CommandError as error:
            logger.error("%s", error.message)

    # What the built-in commands ask

    def status(self, app: AppRecord) -> Future[dict[str, Any]]:
        """What `status` answers for one of the apps."""
        return then(self._staff.refresh(), lambda _: self._status(self._apps[app.key].record))

    def stop(
        self, request: StopRequest, progress: Progress | None = None, reply: Reply | None = None
    ) -> Future[dict[str, Any]]:
        """Begin a stop of the whole server, or join the one under way; the Future gets its result."""
        self._server.check()
        stop = self._stop or HubStop(self._server, self._staff, request)
        if self._stop is None and request.mode != "immediate":
            # Nothing has happened if this fails, because there is no thread to be had.
            stop.start(self._end_server)
        if self._reload is not None:
            self._reload.cancel()
        if request.mode == "immediate":
            stop.give_up()
            self._stop = stop
            # In two steps: the answer to this very call is queued only when it has returned.
            self._control.call_soon(self._control.call_soon, self._server.end_at_once)
            return stop.result
        if self._stop is None:
            self._stop = stop
            self._lifecycle.advance(Event.STOP)
            logger.info("stopping (%s), asked by %s", stop.mode, asker(request.by))
        return stop.join(request, progress)

    def reload(self, request: ReloadRequest, reply: Reply, progress: Progress | None = None) -> Future[dict[str, Any]]:
        """Begin a reload; the Future gets its result.

        Raises CommandError -32001 where the master would not load the code anew, -32002 during another operation.
        """
        self._server.check()
        latest = self._staff.workers.latest
        if latest is not None and latest.obstacle is not None:
            raise CommandError(f"can't reload: {latest.obstacle}", code=NOT_SUPPORTED)
        if self._lifecycle.state is not State.RUNNING:
            raise CommandError(f"can't reload while {self._lifecycle.state.value}", code=CONFLICT)
        reload = HubReload(self._server, self._staff, request, self.remember)
        self._begin_reload(reload)
        logger.info("reloading, asked by %s", asker(request.by))
        return reload.follow(progress)

    def reload_config(self) -> Future[dict[str, Any]]:
        """Have each worker run its `on_reload` functions; the Future fails with the text of those that fail."""
        began = time.monotonic()

        def result(outcomes: list[Outcome]) -> dict[str, Any]:
            failed = [
                f"pid {worker.pid}: {error.message}" for worker, error in outcomes if isinstance(error, CommandError)
            ]
            if failed:
                raise CommandError("; ".join(failed))
            # A worker of an older version does not tell their number.
            hooks = sum(count for _, count in outcomes if isinstance(count, int))
            return {**self._result(0, time.monotonic() - began), "hooks_run": hooks}

        return then(self._staff.ask(list(self._staff.workers), "reload_hooks", {}, math.inf), result)

    # Helpers

    def _poke_stop(self) -> None:
        if self._stop is not None:
            self._stop.poke()

    def _note_app(self, record: AppRecord, hello: Hello) -> None:
        app = self._apps.get(record.key)
        if app is None:
            self._apps[record.key] = HubApp(record, self, self._staff, self._audit)
        elif self._staff.workers.newest() is self._staff.workers.get(hello.pid):
            if app.listens_elsewhere(record):
                self._give_way(hello, f"{record.name} is to listen elsewhere, or with other keys")
            app.renew(record)

    def _give_way(self, hello: Hello, why: str) -> None:
        """Let the workers start another hub as soon as nothing is under way here; old code does not bring it about."""
        if hello.loaded.at > self._loaded_at:
            logger.info("another hub takes over: %s", why)
            self._outdated = True

    def _tick(self) -> None:
        for app in self._apps.values():
            app.tick()
        self._open_sockets()

    def _open_sockets(self, asking: Worker | None = None) -> None:
        """Listen where nobody does; the workers learn of it, but for one that is answered anyway."""
        before = self._control.endpoints
        for app in self._apps.values():
            app.open(self._control)
        if self._control.endpoints != before:
            # Workers hold a lock beside each socket, so that clients know that they live.
            for worker in (worker for worker in self._staff.workers if worker is not asking):
                worker.tell("be_at", {"endpoints": self._control.endpoints[1:]})

    def _recall(self, memory: Memory | None) -> None:
        if memory is not None and memory.number > self._memory_number:
            self._memory_number = memory.number
            self._staff.workers.carry_on(memory.totals)
            self._history.generation = memory.history.generation
            self._history.reloaded_at = memory.history.reloaded_at
            self._history.last_reload = memory.history.last_reload
            self._renewed_at = memory.history.renewed_at
            if self._reload is None:
                self._begun = memory.history.begun

    def _status(self, app: AppRecord) -> dict[str, Any]:
        pids = [worker.pid for worker in self._staff.workers]
        self._readers = {pid: reader for pid, reader in self._readers.items() if pid in pids}
        seen = metrics.figures_of(self._readers, pids)
        return {
            **status.of_server(self._staff.workers, app, seen, self._lifecycle.state.value),
            "pid": self.pid,
            "generation": self._history.generation,
            "started_at": self._history.started_at,
            "reloaded_at": self._history.reloaded_at,
            "uptime": self._history.uptime,
            "last_reload": self._history.last_reload,
            "stopping": None if self._stop is None else self._stop.describe(),
            "control": {"restarts": self._control.restarts, "sockets": self._control.endpoints[1:], "hub": os.getpid()},
        }

    def _end_server(self) -> None:
        self._control.flush()
        self._server.end()

    def _begin_reload(self, reload: HubReload) -> None:
        self._lifecycle.advance(Event.RELOAD)
        self._reload = reload
        try:
            reload.start(lambda cut: self._reloaded(reload, cut), lambda error: self._reload_failed(reload, error))
        except BaseException:
            # There is no thread to be had: nothing has happened.
            self._reload = None
            self._lifecycle.advance(Event.RETURN)
            raise

    def _resume_reload(self) -> None:
        """Go on with a reload that a former hub has begun."""
        begun = self._begun
        if begun is None or self._lifecycle.state is not State.RUNNING:
            return
        try:
            self._begin_reload(HubReload.resumed(self._server, self._staff, begun, self.remember))
        except RuntimeError as error:
            logger.error("a former hub's reload is not watched yet: %s", error)
        else:
            self._begun = None
            logger.info("watching the reload that %s had asked a former hub for", asker(begun.by))

    def _reloaded(self, reload: HubReload, cut: int) -> dict[str, Any]:
        self._history.generation += 1
        self._renewed_at = reload.signalled_at
        self._history.reloaded(reload.by, reload.elapsed, cut)
        logger.info("reloaded in %.3f s: generation %d", reload.elapsed, self._history.generation)
        self._reload_over()
        result = self._result(cut, reload.elapsed)
        return {**result, "old_left": reload.old_left} if reload.old_left else result

    def _reload_failed(self, reload: HubReload, error: CommandError) -> None:
        logger.error("%s", error.message)
        if reload.loaded:
            self._history.generation += 1
            self._renewed_at = reload.signalled_at
        self._history.refused(reload.by, reload.elapsed, error.message)
        self._reload_over()

    def _reload_over(self) -> None:
        self._reload = None
        if self._lifecycle.state is State.RELOADING:
            self._lifecycle.advance(Event.RETURN)
        self._control.call_soon(self.remember)
        self._waker.wake()

    def _result(self, cut: int, elapsed: float) -> dict[str, Any]:
        return {
            "generation": self._history.generation,
            "cut": cut,
            "elapsed": round(elapsed, 3),
            "pid": self.pid,
            "directory": status.directory_of(self._staff.workers.latest),
        }


@functools.cache
def _package_version() -> str:
    from importlib.metadata import version

    return version("flask_ctl")
