"""A worker under control: what it reports to its hub, and how it answers the hub's requests."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...dispatch.audit import write_record
from ...dispatch.commands import CommandRegistry
from ...errors import CommandError, ConfigurationError, RemoteProtocolError
from ...lifecycle.app import ServedApp
from ...lifecycle.hooks import run_reload_hooks, run_stop_hooks
from ...lifecycle.stop import Mode
from ...protocol.jsonrpc import decode
from ...servers.base import PreforkWorker
from ...servers.middleware import RequestCounter
from ...system.addresses import parse_address
from ...system.at_exit import close_at_exit, forget
from ...system.bytecode import remove_stale
from ...system.directory import current_directory
from ...system.native import threading
from ...system.program import program
from .. import messages
from ..messages import Figures, Hello, SavedState, Tally, Welcome
from .connection import HubConnection
from .executor import POLL, make_executor
from .presence import Presence
from .records import by_key, record_of
from .spawn import private_path

REPORT_INTERVAL, EAGER_INTERVAL = 1.0, 0.02
"""Seconds between two reports, and while the hub waits for the last request to end."""

START_TIMEOUT = 10.0
"""Seconds for the hub to say whether the addresses can be used, where an app requires it."""

CLOSE_TIMEOUT = 1.0
"""Seconds for the last report at the end of the worker."""

logger = logging.getLogger("flask_ctl")


class Agent:
    """The apps that one worker serves. It has the methods that an app's Control asks of what serves it."""

    def __init__(self, server: PreforkWorker, apps: Sequence[ServedApp]) -> None:
        self.server = server
        self.apps = apps
        self.ended = False
        self.stopping = False
        self._pid = os.getpid()
        self._by_key = by_key(apps)
        self._registries = {key: CommandRegistry(app.commands) for key, app in self._by_key.items()}
        self._executor = make_executor(max(app.limits.queue for app in apps))
        self._cwd = current_directory()
        self._directory = server.start_directory(next((app.directory for app in apps if app.directory), None))
        self._memory: SavedState | None = None
        self._told: Figures | None = None
        self._eager = False
        self._lingering = False
        self._impatient = False
        self._quiesced = False
        self._hooks_run = self._hooks_ran = False
        self._final = False
        self._refusal = ""
        # If an app requires a socket, the serving thread waits until the hub has opened it.
        self._ready = not any(app.required for app in apps)
        self._grace = max(app.grace for app in apps)
        self._welcome: Welcome | None = None
        self._welcomed = threading.Lock()
        self._ending = threading.Lock()
        for app in apps:
            app.requests.is_abort = server.is_abort
        self._presence = Presence(server.master)
        self._connection = HubConnection(
            private_path(server.master),
            server.master,
            hello=self._hello,
            report=self._report,
            hear=self._hear,
            interval=lambda: EAGER_INTERVAL if self._eager else REPORT_INTERVAL,
            is_wanted=server.has_master,
        )
        self._methods: dict[str, Callable[..., Any]] = {
            "be_at": self._be_at,
            "figures": self._figures_now,
            "hold_back": self._set_held,
            "allow": self._extend_grace,
            "calm": self._quiesce,
            "close_silent": self._close_silent,
            "audit": write_record,
            "preflight": self._preflight_command,
            "leave": self._exit,
        }

    @property
    def endpoints(self) -> list[str]:
        """Where the hub listens."""
        return [] if self._welcome is None else self._welcome.endpoints

    def begin(self) -> None:
        """Connect. Raises ConfigurationError if an app requires an address that the hub can't have."""
        self._welcomed.acquire()
        self._connection.start()
        # Called before the app's own exit handlers, which were registered at its import.
        atexit.register(self.finish)
        close_at_exit(self)
        if not self._ready:
            self._wait_for_addresses()

    def request_stop(self, mode: Mode = "graceful", by: Any = None, grace: float | None = None) -> None:
        """Have the hub begin a stop of the whole server; never blocks."""
        self._connection.send(
            messages.request("stop", {"mode": mode, "grace": self._grace if grace is None else grace})
        )

    def finish(self) -> None:
        """At the end of the worker, in its main thread: finish commands, run the hooks, tell the last figures."""
        if os.getpid() != self._pid or self.ended:
            return
        if self._quiesced:
            # The signal has come; the next worker may accept the connections that wait.
            self.server.set_accepting(True)
        # A second caller waits here until the process ends.
        self._ending.acquire()
        self.ended = True
        self._executor.wait(self._grace)
        self._run_stop_hooks(wait=False)
        self._final = True
        self._connection.close(CLOSE_TIMEOUT)

    def close(self) -> None:
        """See `finish`."""
        self.finish()
        forget(self)

    # What the connection asks

    def _hello(self) -> bytes:
        hello = Hello(
            package=self.apps[0].versions["flask_ctl"],
            pid=self._pid,
            master=self.server.master,
            loaded=messages.Loaded(program.pid, program.loaded_at),
            wanted=self.server.wanted,
            cwd=self._cwd,
            server={
                "name": self.server.name,
                "version": self.server.version,
                "listeners": self.server.listeners if self._ready else [],
            },
            signals=self.server.signals,
            drains_by_itself=self.server.drains_by_itself,
            obstacle=self.server.obstacle(),
            apps=[record_of(key, app) for key, app in self._by_key.items()],
            figures=self._figures(),
            memory=self._memory,
            ready=self._ready,
            directory=self._directory,
            last_words=self.server.runs_exit_handlers,
        )
        self._told = hello.figures
        return messages.request("hello", messages.as_json(hello), messages.HELLO_ID)

    def _report(self) -> bytes | None:
        self._presence.renew()
        figures = self._figures()
        if figures == self._told and not self._final:
            return None
        self._told = figures
        return messages.request("report", {"figures": messages.as_json(figures), "final": self._final})

    def _hear(self, line: bytes) -> None:
        try:
            value = decode(line)
        except CommandError as error:
            raise RemoteProtocolError(error.message) from None
        if not isinstance(value, dict):
            raise RemoteProtocolError("no object")
        if "method" in value:
            self._serve(value["method"], value.get("params", {}), value.get("id"))
        elif value.get("id") == messages.HELLO_ID:
            self._note_welcome(value)

    # What the hub asks

    def _serve(self, method: str, params: dict[str, Any], id: Any) -> None:
        try:
            if method in ("call", "stop_hooks", "reload_hooks"):
                self._connection.send(messages.request("taken", {"id": id}))
                self._executor.submit(self._job(method, params), lambda result: self._answer(id, result))
            elif method == "memory":
                self._memory = SavedState.from_json(params)
            elif method in self._methods:
                self._answer(id, self._methods[method](**params))
        except Exception as error:
            # The hub gets the error of one request, and the worker goes on with the next one.
            if not isinstance(error, CommandError):
                logger.exception("the hub's request %s failed", method)
            self._answer(id, error)

    def _answer(self, id: Any, result: Any) -> None:
        if id is not None:
            self._connection.send(messages.answer(id, result))

    def _job(self, method: str, params: Mapping[str, Any]) -> Callable[[], Any]:
        if method == "call":
            return self._command(**params)
        return self._run_stop_hooks if method == "stop_hooks" else lambda: run_reload_hooks(self.apps)

    def _command(self, app: str, name: str, params: Any = None, texts: Any = None) -> Callable[[], Any]:
        command = self._registries[app].get(name)
        arguments = command.bind(params or {}) if texts is None else command.bind_text(texts)
        return lambda: self._by_key[app].run_command(command.function, arguments)

    def _figures_now(self) -> dict[str, Any]:
        self._told = self._figures()
        return messages.as_json(self._told)

    def _be_at(self, endpoints: list[str]) -> None:
        """The hub listens at these addresses."""
        self._presence.be_at(path for endpoint in endpoints if (path := parse_address(endpoint).path))

    def _set_held(self, yes: bool) -> bool:
        """Accept no new connections, or accept them again; whether the server can do that."""
        self._eager = self._lingering = self.stopping = yes
        self._impatient = False
        return self.server.set_accepting(not yes)

    def _close_silent(self) -> None:
        self._lingering = False
        self._impatient = True
        self.server.close_silent()

    def _quiesce(self, yes: bool) -> None:
        """Accept no new connections while the master is signalled to replace the workers."""
        self._quiesced = yes
        self.server.set_accepting(not yes)

    def _preflight_command(self) -> dict[str, Any] | None:
        remove_stale()
        return self.server.preflight()

    def _extend_grace(self, seconds: float) -> None:
        # The last question before the master starts new workers.
        remove_stale()
        self._grace = max(self._grace, seconds)
        self.server.extend_grace(seconds)

    def _exit(self, wait: bool = False) -> None:
        """Run the exit handlers, unless they are running already, and end although requests are in flight.

        The process may `wait` for a master's signal that would not have them run.
        """
        if not self._ending.acquire(blocking=False):
            return
        with contextlib.suppress(OSError):
            self._connection.flush()
        atexit.unregister(self.finish)
        forget(self)
        atexit._run_exitfuncs()
        if not wait:
            os._exit(0)

    def _run_stop_hooks(self, wait: bool = True) -> None:
        """Run each app's `on_stop` functions, once; a second caller may `wait` until they have run."""
        if self._hooks_run:
            while wait and not self._hooks_ran:
                # This lets greenlets go on, too.
                time.sleep(POLL)
            return
        self._hooks_run = True
        run_stop_hooks(self.apps)
        self._hooks_ran = True

    # Helpers

    def _figures(self) -> Figures:
        tallies = {key: _tally_of(app.requests) for key, app in self._by_key.items()}
        if self._impatient:
            # Connections that waited in the backlog behind slow requests are accepted only now.
            self.server.close_silent()
        # Only for a stop is it worth the look at all descriptors.
        begun = self.server.begun() - sum(tally.in_flight for tally in tallies.values()) if self.stopping else 0
        silent = self.server.silent() if self._lingering else 0
        return Figures(tallies, self._executor.unfinished, self.server.waiting(), max(begun, 0), silent)

    def _note_welcome(self, value: dict[str, Any]) -> None:
        if "error" in value:
            self._note_refusal(messages.error_of(value).message)
            raise RemoteProtocolError("it refuses this worker")
        self._refusal = ""
        welcome, before = Welcome.from_json(value.get("result")), self._welcome
        self._welcome = welcome
        self._be_at(welcome.endpoints)
        self._set_held(welcome.holding)
        if welcome.first and before is None:
            for endpoint in welcome.endpoints:
                logger.info("%s listens for control at %s", self.server.name, endpoint)
            for problem in welcome.problems if self._ready else []:
                logger.warning("%s serves without a control socket: %s", self.apps[0].name, problem)
        if before is None:
            self._welcomed.release()
        if not self._ready and not welcome.problems:
            self._ready = True
            self._connection.send(self._hello())

    def _note_refusal(self, why: str) -> None:
        """Say it once: the link tries again and again."""
        if why != self._refusal:
            self._refusal = why
            logger.warning("the hub refuses this worker, which tries again: %s", why)

    def _wait_for_addresses(self) -> None:
        if not self._welcomed.acquire(timeout=START_TIMEOUT):
            raise ConfigurationError(f"the hub has not answered within {START_TIMEOUT:g} s")
        if self._welcome is not None and self._welcome.problems:
            raise ConfigurationError("; ".join(self._welcome.problems))


def _tally_of(requests: RequestCounter) -> Tally:
    return Tally(requests.in_flight, requests.oldest(), *requests.totals(), requests.aborted())
