"""The hub: one small process beside the master, which answers for all of its workers."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from ...dispatch.audit import asker
from ...dispatch.commands import invalid_parameter
from ...dispatch.futures import chain, then
from ...dispatch.replies import Reply
from ...errors import CONFLICT, NOT_SUPPORTED, CommandError
from ...inspection import events
from ...inspection.levels import Lease
from ...inspection.metrics import pack
from ...lifecycle.controller import Controller
from ...lifecycle.cutting import named, oldest
from ...lifecycle.operation import Progress
from ...lifecycle.probe import address_of
from ...lifecycle.reload import ReloadRequest
from ...lifecycle.service_manager import ServiceManager
from ...lifecycle.state import Event, State
from ...lifecycle.stop import StopRequest
from ...lifecycle.watchdog import Load
from ...system.directory import StartDirectory
from ...system.notify_socket import NotifySocket
from ...system.processes import ProcessHandle
from ...system.supervisor import Supervision
from ...system.waiting import Waker, wait_readable
from ...transports.control_thread import ControlServer
from ...transports.registration import Registration, entry_path
from ...transports.registry import Claims
from ..messages import AppRecord, Hello, SavedReload, Welcome
from ..state_file import StateFile
from .apps import HubApps
from .audit import HubAudit
from .change import ChangeRequest, WorkerChange
from .endpoint import WorkerEndpoint, WorkersSocket
from .history import HubHistory
from .left import LeftFeeds
from .master import MasterServer
from .processes import WorkerProcesses
from .reload import HubReload
from .requests import Outcome, WorkerRequests
from .status import WorkersStatus
from .stop import HubStop
from .table import Worker, Workers

EXPIRY_INTERVAL = 0.05
"""Seconds between two looks at requests that workers have to answer in time."""

logger = logging.getLogger("flask_ctl")


class Hub(Controller[HubReload]):
    """The lifecycle of one master's server, and the control sockets of its apps.

    Its state belongs to the control thread; the main thread waits for the master's end.
    """

    _history: HubHistory

    def __init__(
        self,
        path: str,
        lock: int,
        master: ProcessHandle,
        control: ControlServer | None = None,
        state_file: StateFile | None = None,
    ) -> None:
        super().__init__(control or ControlServer("flask-ctl-hub"), master.pid)
        self.hub_pid = os.getpid()
        # A worker has passed on the master's environment.
        self._supervision = Supervision(master.pid, os.environ)
        self._path = path
        self._master = master
        self._waker = Waker()
        # The main thread looks for deadlines that have passed.
        self._left = LeftFeeds()
        self._requests = WorkerRequests(self._control.call_soon, self._waker.wake, self._counted)
        self._server = MasterServer(self._requests, master)
        self._server.notify = self._notify
        self._endpoint = WorkerEndpoint(
            self.workers,
            generation_of=self._generation_of,
            on_hello=self._welcome,
            on_report=self._counted,
            on_end=self._ended,
            on_read_metrics=lambda key: then(
                self.metrics(self._apps[key]), lambda found: pack(found["families"], max_samples=math.inf)
            ),
            on_stop=lambda mode, grace, peer: self.attempt(self.stop, StopRequest(mode, grace, peer.describe())),
        )
        self._change: WorkerChange | None = None
        self._audit = HubAudit(self._requests)
        self._audit.on_record = events.record_command
        self._apps = HubApps(self, self._control, self._requests, self._audit)
        self._socket = WorkersSocket(path, lock, self._endpoint.attach)
        self._registration = Registration(entry_path(path), master.pid)
        self._control.on_tick(self._apps.tick)
        self._control.on_tick(self._register)
        self._control.on_tick(self._tell_manager)
        self._figures = WorkersStatus(self.workers)
        self._history = HubHistory(master.pid, self.workers, state_file or StateFile(lock))
        told = NotifySocket(os.environ, master.pid)
        self._manager = ServiceManager(told, self._history)
        self._watch(told, self._apps.watchdog_request)
        if told.watchdog:
            # An idle worker reports nothing, and neither does a frozen one.
            self._control.on_tick(self._requests.refresh)
        self.processes = WorkerProcesses(self._requests, self._left, self._history, self._control.call_soon)

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the apps' control sockets; the first one of all is the workers' own."""
        return self._control.endpoints[1:]

    @property
    def workers(self) -> Workers:
        """The workers of the master that have introduced themselves."""
        return self._requests.workers

    def run(self) -> None:
        """Serve until the master has ended, after a stop its workers, too, or until another hub has to take over."""
        # Before it listens for clients: they find the listening process by the entry's lock.
        self._registration.renew()
        self._control.start([(self._socket, self._endpoint)])
        # Ask once in each round: an end between two questions would wake no thread.
        while not self._is_over(ended := self._master.ended()):
            deadline = self._requests.next_deadline()
            timeout = None if deadline is None or deadline == math.inf else EXPIRY_INTERVAL
            watched = [self._waker.fileno()] if ended else [self._waker.fileno(), self._master.fileno()]
            wait_readable(watched, timeout)
            self._waker.clear()
            self._control.call_soon(self._requests.expire)
            reload = self._reload
            if reload is not None and self._master.ended():
                reload.cancel(by_stop=False)
        if self._change is not None:
            self._change.cancel()
        for operation in (self._stop, self._reload, self._change):
            while operation is not None and not operation.wait(EXPIRY_INTERVAL):
                self._control.call_soon(self._requests.expire)
        self._control.call_soon(self._requests.give_up)
        # The next hub goes on with the entry.
        self._control.call_soon(self._registration.close, not self._apps.outdated)
        # Callers get their answers, and the workers the state that the next hub needs.
        self._control.flush()
        # The file of the lock is no longer needed, and it is ours until the lock is closed.
        with contextlib.suppress(OSError):
            os.unlink(self._path + ".lock")
        self._control.close()
        self._apps.close()
        self._audit.close()

    def _is_over(self, ended: bool) -> bool:
        if self._apps.outdated and self._stop is None and self._reload is None:
            return self._requests.next_deadline() is None
        return ended and (self._stop is None or not len(self.workers))

    # What the endpoint of the workers calls

    def _generation_of(self, hello: Hello) -> int:
        self._restore(hello)
        begun, reload = self._history.begun, self._reload
        own_since = None if reload is None else reload.turnover.signalled_at
        return self._history.generation_of(hello, own_since if begun is None else begun.since)

    def _welcome(self, worker: Worker) -> Welcome:
        self._restore(worker.hello)
        welcome = self._apps.welcome(worker)
        self._register()
        if not worker.joined:
            worker.joined = True
            events.record("worker_joined", pid=worker.pid, generation=worker.generation)
        self._server.greet(worker)
        # A worker whose app requires a socket serves only once it knows that this hub has it.
        if self._lifecycle.state is State.STARTING and worker.hello.ready:
            self._advance(Event.SERVE)
        self._resume_reload()
        if self._history.saves:
            self._control.call_soon(self._save_state)
        # After the worker has got its Welcome.
        self._control.call_soon(self._requests.arrived)
        self._changed()
        return replace(welcome, state=self.state, ready=self.ready, leases=self._history.leases, index=worker.index)

    def _restore(self, hello: Hello) -> None:
        before = self._history.drain
        self._history.restore(hello.saved_state, reloading=self._reload is not None)
        if self._history.drain != before:
            self._control.call_soon(self._tell_state)

    def _ended(self, worker: Worker) -> None:
        # First: what it was asked fails with its removal, and so metrics may be added up.
        self._history.metrics.retire(worker)
        lost = self.workers.remove(worker)
        self._left.add(worker, len(self.workers))
        kind = "worker_lost" if worker.hello.runs_exit_handlers and not worker.final else "worker_ended"
        events.record(kind, pid=worker.pid, generation=worker.generation, in_flight=lost)
        of_reload = self._reload is not None and self._reload.turnover.ended(worker, lost)
        if lost and not of_reload and worker.generation < self._history.generation:
            logger.warning("pid %d, which a reload left to its last requests, has ended: %d cut", worker.pid, lost)
            self._history.lost(lost)
        if self._change is not None:
            self._change.cut += lost
        self._save_state()
        self._changed()

    def _changed(self) -> None:
        """Workers have come or gone."""
        self._counted()
        self._waker.wake()

    def _counted(self) -> None:
        """A worker has reported its counts: the main thread has to know only if it waits for the last answer."""
        self._server.look_again()
        self._notify()
        if self._apps.outdated:
            self._waker.wake()

    def _save_state(self) -> None:
        self._history.save(self._history.begun if self._reload is None else self._reload.export_state())

    # What the built-in commands ask

    def status(self, app: AppRecord) -> Future[dict[str, Any]]:
        def describe(_unheard: set[int]) -> dict[str, Any]:
            fields = self._status(self._apps[app.key], **self._figures.describe(app.key, self.state))
            latest = self.workers.latest
            wanted = 0 if latest is None or not latest.wanted else latest.wanted + self._history.resized
            return {
                **fields,
                "workers_expected": wanted or len(self.workers),
                "control": {**fields["control"], "hub": os.getpid()},
            }

        return then(self._requests.refresh(), describe)

    def change_workers(
        self, what: str, number: int, deadline: float, preflight_timeout: float, by: dict[str, Any]
    ) -> Future[dict[str, Any]]:
        self._server.check()
        latest = self.workers.latest
        if self._lifecycle.state is not State.RUNNING or self._change is not None or latest is None:
            doing = self._lifecycle.state.value if self._change is None else "changing the workers"
            raise CommandError(f"can't {what} workers while {doing}", code=CONFLICT)
        if what not in latest.signals:
            instead = latest.instead.get(what, f"{latest.server.get('name', 'the server')} has no way to do that")
            raise CommandError(f"can't {what} workers: {instead}", code=NOT_SUPPORTED)
        if what == "remove" and number >= len(self.workers):
            raise invalid_parameter("remove", f"one worker has to stay, and there are {len(self.workers)}")
        worker = self.workers.named(number, "recycle") if what == "recycle" else None
        request = ChangeRequest(what, number, worker, deadline, preflight_timeout)
        change = WorkerChange(self._server, self._requests, request, self._why_no_change, self._resized)
        change.start()
        self._change = change
        change.result.add_done_callback(lambda _: self._control.call_soon(self._change_over))
        logger.info("workers: %s %d, asked by %s", what, number, asker(by))
        return change.result

    def _why_no_change(self) -> str:
        if self._stop is not None:
            return "the server is stopping"
        return "the master has ended" if self._master.ended() else ""

    def _resized(self, by: int) -> None:
        self._history.resized += by
        self._save_state()

    def _change_over(self) -> None:
        self._change = None

    def stop(self, request: StopRequest, progress: Progress | None = None) -> Future[dict[str, Any]]:
        if request.mode != "immediate":
            return super().stop(request, progress)
        self._check_stop(request)
        stop = super().stop
        return chain(self._server.hear_all(), lambda: stop(request, progress))

    def reload(
        self, request: ReloadRequest, reply: Reply | None, progress: Progress | None = None
    ) -> Future[dict[str, Any]]:
        if self._change is not None:
            raise CommandError("can't reload while changing the workers", code=CONFLICT)
        return super().reload(request, reply, progress)

    # How a stop and a reload go here

    @property
    def start_directory(self) -> StartDirectory | None:
        return None if self.workers.latest is None else self.workers.latest.directory

    @property
    def _directory(self) -> str:
        latest = self.workers.latest
        if latest is None:
            return ""
        # A worker of an older version tells only its working directory.
        return latest.cwd if latest.directory is None else latest.directory.real

    @property
    def commit(self) -> str | None:
        return None if self.workers.latest is None else self.workers.latest.commit

    def _check_stop(self, request: StopRequest) -> None:
        self._server.check()

    def _new_stop(self, request: StopRequest) -> HubStop:
        return HubStop(self._server, self._requests, request)

    def _end_server(self) -> None:
        self._control.flush()
        self._server.end()

    def _end_at_once(self) -> None:
        self._server.end_at_once()

    def reload_obstacle(self) -> str | None:
        self._server.check()
        latest = self.workers.latest
        return None if latest is None else latest.obstacle

    def _new_reload(self, request: ReloadRequest, reply: Reply | None, begun: SavedReload | None = None) -> HubReload:
        return HubReload(
            self._server, self._requests, request, self._save_state, self._reload_done, self._reload_failed, begun
        )

    def _load(self) -> Load:
        return self._figures.load()

    def _address(self) -> Any:
        latest = self.workers.latest
        return None if latest is None else next(map(address_of, latest.server.get("listeners", [])), None)

    def keep_leases(self, leases: list[Lease]) -> None:
        super().keep_leases(leases)
        self._save_state()

    def _drain_progress(self) -> dict[str, int]:
        figures = [worker.figures for worker in self.workers]
        in_flight = sum(tally.in_flight for figure in figures for tally in figure.apps.values())
        return {"in_flight": in_flight, "failed_checks": sum(figure.failed_checks for figure in figures)}

    def _tell_state(self) -> None:
        for worker in self.workers:
            worker.tell("state", {"state": self.state, "ready": self.ready})

    def _tell_drain(self, deadline: float) -> Future[dict[str, Any]]:
        self._save_state()
        news = {"state": self.state, "ready": self.ready}
        told = then(self._requests.ask(list(self.workers), "state", news, deadline), _hooks_of)
        # With the requests in flight of this moment.
        return chain(told, lambda: then(self._requests.refresh(), lambda _unheard: told.result()))

    def _run_reload_hooks(self) -> Future[int]:
        def count(outcomes: list[Outcome]) -> int:
            failed = [
                f"pid {worker.pid}: {error.message}" for worker, error in outcomes if isinstance(error, CommandError)
            ]
            if failed:
                raise CommandError("; ".join(failed))
            # A worker of an older version does not tell their number.
            return sum(count for _, count in outcomes if isinstance(count, int))

        return then(self._requests.ask(list(self.workers), "run_reload_hooks", {}, math.inf), count)

    # Helpers

    def _register(self) -> None:
        latest = self.workers.latest
        if self.endpoints and latest is not None:
            self._registration.renew(Claims(self._apps.registered(), latest.cwd, str(latest.server.get("name", ""))))

    def _resume_reload(self) -> None:
        """Watch a reload that a previous hub began."""
        begun = self._history.begun
        if begun is None or self._lifecycle.state is not State.RUNNING:
            return
        try:
            request = ReloadRequest(begun.grace, begun.cut_rest, False, begun.preflight_timeout, begun.by)
            self._begin_reload(lambda: self._new_reload(request, None, begun))
        except CommandError as error:
            logger.error("a previous hub's reload is not watched yet: %s", error.message)
        else:
            self._history.begun = None
            logger.info("watching the reload that %s requested from a previous hub", asker(begun.by))

    def _reload_done(self, reload: HubReload, cut: int) -> dict[str, Any]:
        self._history.renew(reload.turnover.signalled_at)
        cut_requests = named(oldest(reload.turnover.cut_requests))
        result = {**self._reloaded(reload.by, reload.elapsed, cut), **cut_requests}
        # For a caller whose connection has ended with a previous hub.
        self._history.add_to_last_reload(cut_requests)
        self._advance(Event.RETURN)
        self._reload_over()
        return {**result, "old_left": reload.old_left} if reload.old_left else result

    def _reload_failed(self, reload: HubReload, error: CommandError) -> None:
        if reload.loaded:
            self._history.renew(reload.turnover.signalled_at)
        super()._reload_failed(reload, error)
        self._reload_over()

    def _reload_over(self) -> None:
        self._reload = None
        self._control.call_soon(self._save_state)
        self._waker.wake()


def _hooks_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """What the workers answer to a new state, put together."""
    errors = [(worker.pid, answer) for worker, answer in outcomes if isinstance(answer, CommandError)]
    answers = [(worker.pid, answer) for worker, answer in outcomes if isinstance(answer, dict)]
    return {
        "hooks_run": sum(answer["hooks_run"] for _, answer in answers),
        "hooks_failed": [f"pid {pid}: {text}" for pid, answer in answers for text in answer["hooks_failed"]],
        "unanswered": [{"worker": pid, "error": error.message} for pid, error in errors],
    }
