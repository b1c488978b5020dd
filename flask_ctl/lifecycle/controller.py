"""The lifecycle of an HTTP server: its state and history, the stop and the reload under way, the answers to clients.

A `Controller` is either an `Instance`, which serves in its own process, or a `Hub`, which speaks for a master and its
workers. Both provide the server, the work beside its connections, and how a reload goes.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import Any, Generic, TypeVar

from ..dispatch.audit import asker
from ..dispatch.futures import chain, then
from ..dispatch.replies import Reply
from ..errors import CONFLICT, INTERNAL_ERROR, NOT_SUPPORTED, CommandError
from ..inspection import events
from ..inspection.levels import Lease
from ..protocol import VERSION
from ..system.directory import StartDirectory
from ..system.native import new_future, threading
from ..system.notify_socket import NotifySocket
from ..system.standby import StandbyThread
from ..system.supervisor import Supervision
from ..transports.control_thread import ControlServer
from .app import AppConfig
from .history import Code, History, now
from .metrics import Measured, result_of
from .operation import Progress
from .probe import Probe
from .processes import Processes
from .readiness import Drain
from .reload import ReloadOperation, ReloadRequest
from .service_manager import ServiceManager
from .state import DRAINING, Event, Lifecycle, State
from .stop import Stop, StopRequest, stop_threads
from .watchdog import PINGS, Load, Watchdog

R = TypeVar("R", bound=ReloadOperation)

logger = logging.getLogger("flask_ctl")

CALLED_OFF_TIMEOUT = 1.0
"""Seconds for a reload that a stop has called off to answer its caller, before the server ends."""

MAX_JOINING = 64
"""Callers that wait for a stop to begin; before more of them the first ones are forgotten, who may be gone."""


class Controller(ABC, Generic[R]):
    """Begins stops and reloads, one of each at a time, and answers for the server. Belongs to the control thread."""

    def __init__(self, control: ControlServer, pid: int) -> None:
        self.pid = pid
        """The process to signal."""
        self.hub_pid: int | None = None
        """The hub that answers for workers; None for a single process."""
        self.fleets: dict[str, Callable[[], dict[str, Any]]] = {}
        """What `status` tells of the control over NATS, by the names of the apps that have it."""
        self.processes: Processes
        self._control = control
        self._lock = threading.Lock()
        self._lifecycle = Lifecycle()
        self._history = History()
        self._supervision: Supervision | None
        self._manager: ServiceManager
        self._stop: Stop | None = None
        self._stop_begun: deque[Future[Stop]] = deque(maxlen=MAX_JOINING)
        self._reload: R | None = None
        self._stop_threads: tuple[StandbyThread, StandbyThread] | None = None
        control.on_restart = lambda: events.record("control_restarted", restarts=control.restarts)
        events.record("starting", pid=pid)

    @property
    def has_predecessor(self) -> bool:
        """Whether another image or process of this server, before a reload, has listened at the same addresses."""
        return self._history.generation > 1

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the apps' control sockets."""
        return self._control.endpoints

    @property
    def state(self) -> str:
        """The `state` of `status`."""
        drains = self._state is State.RUNNING and self._history.drain is not None
        return DRAINING if drains else self._state.value

    @property
    def supervisor(self) -> dict[str, Any] | None:
        """What would start the server again after its end; None if there is nothing."""
        return None if self._supervision is None else self._supervision.describe()

    @property
    def ready(self) -> bool:
        """Whether load balancers are to send requests: it serves, and neither a drain nor a stop is under way."""
        return self._history.drain is None and self._lifecycle.state in (State.RUNNING, State.RELOADING)

    @abstractmethod
    def status(self, app: Any) -> dict[str, Any] | Future[dict[str, Any]]:
        """The answer to `status` for one of the apps."""

    def change_workers(
        self, what: str, number: int, deadline: float, preflight_timeout: float, by: dict[str, Any]
    ) -> Future[dict[str, Any]]:
        """``add`` or ``remove`` so many workers, or ``recycle`` the one with the pid `number`; until `deadline`.

        Raises CommandError -32001 if the server can't do that, -32002 during another operation.
        """
        raise CommandError(
            f"can't {what} workers: this process serves by itself; give it more threads, or serve by gunicorn",
            code=NOT_SUPPORTED,
        )

    def stop(self, request: StopRequest, progress: Progress | None = None) -> Future[dict[str, Any]]:
        """Begin a stop, or join the one under way; the Future gets its result. A reload is called off.

        Raises CommandError if the server can't be stopped like that, RuntimeError if the system has no threads left.
        """
        self._check_stop(request)
        stop = self._stop or self._new_stop(request)
        if request.mode == "immediate":
            if self._reload is not None:
                self._reload.cancel()
            stop.give_up()
            self._stop = stop
            # In two steps: the answer to this very call is queued only when it has returned.
            self._control.call_soon(self._control.call_soon, self._end_at_once)
            return stop.result
        # Before the reload is called off: if there are no threads, nothing has happened.
        threads = self._stop_threads or (stop_threads() if self._stop is None else None)
        if self._reload is not None:
            self._reload.cancel()
        if self._stop is None:
            assert threads is not None
            self._stop = stop
            self._advance(Event.STOP)
            self._tell_state()
            # Before what its thread tells.
            events.record("stopping", mode=stop.mode, by=request.by)
            stop.start(partial(self._end, self._reload), threads)
            logger.info("stopping (%s), asked by %s", stop.mode, asker(request.by))
            for begun in self._stop_begun:
                begun.set_result(stop)
        return stop.join(request, progress)

    def follow_stop(self, progress: Progress | None = None) -> Future[dict[str, Any]]:
        """The Future gets the result of the stop under way, or of the next one, which a signal may begin."""
        if self._stop is not None:
            return self._stop.follow(progress)
        begun: Future[Stop] = new_future()
        self._stop_begun.append(begun)
        return chain(begun, lambda: begun.result().follow(progress))

    def attempt(self, begin: Callable[..., Any], *arguments: Any) -> None:
        """Call `stop` or `reload` where no client waits for the result: an error is logged."""
        try:
            begin(*arguments)
        except (CommandError, RuntimeError) as error:
            # RuntimeError: the system has no threads left.
            logger.error("%s", error)

    def reload(
        self, request: ReloadRequest, reply: Reply | None, progress: Progress | None = None
    ) -> Future[dict[str, Any]]:
        """Begin a reload of the code; the Future gets its result, or only its failure where the next image answers.

        Raises CommandError -32001 where the code can't be loaded anew, -32002 during another operation.
        """
        obstacle = self.reload_obstacle()
        if obstacle is not None:
            raise CommandError(f"can't reload: {obstacle}", code=NOT_SUPPORTED)

        def begin() -> R:
            reload = self._new_reload(request, reply)
            # Before what its thread tells.
            events.record("reload_begun", by=request.by)
            return reload

        reload = self._begin_reload(begin)
        logger.info("reloading, asked by %s", asker(request.by))
        return reload.follow(progress)

    def set_draining(self, draining: bool, by: dict[str, Any], deadline: float = math.inf) -> Future[dict[str, Any]]:
        """Begin or end a drain; the Future gets the result once hooks have run, or at `deadline` without some workers'.

        Raises CommandError -32002 once a stop is under way.
        """
        if self._lifecycle.state in (State.STOPPING, State.STOPPED):
            raise CommandError(f"can't {'drain' if draining else 'resume'} while {self.state}", code=CONFLICT)
        changed = draining is (self._history.drain is None)
        if changed:
            self._history.drain = Drain(now(), by) if draining else None
            events.record("drain_begun" if draining else "drain_ended", by=by)
            logger.info("%s, asked by %s", "draining" if draining else "resuming", asker(by))

        def result(told: dict[str, Any]) -> dict[str, Any]:
            return {"state": self.state, "pid": self.pid, "changed": changed, **self._drain_progress(), **told}

        return then(self._tell_drain(deadline), result)

    @property
    def leases(self) -> list[Lease]:
        """Levels of loggers for a time; some may have expired."""
        return self._history.leases

    def keep_leases(self, leases: list[Lease]) -> None:
        """Have processes to come, the next image, and the next hub know of these leases, and of no other ones."""
        self._history.leases = leases

    def reload_config(self) -> Future[dict[str, Any]]:
        """Run the apps' `on_reload` functions; the Future fails with the text of each failure."""
        began = time.monotonic()
        hooks = self._run_reload_hooks()
        return then(hooks, lambda count: {**self._result(0, time.monotonic() - began), "hooks_run": count})

    def history(self) -> list[dict[str, Any]]:
        """The start and the reloads, the last one at the end; at most MAX_ENTRIES."""
        return self._history.entries

    def metrics(self, app: Any) -> Future[dict[str, Any]]:
        """The answer to `metrics` for one of the apps."""
        status = self.status(app)
        known: Future[dict[str, Any]] = status if isinstance(status, Future) else new_future()
        if not isinstance(status, Future):
            known.set_result(status)
        # The processes last, so that nothing is counted twice that ends meanwhile.
        measured: Future[Measured] = chain(known, lambda: self.processes.measure(app))
        return then(measured, lambda found: result_of(known.result(), found, self._history.failed_reloads))

    # What an instance and a hub do differently

    @property
    @abstractmethod
    def start_directory(self) -> StartDirectory | None:
        """Where the code was loaded, and where that of a reload will be; None if not known."""

    @property
    @abstractmethod
    def _directory(self) -> str:
        """Where the code that serves was loaded, resolved."""

    @property
    @abstractmethod
    def commit(self) -> str | None:
        """The git commit of that directory when the code was loaded."""

    @abstractmethod
    def _check_stop(self, request: StopRequest) -> None:
        """Raises CommandError if the server can't be stopped like that."""

    @abstractmethod
    def _new_stop(self, request: StopRequest) -> Stop:
        """A stop that has not been started."""

    def _end(self, reload: R | None) -> None:
        """In the stop's thread: end the server, once the caller of a reload that was called off has its answer."""
        if reload is not None:
            # Its own thread may be just about to give it.
            reload.answered.wait(CALLED_OFF_TIMEOUT)
        self._end_server()

    @abstractmethod
    def _end_server(self) -> None:
        """In the stop's thread: give the clients their answers, and end the server."""

    @abstractmethod
    def _end_at_once(self) -> None:
        """For an immediate stop: end the server without hooks and exit handlers."""

    @abstractmethod
    def reload_obstacle(self) -> str | None:
        """Why the code can't be loaded anew, None if it can."""

    @abstractmethod
    def _new_reload(self, request: ReloadRequest, reply: Reply | None) -> R:
        """A reload that has not been started. Raises OSError for want of descriptors."""

    @abstractmethod
    def _run_reload_hooks(self) -> Future[int]:
        """Run the apps' `on_reload` functions; the Future gets the number of them, or CommandError."""

    @abstractmethod
    def _drain_progress(self) -> dict[str, int]:
        """``in_flight``, requests of all apps, and ``failed_checks``, health checks answered with 503."""

    @abstractmethod
    def _tell_state(self) -> None:
        """On the control thread: have the serving processes know `state` and `ready`, and run the apps' hooks."""

    @abstractmethod
    def _tell_drain(self, deadline: float) -> Future[dict[str, Any]]:
        """The same, and keep the drain; the Future gets ``hooks_run``, ``hooks_failed`` and ``unanswered``."""

    # What they have in common

    @property
    def _code(self) -> Code:
        return Code(self._directory, self.commit)

    def _notify(self) -> None:
        """Something has changed that the stop or the reload may wait for. From any thread, without a lock."""
        for operation in (self._stop, self._reload):
            if operation is not None:
                operation.notify()

    def _advance(self, event: Event) -> None:
        with self._lock:
            self._manager.enter(self._lifecycle.advance(event))
        if event in (Event.SERVE, Event.RETURN):
            self._control.call_soon(self._tell_state)
        if event is Event.SERVE:
            self._history.started(self._code)
            events.record("serving", generation=self._history.generation)

    def _tell_manager(self) -> None:
        """Called every other second."""
        self._manager.tick(self._state, self._stop is not None and self._stop.phase in ("delay", "drain"))

    def _watch(self, told: NotifySocket, limit: Callable[[], float]) -> None:
        """Before the control thread runs: ping a service manager that wants that; `limit` is CTL_WATCHDOG_REQUEST."""
        if told.watchdog:
            watchdog = Watchdog(self._manager.ping, Probe(), self._load, self._address, limit)
            self._control.on_tick(lambda: watchdog.look(self._lifecycle.state), told.watchdog / PINGS)

    @abstractmethod
    def _load(self) -> Load:
        """What the requests show of whether it serves."""

    @abstractmethod
    def _address(self) -> Any:
        """The socket address at which clients reach the HTTP server; None if not known."""

    def _begin_reload(self, make: Callable[[], R]) -> R:
        with self._lock:
            if self._lifecycle.state is not State.RUNNING:
                raise CommandError(f"can't reload while {self._lifecycle.state.value}", code=CONFLICT)
            self._manager.enter(self._lifecycle.advance(Event.RELOAD))
        self._control.call_soon(self._tell_state)
        reload: R | None = None
        try:
            self._reload = reload = make()
            reload.start()
        except (OSError, RuntimeError) as error:
            # No thread or no descriptor is left: nothing has happened.
            if reload is not None:
                events.record("reload_refused", {"why": str(error)}, elapsed=reload.elapsed, by=reload.by)
            self._reload = None
            self._advance(Event.RETURN)
            raise CommandError(f"can't reload now: {error}; try again", code=INTERNAL_ERROR) from None
        return reload

    def _reloaded(self, by: dict[str, Any], elapsed: float, cut: int) -> dict[str, Any]:
        """Note that the new code serves; the result of the reload."""
        self._history.reloaded(by, round(elapsed, 3), cut, self._code)
        events.record("reload_done", generation=self._history.generation, elapsed=round(elapsed, 3), cut=cut, by=by)
        logger.info("reloaded in %.3f s: generation %d", elapsed, self._history.generation)
        return self._result(cut, elapsed)

    def _reload_failed(self, reload: R, error: CommandError) -> None:
        """Note that the old code goes on."""
        output = error.data.get("traceback") if isinstance(error.data, dict) else None
        logger.error("%s", f"{error.message}\n{output}" if output else error.message)
        self._history.refused(reload.by, reload.elapsed, error.message, self._code)
        why = {"why": f"{error.message}\n{output}" if output else error.message}
        events.record("reload_refused", why, elapsed=reload.elapsed, by=reload.by)
        self._advance(Event.RETURN)

    def _result(self, cut: int, elapsed: float) -> dict[str, Any]:
        """The result of a reload."""
        return {
            "generation": self._history.generation,
            "cut": cut,
            "elapsed": round(elapsed, 3),
            "pid": self.pid,
            "directory": self._directory,
        }

    @property
    def _state(self) -> State:
        """The `state`, whether there is a drain or not."""
        return self._lifecycle.state

    def _status(
        self,
        app: AppConfig,
        *,
        server: dict[str, Any],
        requests: dict[str, Any],
        process: dict[str, Any],
        workers: list[dict[str, Any]],
        cwd: str,
        parent: int | None = None,
    ) -> dict[str, Any]:
        """The answer to `status`, of what the subclass knows of the server and of one app."""
        drain = self._history.drain
        return {
            "protocol": VERSION,
            "pid": self.pid,
            "parent": parent,
            "app": app.name,
            "cwd": cwd,
            "directory": self._directory,
            "root_path": app.root_path,
            "state": self.state,
            "generation": self._history.generation,
            "started_at": self._history.started_at,
            "reloaded_at": self._history.reloaded_at,
            "uptime": self._history.uptime,
            "server": server,
            "requests": requests,
            "process": process,
            "versions": app.versions,
            "supervisor": self.supervisor,
            "service_manager": self._manager.describe(),
            "workers": workers,
            "last_reload": self._history.last_reload,
            "draining": None if drain is None else {**asdict(drain), **self._drain_progress()},
            "stopping": None if self._stop is None else self._stop.describe(),
            "control": {"restarts": self._control.restarts, "sockets": self.endpoints},
            **({"fleet": self.fleets[app.name]()} if app.name in self.fleets else {}),
        }


def requests_in_status(
    in_flight: int, oldest: float | None, oldest_request: Mapping[str, Any] | None, total: int, errors: int
) -> dict[str, Any]:
    """The `requests` of `status`; `oldest` is an age in seconds, `oldest_request` the method and the route."""
    return {
        "in_flight": in_flight,
        "oldest": None if oldest is None else round(oldest, 3),
        "oldest_request": oldest_request,
        "total": total,
        "errors": errors,
    }
