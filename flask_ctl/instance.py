"""One HTTP server under control: its apps, its state, its control sockets, its stop."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .access import check_same_user, this_process
from .adapters import HttpServer
from .addresses import parse_address
from .builtins import builtin_commands
from .commands import Command, CommandRegistry
from .dispatcher import Dispatcher
from .errors import NOT_SUPPORTED, CommandError, ConfigurationError
from .figures import ProcessFigures
from .lifecycle import Event, Lifecycle, State
from .middleware import RequestCounter
from .pool import Pool
from .protocol import VERSION
from .server import ControlServer
from .signals import signals
from .stopping import Mode, Progress, Stop, StopRequest, timestamp
from .transports.unix import UnixListener

logger = logging.getLogger("flask_ctl")


@dataclass(frozen=True)
class ServedApp:
    """What has to be known of an app to control it; nothing here is Flask's."""

    name: str
    root_path: str
    requests: RequestCounter
    commands: Sequence[Command]
    stop_hooks: Sequence[Callable[[], Any]]
    run_command: Callable[[Callable[..., Any], dict[str, Any]], Any]
    """Calls a function in the app's context; the result is JSON."""
    run_hook: Callable[[Callable[[], Any]], Any]
    """Calls a function in the app's context."""
    endpoints: Sequence[str]
    required: bool
    grace: float
    versions: dict[str, str]


