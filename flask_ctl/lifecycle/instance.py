"""One HTTP server under control: its apps, its state, its control sockets, its stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ..dispatch.audit import Audit, Entry, asker
from ..dispatch.commands import Command, CommandRegistry
from ..dispatch.dispatcher import NOBODY, Dispatcher, Reply, reply_bytes
from ..dispatch.guard import Guard
from ..dispatch.peer import this_process
from ..dispatch.pool import Pool
from ..errors import CONFLICT, INTERNAL_ERROR, NOT_SUPPORTED, CommandError, ConfigurationError, InsecureConfiguration
from ..protocol import VERSION
from ..servers.base import HttpServer
from ..servers.unknown import UnknownServer
from ..system.at_exit import close_at_exit, forget
from ..system.handover import inherited
from ..system.metrics import ProcessFigures
from ..system.native import new_future, threading
from ..system.program import program
from ..system.signals import signals, would_kill
from ..system.standby import StandbyThread
from ..transports.base import Listener
from ..transports.control_thread import ControlServer
from ..transports.defaultname import DefaultName
from ..transports.unix import answer_and_close
from .app import ServedApp, listener_at
from .commands import builtin_commands
from .history import History
from .operation import Progress
from .reload import Reload, ReloadRequest, Replaceable
from .signals import SignalCommands
from .state import Event, Lifecycle, State
from .stop import DeferredStop, Mode, Stop, StopRequest

logger = logging.getLogger("flask_ctl")


class Instance:
    """A served HTTP server and the apps that it leads to, each with its own control sockets."""

    def __init__(
        self,
        server: HttpServer,
        apps: Sequence[ServedApp],
        *,
        handle_signals: bool,
        program: Replaceable = program,
    ) -> None:
        self.server = server
        self.apps = apps
        self.pid = os.getpid()
        self.lifecycle = Lifecycle()
        self._signals = SignalCommands(self) if handle_signals and not server.embedded else None
        self._program = program
        self._control = ControlServer()
        self._pool = Pool(self._poke, max(app.limits.queue for app in apps))
        self._audit = Audit()
        self._guards: list[Guard] = []
        self._names: list[DefaultName] = []
        self._left: list[Entry] = []
        self._figures = ProcessFigures()
        self._lock = threading.Lock()
        self._stop: Stop | None = None
        self._reload: Reload | None = None
        self._stops_for_next: list[DeferredStop] = []
        self._ended: dict[str, Any] | None = None
        self._stop_threads: list[StandbyThread] = []
        server.notify, server.on_serving, server.on_stopped = self._poke, self.serving, self.finished
        self._cwd = _current_directory()
        given = next((app.directory for app in apps if app.directory), None)
        if given is not None:
            program.start_in(given)
        self._history = History()
        self._former = None if server.embedded else inherited.take_instance()
        if self._former is not None:
            self._carry_on(self._former)

    @property
    def endpoints(self) -> list[str]:
        """Where it listens."""
        return self._control.endpoints

    @property
    def keeps_signal_handlers(self) -> bool:
        """Whether the HTTP server has signal handlers of its own, which stay."""
        return self.server.keeps_signal_handlers

    @property
    def stopping(self) -> bool:
        """Whether a stop is under way."""
        return self.lifecycle.state is State.STOPPING

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
            # Neither a stop, nor a command meanwhile, must fail for want of threads.
            self._pool.open()
            for name in ("flask-ctl-stop", "flask-ctl-hooks"):
                self._stop_threads.append(StandbyThread(name))
        except (ConfigurationError, RuntimeError):
            self.close()
            raise
        self._control.serve()
        close_at_exit(self)

    def serving(self) -> None:
        """The HTTP server is about to serve: signals are ours from now on."""
        with self._lock:
            self.lifecycle.advance(Event.SERVE)
        if self._signals is not None:
            self._signals.begin()
        if self._former is not None:
            self._answer_for(self._former)

    def finished(self) -> None:
        """The HTTP server has ended. In a process of its own the control sockets stay until the process ends."""
        with self._lock:
            self.lifecycle.advance(Event.END)
        if self._reload is not None and self._reload.committed:
            return
        if self._signals is not None:
            self._signals.end()
        if self.server.embedded and self._stop is not None:
            self._stop.wait()
        if self.server.embedded or self._stop is None:
            self.close()

    def close(self) -> None:
        """Give up the control sockets and end the threads; more than once is fine."""
        self._control.close()
        for name in self._names:
            name.close()
        self._pool.close()
        self._close_audit()
        for thread in self._stop_threads:
            thread.discard()
        forget(self)

    def stop(
        self, request: StopRequest, progress: Progress | None = None, reply: Reply | None = None
    ) -> Future[dict[str, Any]]:
        """On the control thread: begin a stop, or join the one under way; the Future gets its result.

        A reload is called off; if there is no way back, the next image stops, and gives the reply. Raises CommandError
        -32001 for `immediate` in a program that does more than to serve this app.
        """
        mode = request.mode
        if mode == "immediate" and self.server.embedded:
            raise CommandError(
                "the server runs in a thread of a bigger program, which immediate would end; use fast",
                code=NOT_SUPPORTED,
            )
        if mode != "immediate" and self._reload is not None and not self._reload.cancel():
            return self._stop_after_commit(self._reload, request, reply)
        stop = self._stop or Stop(self.server, self, request, self.pid)
        if mode == "immediate":
            stop.give_up()
            # In two steps: the answer to this very call is queued only when it has returned.
            self._control.call_soon(self._control.call_soon, self._control.finish, self._exit)
            return stop.result
        if self._stop is None:
            self._begin_stop(stop)
        return stop.join(request, progress)

    def request_stop(
        self, mode: Mode = "graceful", by: dict[str, Any] | None = None, grace: float | None = None
    ) -> None:
        """Begin a stop from any thread or signal handler; never blocks."""
        explicit = grace is not None
        grace = self._default_grace if grace is None else grace
        request = StopRequest(mode, grace, by or this_process().describe(), explicit=explicit)
        self._control.call_soon(self._try_stop, request)

    def stop_result(self) -> dict[str, Any] | None:
        """What the stop was answered that has ended the server; None without one."""
        return self._stop.result.result() if self._stop is not None and self._stop.result.done() else None

    def reload(self, request: ReloadRequest, reply: Reply, progress: Progress | None = None) -> Future[dict[str, Any]]:
        """On the control thread: begin a reload; the Future gets its failure, the next image gives the `reply`.

        Raises CommandError -32001 where the process can't be replaced, -32002 during a stop or another reload.
        """
        reason = self.server.obstacle() or self._program.obstacle()
        if reason is not None:
            raise CommandError(f"can't reload: {reason}", code=NOT_SUPPORTED)
        with self._lock:
            if self.lifecycle.state is not State.RUNNING:
                raise CommandError(f"can't reload while {self.lifecycle.state.value}", code=CONFLICT)
            self.lifecycle.advance(Event.RELOAD)
        try:
            self._reload = reload = Reload(self.server, self, request, self._program)
            reload.start(
                lambda error: self._reload_failed(reload, error), self._reload_committed, lambda: self._hand_over(reply)
            )
        except (OSError, RuntimeError) as error:
            with self._lock:
                self._reload = None
                self.lifecycle.advance(Event.RETURN)
            raise CommandError(f"can't reload now: {error}; try again", code=INTERNAL_ERROR) from None
        logger.info("reloading, asked by %s", asker(request.by))
        return reload.follow(progress)

    def reload_config(self) -> Future[dict[str, Any]]:
        """Run the apps' `on_reload` functions; the Future fails with the text of those that fail."""
        began = time.monotonic()

        def run() -> dict[str, Any]:
            failed = [text for app in self.apps for hook in app.reload_hooks if (text := _run_reload_hook(app, hook))]
            if failed:
                raise CommandError("; ".join(failed), code=INTERNAL_ERROR)
            hooks = sum(len(app.reload_hooks) for app in self.apps)
            return {**self._reload_result(0, time.monotonic() - began), "hooks_run": hooks}

        return self._pool.submit(run)

    def request_reload(self, by: dict[str, Any]) -> None:
        """Begin a reload of the code from any thread or signal handler; what fails goes to the log."""
        app = self.apps[0]
        self._control.call_soon(self._try_reload, ReloadRequest(app.grace, False, True, app.preflight_timeout, by))

    def tell_soon(self, tell: Callable[[Stop], Any]) -> None:
        """Call `tell` with the stop under way, if there is one, on the control thread after what was requested."""
        self._control.call_soon(lambda: None if self._stop is None else tell(self._stop))

    def status(self, app: ServedApp) -> dict[str, Any]:
        """What `status` answers for one of the apps."""
        total, errors = app.requests.totals()
        oldest = app.requests.oldest()
        return {
            "protocol": VERSION,
            "pid": self.pid,
            "parent": self.server.parent,
            "app": app.name,
            "cwd": self._cwd,
            "directory": self._program.start_directory.real,
            "root_path": app.root_path,
            "state": self._state.value,
            "generation": self._history.generation,
            "started_at": self._history.started_at,
            "reloaded_at": self._history.reloaded_at,
            "uptime": self._history.uptime,
            "server": {"name": self.server.name, "version": self.server.version, "listeners": self.server.listeners},
            "requests": {
                "in_flight": app.requests.in_flight,
                "oldest": None if oldest is None else round(oldest, 3),
                "total": total,
                "errors": errors,
            },
            "process": self._figures.read(),
            "versions": app.versions,
            "workers": [],
            "last_reload": self._history.last_reload,
            "stopping": self._stopping(),
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

    @property
    def has_stop_hooks(self) -> bool:
        """Whether there is an `on_stop` function, which may end the program's threads."""
        return any(app.stop_hooks for app in self.apps)

    @property
    def _state(self) -> State:
        if not self.ended:
            return self.lifecycle.state
        # The server has ended, the process has not: threads, exit handlers or the program's own code go on.
        reload = self._reload
        return State.RELOADING if reload is not None and reload.committed and self._stop is None else State.STOPPING

    def _stopping(self) -> dict[str, Any] | None:
        if self._stop is not None:
            return self._stop.describe()
        return self._stops_for_next[0].describe() if self._stops_for_next else None

    @property
    def _default_grace(self) -> float:
        return max(app.grace for app in self.apps)

    def _open_sockets(self, app: ServedApp) -> None:
        registry = CommandRegistry(app.commands)
        for command in builtin_commands(self, app, registry):
            registry.add(command)
        guard = Guard(app.policy, app.limits, self._audit)
        self._guards.append(guard)
        self._control.on_tick(guard.tick)
        dispatcher = Dispatcher(registry, lambda c, a: self._submit(app, c, a), guard)
        for endpoint in app.endpoints:
            try:
                if app.by_default:
                    self._open_default(app, endpoint, guard, dispatcher)
                else:
                    self._control.open(listener_at(app, endpoint, guard), dispatcher)
                    logger.info("%s listens for control at %s", app.name, endpoint)
            except ConfigurationError as error:
                if app.required or isinstance(error, InsecureConfiguration):
                    raise
                logger.warning("%s serves without a control socket: %s", app.name, error.message)

    def _open_default(self, app: ServedApp, path: str, guard: Guard, dispatcher: Dispatcher) -> None:
        """Listen at the app's default socket, or by a name of our own until nobody else is there."""

        def listen_by(open_listener: Callable[[Listener, Dispatcher], Any]) -> Callable[[str], Any]:
            def listen(path: str) -> None:
                open_listener(listener_at(app, path, guard), dispatcher)
                logger.info("%s listens for control at %s", app.name, path)

            return listen

        name = DefaultName(path, self.pid)
        self._names.append(name)
        name.open(listen_by(self._control.open))
        self._control.on_tick(lambda: name.tend(listen_by(self._control.add)))

    def _submit(self, app: ServedApp, command: Command, arguments: dict[str, Any]) -> Future[Any]:
        return self._pool.submit(lambda: app.run_command(command.function, arguments))

    def _poke(self) -> None:
        for operation in (self._stop, self._reload):
            if operation is not None:
                operation.poke()

    def _begin_stop(self, stop: Stop) -> None:
        first, second = self._stop_threads
        stop.start(self._end_server, (first, second))
        with self._lock:
            self._stop = stop
            if not self.ended:
                self.lifecycle.advance(Event.STOP)
        logger.info("stopping (%s), asked by %s", stop.mode, asker(stop.by))

    def _end_server(self) -> None:
        self._control.flush()
        if isinstance(self.server, UnknownServer) and would_kill():
            # Nothing runs after that signal, so the last answers have to be out before.
            self._control.close()
        self.server.end()

    def _exit(self) -> None:
        self._close_audit()
        os._exit(0)

    def _close_audit(self) -> None:
        for guard in self._guards:
            guard.close()
        self._audit.close()

    def _try_stop(self, request: StopRequest, entries: Sequence[Entry] = ()) -> None:
        try:
            outcome = self.stop(request)
        except CommandError as error:
            logger.error("%s", error.message)
            outcome = new_future()
            outcome.set_exception(error)
        for entry in entries:
            entry.follow(outcome)

    def _try_reload(self, request: ReloadRequest) -> None:
        try:
            self.reload(request, NOBODY)
        except CommandError as error:
            logger.error("%s", error.message)

    def _reload_failed(self, reload: Reload, error: CommandError) -> None:
        output = error.data.get("traceback", "") if isinstance(error.data, dict) else ""
        logger.error("%s\n%s", error.message, output)
        with self._lock:
            self._history.refused(reload.by, reload.elapsed, error.message)
            self.lifecycle.advance(Event.RETURN)

    def _reload_committed(self) -> None:
        forget(self)

    def _stop_after_commit(self, reload: Reload, request: StopRequest, reply: Reply | None) -> Future[dict[str, Any]]:
        """Leave a graceful stop to the next image; a fast one, or the same signal once more, ends this one."""
        by = request.by
        again = "signal" in by and any(stop.by == by for stop in self._stops_for_next)
        stop = DeferredStop(request, reply)
        self._stops_for_next.append(stop)
        if self._ended is not None:
            stop.result.set_result(self._ended)
        elif request.mode == "fast" or again:
            reload.end_instead(lambda: self._end_after_commit(reload))
        return stop.result

    def _end_after_commit(self, reload: Reload) -> int:
        """The process is to end, and not to be replaced; its exit code."""
        cut = reload.cut + reload.discard_hand_over()
        with self._lock:
            if not self.ended:
                self.lifecycle.advance(Event.STOP)
        self._control.call_soon(self._answer_deferred, reload.ended(cut, self.pid))
        self._control.flush()
        self.close()
        return signals.exit_status

    def _answer_deferred(self, result: dict[str, Any]) -> None:
        self._ended = result
        for stop in self._stops_for_next:
            stop.result.set_result(result)

    def _hand_over(self, reply: Reply) -> dict[str, Any] | None:
        """At the very end of this image: what the next one carries on; None if this one is to end after all."""
        assert self._reload is not None
        # The control thread first: what it still does goes into all the rest.
        self._control.end_thread()
        if not self._reload.decide():
            return None
        try:
            return self._state_for_next(self._reload, reply)
        except BaseException:
            self.close()
            raise

    def _state_for_next(self, reload: Reload, reply: Reply) -> dict[str, Any]:
        reply.leave()
        for stop in reversed(self._stops_for_next):
            stop.leave()
        for guard in self._guards:
            guard.close()
        instance = {
            **self._history.leave(),
            "reload": {
                "by": reload.by,
                "began": reload.began,
                "cut": reload.cut,
                "left_behind": reload.left_behind,
            },
            "requests": {app.name: app.requests.totals() for app in self.apps},
            "stop": next((stop.unanswered() for stop in self._stops_for_next if stop.reply is None), None),
            "audit": self._audit.leave(),
        }
        return {"instance": instance, **self.server.hand_over(), "controls": self._control.hand_over()}

    def _carry_on(self, former: dict[str, Any]) -> None:
        self._history.carry_on(former)
        self._left = self._audit.carry_on(former.get("audit", []))
        for app in self.apps:
            app.requests.carry_on(*former["requests"].get(app.name, (0, 0)))

    def _answer_for(self, former: dict[str, Any]) -> None:
        """Tell those who asked the former image for this one that it serves."""
        reload = former["reload"]
        elapsed = round(time.monotonic() - reload["began"], 3)
        self._history.reloaded(reload["by"], elapsed, reload["cut"])
        result = self._reload_result(reload["cut"], elapsed) | reload["left_behind"]
        logger.info("reloaded in %.3f s: generation %d", elapsed, self._history.generation)
        stops = [entry for entry in self._left if entry.command == "stop"]
        for entry in self._left:
            if entry not in stops:
                entry.done(result if entry.replaces else CommandError("cut off by the reload"))
        self._control.answer_owed(lambda to: reply_bytes(to, "reload", result))
        for client in inherited.take_clients():
            answer_and_close(client, lambda to: reply_bytes(to, "reload", result))
        inherited.close_rest()
        if former["stop"] is not None:
            request = StopRequest("graceful", former["stop"]["grace"], former["stop"]["by"])
            self._control.call_soon(self._try_stop, request, stops)

    def _reload_result(self, cut: int, elapsed: float) -> dict[str, Any]:
        return {
            "generation": self._history.generation,
            "cut": cut,
            "elapsed": round(elapsed, 3),
            "pid": self.pid,
            "directory": self._program.start_directory.real,
        }


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _run_reload_hook(app: ServedApp, hook: Callable[[], Any]) -> str | None:
    """The text of its failure, None if it did not fail."""
    try:
        app.run_hook(hook)
    except Exception as error:
        logger.exception("the on_reload hook %r failed", hook)
        return f"{getattr(hook, '__name__', hook)}: {type(error).__name__}: {error}"
    return None
