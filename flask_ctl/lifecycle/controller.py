"""The lifecycle of an HTTP server: its state and history, the stop and the reload under way, the answers to clients.

A `Controller` is either an `Instance`, which serves in its own process, or a `Hub`, which speaks for a master and its
workers. Both provide the server, the work beside its connections, and how a reload goes.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from ..dispatch.audit import asker
from ..dispatch.futures import then
from ..dispatch.replies import Reply
from ..errors import CONFLICT, INTERNAL_ERROR, NOT_SUPPORTED, CommandError
from ..protocol import VERSION
from ..system.native import threading
from ..system.standby import StandbyThread
from ..transports.control_thread import ControlServer
from .app import AppConfig
from .history import History
from .operation import Progress
from .reload import ReloadOperation, ReloadRequest
from .state import Event, Lifecycle, State
from .stop import Stop, StopRequest, stop_threads

R = TypeVar("R", bound=ReloadOperation)

logger = logging.getLogger("flask_ctl")


class Controller(ABC, Generic[R]):
    """Begins stops and reloads, one of each at a time, and answers for the server. Belongs to the control thread."""

    def __init__(self, control: ControlServer, pid: int) -> None:
        self.pid = pid
        """The process to signal."""
        self.hub_pid: int | None = None
        """The hub that answers for workers; None for a single process."""
        self._control = control
        self._lock = threading.Lock()
        self._lifecycle = Lifecycle()
        self._history = History()
        self._stop: Stop | None = None
        self._reload: R | None = None
        self._stop_threads: tuple[StandbyThread, StandbyThread] | None = None

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the apps' control sockets."""
        return self._control.endpoints

    @abstractmethod
    def status(self, app: Any) -> dict[str, Any] | Future[dict[str, Any]]:
        """The answer to `status` for one of the apps."""

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
            stop.start(self._end_server, threads)
            logger.info("stopping (%s), asked by %s", stop.mode, asker(request.by))
        return stop.join(request, progress)

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
        obstacle = self._reload_obstacle()
        if obstacle is not None:
            raise CommandError(f"can't reload: {obstacle}", code=NOT_SUPPORTED)
        reload = self._begin_reload(lambda: self._new_reload(request, reply))
        logger.info("reloading, asked by %s", asker(request.by))
        return reload.follow(progress)

    def reload_config(self) -> Future[dict[str, Any]]:
        """Run the apps' `on_reload` functions; the Future fails with the text of each failure."""
        began = time.monotonic()
        hooks = self._run_reload_hooks()
        return then(hooks, lambda count: {**self._result(0, time.monotonic() - began), "hooks_run": count})

    # What an instance and a hub do differently

    @property
    @abstractmethod
    def _directory(self) -> str:
        """Where the code that serves was loaded, resolved."""

    @abstractmethod
    def _check_stop(self, request: StopRequest) -> None:
        """Raises CommandError if the server can't be stopped like that."""

    @abstractmethod
    def _new_stop(self, request: StopRequest) -> Stop:
        """A stop that has not been started."""

    @abstractmethod
    def _end_server(self) -> None:
        """In the stop's thread: give the clients their answers, and end the server."""

    @abstractmethod
    def _end_at_once(self) -> None:
        """For an immediate stop: end the server without hooks and exit handlers."""

    @abstractmethod
    def _reload_obstacle(self) -> str | None:
        """Why the code can't be loaded anew, None if it can."""

    @abstractmethod
    def _new_reload(self, request: ReloadRequest, reply: Reply | None) -> R:
        """A reload that has not been started. Raises OSError for want of descriptors."""

    @abstractmethod
    def _run_reload_hooks(self) -> Future[int]:
        """Run the apps' `on_reload` functions; the Future gets the number of them, or CommandError."""

    # What they have in common

    def _notify(self) -> None:
        """Something has changed that the stop or the reload may wait for. From any thread, without a lock."""
        for operation in (self._stop, self._reload):
            if operation is not None:
                operation.notify()

    def _advance(self, event: Event) -> None:
        with self._lock:
            self._lifecycle.advance(event)

    def _begin_reload(self, make: Callable[[], R]) -> R:
        with self._lock:
            if self._lifecycle.state is not State.RUNNING:
                raise CommandError(f"can't reload while {self._lifecycle.state.value}", code=CONFLICT)
            self._lifecycle.advance(Event.RELOAD)
        try:
            self._reload = reload = make()
            reload.start()
        except (OSError, RuntimeError) as error:
            # No thread or no descriptor is left: nothing has happened.
            self._reload = None
            self._advance(Event.RETURN)
            raise CommandError(f"can't reload now: {error}; try again", code=INTERNAL_ERROR) from None
        return reload

    def _reloaded(self, by: dict[str, Any], elapsed: float, cut: int) -> dict[str, Any]:
        """Note that the new code serves; the result of the reload."""
        self._history.reloaded(by, elapsed, cut)
        logger.info("reloaded in %.3f s: generation %d", elapsed, self._history.generation)
        return self._result(cut, elapsed)

    def _reload_failed(self, reload: R, error: CommandError) -> None:
        """Note that the old code goes on."""
        output = error.data.get("traceback") if isinstance(error.data, dict) else None
        logger.error("%s", f"{error.message}\n{output}" if output else error.message)
        self._history.refused(reload.by, reload.elapsed, error.message)
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
        """The `state` of `status`."""
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
        return {
            "protocol": VERSION,
            "pid": self.pid,
            "parent": parent,
            "app": app.name,
            "cwd": cwd,
            "directory": self._directory,
            "root_path": app.root_path,
            "state": self._state.value,
            "generation": self._history.generation,
            "started_at": self._history.started_at,
            "reloaded_at": self._history.reloaded_at,
            "uptime": self._history.uptime,
            "server": server,
            "requests": requests,
            "process": process,
            "versions": app.versions,
            "workers": workers,
            "last_reload": self._history.last_reload,
            "stopping": None if self._stop is None else self._stop.describe(),
            "control": {"restarts": self._control.restarts, "sockets": self.endpoints},
        }


def requests_in_status(in_flight: int, oldest: float | None, total: int, errors: int) -> dict[str, Any]:
    """The `requests` of `status`; `oldest` is an age in seconds."""
    oldest = None if oldest is None else round(oldest, 3)
    return {"in_flight": in_flight, "oldest": oldest, "total": total, "errors": errors}