class Instance:
    """A served HTTP server and the apps that it leads to, each with its own control sockets."""

    def __init__(
        self, server: HttpServer, apps: Sequence[ServedApp], *, handle_signals: bool, threads: int | None = None
    ) -> None:
        self.server = server
        self.apps = apps
        self.threads = threads
        self.pid = os.getpid()
        self.lifecycle = Lifecycle()
        self._handle_signals = handle_signals and not server.embedded
        self._control = ControlServer()
        self._pool = Pool(self._poke)
        self._figures = ProcessFigures()
        self._lock = threading.Lock()
        self._stop: Stop | None = None
        self._interrupts = 0
        self._cwd = os.getcwd()
        self._started_at = timestamp(datetime.now(timezone.utc))
        self._began = time.monotonic()

    @property
    def endpoints(self) -> list[str]:
        """Where it listens."""
        return self._control.endpoints

    @property
    def ended(self) -> bool:
        """Whether its HTTP server has ended."""
        return self.lifecycle.state is State.STOPPED

    def open(self) -> None:
        """Bind the control sockets and start the control thread.

        An address that can't be used costs a warning; ConfigurationError if the app requires it.
        """
        try:
            for app in self.apps:
                self._open_sockets(app)
        except ConfigurationError:
            self.close()
            raise
        self._control.serve()
        _remember(self)

    def serving(self) -> None:
        """The HTTP server is about to serve: signals are ours from now on."""
        self.lifecycle.advance(Event.SERVE)
        if self._handle_signals:
            signals.install(only_defaults=self.server.keeps_signal_handlers)
            signals.on_signal = self._on_signal

    def finished(self) -> None:
        """The HTTP server has ended. In a process of its own the control sockets stay until the process ends."""
        with self._lock:
            self.lifecycle.advance(Event.END)
        if self._handle_signals and signals.on_signal == self._on_signal:
            signals.restore()
        if self.server.embedded and self._stop is not None:
            self._stop.wait()
        if self.server.embedded or self._stop is None:
            self.close()

    def close(self) -> None:
        """Give up the control sockets and end the threads; more than once is fine."""
        self._control.close()
        self._pool.close()
        _forget(self)

    def stop(
        self, mode: Mode, grace: float, delay: float, by: dict[str, Any], progress: Progress | None = None
    ) -> Future[dict[str, Any]]:
        """On the control thread: begin a stop, or join the one under way; the Future gets its result.

        Raises CommandError -32001 for `immediate` in a program that does more than to serve this app.
        """
        if mode == "immediate" and self.server.embedded:
            raise CommandError(
                "the server runs in a thread of a bigger program, which immediate would end; use fast",
                code=NOT_SUPPORTED,
            )
        with self._lock:
            beginning = self._stop is None
            if self._stop is None:
                self._stop = Stop(self.server, self, StopRequest(mode, grace, delay, by), self.pid)
                if not self.ended:
                    self.lifecycle.advance(Event.STOP)
            stop = self._stop
        if mode == "immediate":
            stop.give_up()
            # In two steps: the answer to this very call is queued only when it has returned.
            self._control.call_soon(self._control.call_soon, self._control.finish, lambda: os._exit(0))
            return stop.result
        if beginning:
            logger.info("stopping (%s), asked by %s", mode, by)
            stop.start(self.server.end)
        return stop.join(mode, progress)

    def request_stop(
        self, mode: Mode = "graceful", by: dict[str, Any] | None = None, grace: float | None = None
    ) -> None:
        """Begin a stop from any thread or signal handler; never blocks."""
        if grace is None:
            grace = max(app.grace for app in self.apps)
        self._control.call_soon(self.stop, mode, grace, 0.0, by or this_process().describe())

    def status(self, app: ServedApp) -> dict[str, Any]:
        """What `status` answers for one of the apps."""
        total, errors = app.requests.totals()
        stop = self._stop
        return {
            "protocol": VERSION,
            "pid": self.pid,
            "parent": self.server.parent,
            "app": app.name,
            "cwd": self._cwd,
            "root_path": app.root_path,
            "state": self.lifecycle.state.value,
            "generation": 1,
            "started_at": self._started_at,
            "reloaded_at": None,
            "uptime": round(time.monotonic() - self._began, 3),
            "server": {"name": self.server.name, "version": self.server.version, "listeners": self.server.listeners},
            "requests": {
                "in_flight": app.requests.in_flight,
                "oldest": app.requests.oldest(),
                "total": total,
                "errors": errors,
            },
            "process": self._figures.read(),
            "versions": app.versions,
            "workers": [],
            "last_reload": None,
            "stopping": stop.describe() if stop is not None else None,
            "control": {"restarts": self._control.restarts, "sockets": self.endpoints},
        }

    def commands_in_flight(self) -> int:
        return self._pool.unfinished

    def finished_count(self) -> int:
        """Requests of all apps that have ended."""
        return sum(app.requests.totals()[0] - app.requests.in_flight for app in self.apps)

    def run_stop_hooks(self) -> None:
        """Each app's `on_stop` functions, in order; one that fails is logged and the others still run."""
        for app in self.apps:
            for hook in app.stop_hooks:
                try:
                    app.run_hook(hook)
                except BaseException:
                    # A hook that calls sys.exit is no reason to leave out the others.
                    logger.exception("the on_stop hook %r failed", hook)

    def _open_sockets(self, app: ServedApp) -> None:
        registry = CommandRegistry(app.commands)
        for command in builtin_commands(self, app, registry):
            registry.add(command)
        dispatcher = Dispatcher(registry, lambda c, a: self._submit(app, c, a), check_same_user)
        for endpoint in app.endpoints:
            try:
                self._control.open(UnixListener(parse_address(endpoint)), dispatcher)
            except ConfigurationError as error:
                if app.required:
                    raise
                logger.warning("%s serves without a control socket: %s", app.name, error.message)
            else:
                logger.info("%s listens for control at %s", app.name, endpoint)

    def _submit(self, app: ServedApp, command: Command, arguments: dict[str, Any]) -> Future[Any]:
        return self._pool.submit(lambda: app.run_command(command.function, arguments))

    def _poke(self) -> None:
        if self._stop is not None:
            self._stop.poke()

    def _on_signal(self, signum: int) -> None:
        name = signal.Signals(signum).name
        self._interrupts += signum == signal.SIGINT
        self.request_stop("fast" if self._interrupts > 1 else "graceful", {"signal": name})
        if signum == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
            self._control.call_soon(self._tell_terminal)

    def _tell_terminal(self) -> None:
        stop = self._stop
        if stop is None or stop.mode != "graceful":
            return
        fields = stop.progress()
        if fields["in_flight"]:
            print(
                f"\nWaiting for {fields['in_flight']} in flight, {fields['remaining']:.0f} s at most;"
                " press Ctrl-C again to cut them.",
                file=sys.stderr,
            )


_open: set[Instance] = set()


def open_instances() -> list[Instance]:
    """The instances of this process whose control sockets are open."""
    return list(_open)


def _remember(instance: Instance) -> None:
    _open.add(instance)
    if "multiprocessing" in sys.modules:
        # A child of multiprocessing leaves by os._exit, without atexit.
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            util.Finalize(instance, instance.close, exitpriority=0)


def _forget(instance: Instance) -> None:
    _open.discard(instance)


@atexit.register
def _close_all() -> None:
    # Registered when the package is imported, so called after the app's own: if one of them hangs, status answers.
    served = bool(_open)
    for instance in open_instances():
        instance.close()
    if served:
        # The modules of a Flask app take longer to collect than the whole of the rest of the exit.
        gc.freeze()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)
