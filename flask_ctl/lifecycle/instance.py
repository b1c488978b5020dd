"""One HTTP server under control: its apps, its state, its control sockets, its stop."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ..dispatch.audit import Audit
from ..dispatch.commands import Command
from ..dispatch.futures import chain, wait_in_app
from ..dispatch.peer import this_process
from ..dispatch.pool import Pool
from ..dispatch.replies import Reply
from ..errors import NOT_SUPPORTED, CommandError, ConfigurationError, InsecureConfiguration
from ..inspection import events
from ..inspection.levels import levels
from ..inspection.logs import recorder
from ..inspection.requests import oldest_request
from ..inspection.slow import SlowRequests
from ..servers.base import HttpServer
from ..servers.middleware import RequestCounter
from ..servers.unknown import UnknownServer
from ..system.at_exit import close_at_exit, forget
from ..system.directory import StartDirectory, current_directory
from ..system.handover import inherited
from ..system.metrics import ProcessMetrics
from ..system.native import new_future
from ..system.notify_socket import NotifySocket
from ..system.program import Program, program
from ..system.revision import git_commit
from ..system.sd_notify import TO_NOTIFY
from ..system.signals import accept_kept, signals, would_kill
from ..system.supervisor import Supervision
from ..system.threads import ThreadExceptions
from ..transports.control_thread import ControlServer
from ..transports.registration import Registration
from ..transports.registry import Claims
from .app import ServedApp, by_key, note_thread_exceptions
from .controller import Controller, requests_in_status
from .hooks import AppWork, run_reload_hooks
from .image import ImageState
from .operation import Progress
from .processes import OwnProcess
from .readiness import HooksResult, Readiness
from .reload import Reload, ReloadRequest
from .service_manager import ServiceManager
from .signals import SignalCommands, tell_terminal
from .sockets import AppSockets
from .state import Event, State
from .stop import Mode, Stop, StopRequest, stop_threads
from .watchdog import Load

logger = logging.getLogger("flask_ctl")


class Instance(Controller[Reload]):
    """A served HTTP server and the apps that it leads to, each with its own control sockets."""

    def __init__(
        self,
        server: HttpServer,
        apps: Sequence[ServedApp],
        *,
        handle_signals: bool,
        program: Program = program,
    ) -> None:
        super().__init__(ControlServer(), os.getpid())
        self.server = server
        self.apps = apps
        self._signals = None
        if handle_signals and not server.embedded:
            self._signals = SignalCommands(
                self.request_stop,
                self.request_reload,
                lambda: self._control.call_soon(lambda: tell_terminal(self._stop)),
                only_defaults=server.keeps_signal_handlers,
            )
        self._program = program
        watched = server.parent or os.getpid()
        # A stop of an embedded server ends no process.
        self._supervision = (
            None if server.embedded else Supervision(watched, program.environment, reloader=server.parent is not None)
        )
        # Of an embedded server the bigger program tells itself.
        told = NotifySocket({} if server.embedded else program.environment, watched)
        if told.is_there:
            # A flask-ctl that the app starts would speak for the whole service.
            for name in TO_NOTIFY:
                os.environ.pop(name, None)
        self._manager = ServiceManager(told, self._history)
        self._watch(told, lambda: max(app.watchdog_request for app in apps))
        self._pool = Pool(self._notify, max(app.limits.queue for app in apps))
        self.processes = self._own_process = OwnProcess(self._pool, self._history, self._control, by_key(apps))
        # Of their own, so that neither hanging commands keep them waiting, nor hanging hooks the commands.
        self._readiness_pool = Pool(self._notify, 1, size=1, name="flask-ctl-readiness")
        self._readiness = Readiness(apps, self._readiness_pool.submit)
        self._work = AppWork(apps, self._pool, self._readiness)
        self._audit = Audit()
        self._audit.on_record = events.record_command
        self._sockets: list[AppSockets] = []
        self._registration = Registration()
        self._figures = ProcessMetrics()
        server.notify, server.on_serving, server.on_stopped = self._notify, self.serving, self.finished
        self._cwd = current_directory()
        given = next((app.directory for app in apps if app.directory), None)
        if given is not None:
            program.start_in(given)
        # Now: a deployment may change it while this code serves.
        self._loaded_commit = git_commit(self._directory)
        self._thread_exceptions: ThreadExceptions | None = None
        self._image = ImageState(apps, self._history, self._audit, self.processes, inherit=not server.embedded)

    @property
    def has_predecessor(self) -> bool:
        return super().has_predecessor or self.server.restarted

    @property
    def stopping(self) -> bool:
        """Whether a stop is under way."""
        return self._lifecycle.state is State.STOPPING

    @property
    def ended(self) -> bool:
        """Whether its HTTP server has ended."""
        return self._lifecycle.state is State.STOPPED

    def open(self) -> None:
        """Bind the control sockets and start the control thread.

        An address that can't be used costs a warning; ConfigurationError if the app requires it.
        """
        try:
            for app in self.apps:
                if app.endpoints:
                    self._open_sockets(app)
            # Neither a stop, nor a command meanwhile, must fail for want of threads.
            self._pool.open()
            if any(app.ready_hooks or app.drain_hooks for app in self.apps):
                self._readiness_pool.open()
            self._stop_threads = stop_threads()
        except (ConfigurationError, RuntimeError):
            self.close()
            raise
        self._thread_exceptions = note_thread_exceptions(self.apps)
        recorder.begin(max(app.log_ring for app in self.apps))
        self._control.on_tick(recorder.tick)
        self._control.on_tick(self._own_process.expire_levels)
        if self._signals is not None:
            self._control.on_tick(signals.tick)
        for app in self.apps:
            self._control.on_tick(SlowRequests(app.requests, app.slow_request).tick)
        if not self.server.embedded:
            self._registration.inherit(inherited.take_entry())
        self._register()
        self._control.on_tick(self._register)
        self._control.on_tick(self._tell_manager)
        self._control.serve()
        close_at_exit(self)

    def serving(self) -> None:
        """The HTTP server is about to serve: signals are ours from now on."""
        # First: a client that has seen the state may send a signal.
        if self._signals is not None:
            self._signals.begin()
        accept_kept()
        self._manager.store([sock.fileno() for sock in self.server.to_store])
        self._advance(Event.SERVE)
        if self._history.leases:
            self._control.call_soon(self.attempt, self._pool.submit, lambda: levels.hold(self._history.leases))
        if self._image.owes_answer:
            self._image.answer_caller(self._control, self._reloaded)
            self._control.call_soon(self._image.begin_stops, self.stop)

    def finished(self) -> None:
        """The HTTP server has ended. In a process of its own the control sockets stay until the process ends."""
        self._advance(Event.END)
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
        self._registration.close()
        self._pool.close()
        self._readiness_pool.close()
        self._close_audit()
        if self._thread_exceptions is not None:
            self._thread_exceptions.end()
        for thread in self._stop_threads or ():
            thread.discard()
        forget(self)

    def stop(self, request: StopRequest, progress: Progress | None = None) -> Future[dict[str, Any]]:
        if request.mode == "graceful" and self._image.owes_answer:
            # The caller of the reload gets its answer first.
            return self._image.defer(request, progress)
        if request.mode != "immediate" and self._reload is not None and not self._reload.cancel():
            return self._image.stop_after_commit(self._reload.after_commit, request, progress)
        return super().stop(request, progress)

    def note_failed_check(self) -> None:
        """A health check has been answered with 503."""
        self._readiness.failed_checks += 1

    def read_metrics(self, requests: RequestCounter, timeout: float) -> dict[str, Any]:
        """In a view: the answer to `metrics` for the app with that counter. Raises TimedOut."""
        app = next(app for app in self.apps if app.requests is requests)
        turn: Future[None] = new_future()
        self._control.call_soon(turn.set_result, None)
        answer: dict[str, Any] = wait_in_app(chain(turn, lambda: self.metrics(app)), timeout)
        return answer

    def request_stop(
        self, mode: Mode = "graceful", by: dict[str, Any] | None = None, grace: float | None = None
    ) -> None:
        """Begin a stop from any thread or signal handler; never blocks."""
        explicit = grace is not None
        grace = max(app.grace for app in self.apps) if grace is None else grace
        request = StopRequest(mode, grace, by or this_process().describe(), explicit=explicit)
        self._control.call_soon(self.attempt, self.stop, request)

    def stop_result(self) -> dict[str, Any] | None:
        """What the stop was answered that has ended the server; None without one."""
        return self._stop.result.result() if self._stop is not None and self._stop.result.done() else None

    def request_reload(self, by: dict[str, Any]) -> None:
        """Begin a reload of the code from any thread or signal handler; what fails goes to the log."""
        app = self.apps[0]
        request = ReloadRequest(app.grace, False, True, app.preflight_timeout, by)
        self._control.call_soon(self.attempt, self.reload, request, None)

    def status(self, app: ServedApp) -> dict[str, Any]:
        """What `status` answers for one of the apps."""
        requests = app.requests
        status = self._status(
            app,
            server={
                "name": self.server.name,
                "version": self.server.version,
                "listeners": self.server.listeners,
                **({"activated": self.server.activated} if self.server.activated else {}),
            },
            requests=requests_in_status(requests.in_flight, *oldest_request(requests), *requests.totals()),
            process=self._figures.read(),
            workers=[],
            cwd=self._cwd,
            parent=self.server.parent,
        )
        return {**status, "stopping": status["stopping"] or self._image.stopping()}

    @property
    def _state(self) -> State:
        if not self.ended:
            return self._lifecycle.state
        # The server has ended, the process has not: threads, exit handlers or the program's own code go on.
        reload = self._reload
        return State.RELOADING if reload is not None and reload.committed and self._stop is None else State.STOPPING

    def _open_sockets(self, app: ServedApp) -> None:
        def submit(command: Command, arguments: dict[str, Any]) -> Future[Any]:
            return self._pool.submit(lambda: app.run_command(command.function, arguments))

        sockets = AppSockets(app, self, app.commands, submit, self._audit)
        self._sockets.append(sockets)
        self._control.on_tick(lambda: sockets.tick(self._control.add))
        for endpoint in app.endpoints:
            try:
                sockets.open(endpoint, self._control.open)
            except ConfigurationError as error:
                if app.required or isinstance(error, InsecureConfiguration):
                    raise
                logger.warning("%s serves without a control socket: %s", app.name, error.message)
        try:
            sockets.join_fleet(self._control.open)
        except ConfigurationError as error:
            if app.required:
                raise
            logger.warning("%s serves without control over NATS: %s", app.name, error.message)

    def _register(self) -> None:
        if self._control.endpoints:
            apps = [sockets.registered() for sockets in self._sockets]
            self._registration.renew(Claims(apps, self._cwd, self.server.name))

    @property
    def start_directory(self) -> StartDirectory:
        return self._program.start_directory

    @property
    def _directory(self) -> str:
        return self.start_directory.real

    @property
    def commit(self) -> str | None:
        return self._loaded_commit

    def _check_stop(self, request: StopRequest) -> None:
        if request.mode == "immediate" and self.server.embedded:
            raise CommandError(
                "the server runs in a thread of a bigger program, which immediate would end; use fast",
                code=NOT_SUPPORTED,
            )

    def _new_stop(self, request: StopRequest) -> Stop:
        return Stop(self.server, self._work, request, self.pid)

    def _end_server(self) -> None:
        self._control.flush()
        if isinstance(self.server, UnknownServer) and would_kill():
            # Nothing runs after that signal, so the last answers have to be out before.
            self._control.close()
        self.server.end()

    def _end_at_once(self) -> None:
        def exit_process() -> None:
            self._registration.close()
            self._close_audit()
            os._exit(0)

        self._control.finish(exit_process)

    def reload_obstacle(self) -> str | None:
        return self.server.obstacle() or self._program.obstacle()

    def _new_reload(self, request: ReloadRequest, reply: Reply | None) -> Reload:
        return Reload(
            self.server,
            self._work,
            request,
            self._program,
            on_failure=self._reload_failed,
            on_commit=lambda: forget(self),
            hand_over=lambda: self._hand_over(reply),
            end=self._end_after_commit,
        )

    def _load(self) -> Load:
        counters = [app.requests for app in self.apps]
        ages = [one.age for counter in counters if (one := counter.oldest()) is not None]
        finished = sum(counter.totals()[0] - counter.in_flight for counter in counters)
        return Load(finished, max(ages, default=None), self.server.backlog())

    def _address(self) -> Any:
        return next(iter(self.server.reached_at()), None)

    def _drain_progress(self) -> dict[str, int]:
        in_flight = sum(app.requests.in_flight for app in self.apps)
        return {"in_flight": in_flight, "failed_checks": self._readiness.failed_checks}

    def _tell_state(self) -> None:
        self._readiness.change(self.ready)

    def _tell_drain(self, deadline: float) -> Future[dict[str, Any]]:
        told: Future[dict[str, Any]] = new_future()

        def tell(hooks: HooksResult, unanswered: list[dict[str, Any]]) -> None:
            if not told.done():
                told.set_result({**hooks, "unanswered": unanswered})

        def tell_late() -> None:
            error = f"the hook {self._readiness.running_hook} still runs"
            tell({"hooks_run": 0, "hooks_failed": []}, [{"worker": self.pid, "error": error}])

        hooks = self._readiness.change(self.ready)
        hooks.add_done_callback(lambda done: self._control.call_soon(tell, done.result(), []))
        if deadline != math.inf:
            self._control.call_later(max(0.0, deadline - time.monotonic()), tell_late)
        return told

    def _run_reload_hooks(self) -> Future[int]:
        return self._pool.submit(lambda: run_reload_hooks(self.apps))

    def _close_audit(self) -> None:
        for sockets in self._sockets:
            sockets.close()
        self._audit.close()

    def _end_after_commit(self) -> int:
        """The process is to end, and not to be replaced; its exit code."""
        assert self._reload is not None
        self._reload.after_commit.release_listeners()
        self._advance(Event.STOP)
        # A stop that comes any later would find no thread that hands over its answer.
        self._control.end_thread()
        self._image.end(self._reload.after_commit.stop_result(self.pid))
        self._control.flush()
        self.close()
        return signals.exit_status

    def _hand_over(self, reply: Reply | None) -> dict[str, Any] | None:
        """At the very end of this image: what the next one carries on; None if this one is to end after all."""
        assert self._reload is not None
        # The control thread first: what it still does goes into all the rest.
        self._control.end_thread()
        if not self._reload.after_commit.decide():
            return None
        try:
            if reply is not None:
                reply.keep()
            for sockets in self._sockets:
                sockets.guard.close()
            instance = self._image.export_state(self._reload)
            self._manager.leave(max(app.preflight_timeout for app in self.apps))
            state = {
                **self.server.hand_over(),
                "controls": self._control.export_state(),
                "entry": self._registration.export_state(),
            }
            # All of that may take seconds. A signal that has come meanwhile is for the next image.
            self._control.finish_calls()
            return {**state, "instance": {**instance, "stops": self._image.export_stops()}}
        except BaseException:
            self.close()
            raise
