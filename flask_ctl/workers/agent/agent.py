"""A worker under control: it introduces itself to its hub, reports to it, and ends in order."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ...dispatch.futures import wait_in_app
from ...errors import CommandError, ConfigurationError, RemoteProtocolError
from ...inspection.logs import recorder
from ...inspection.metrics import LEFT_OUT, Family, unpack
from ...inspection.slow import SlowRequests
from ...lifecycle.app import ServedApp, note_thread_exceptions
from ...lifecycle.state import DRAINING
from ...lifecycle.stop import Mode
from ...protocol.jsonrpc import decode
from ...protocol.typed import from_json
from ...servers.base import PreforkWorker
from ...servers.middleware import RequestCounter
from ...system.at_exit import close_at_exit, forget
from ...system.directory import current_directory
from ...system.native import new_future, threading
from ...system.program import program
from ...system.revision import git_commit
from ...transports.registration import entry_path
from .. import messages
from ..messages import Hello, Welcome
from ..state_file import read_state
from .connection import HubConnection
from .presence import Presence
from .records import record_of
from .requests import HubRequests
from .spawn import private_path

REPORT_INTERVAL, STOP_INTERVAL = 1.0, 0.02
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
        self._pid = os.getpid()
        self._cwd = current_directory()
        self._slow = [SlowRequests(app.requests, app.slow_request) for app in apps]
        self._directory = server.start_directory(next((app.directory for app in apps if app.directory), None))
        self._commit = git_commit(self._directory.real)
        self._final = False
        self._next_tick = self._next_snapshot = 0.0
        self._index = 0
        # Requests of this worker to the hub, by their id.
        self._asked: dict[Any, Future[Any]] = {}
        self._ids = itertools.count(messages.HELLO_ID + 1)
        self._refusal = ""
        # If an app requires a socket, the serving thread waits until the hub has opened it.
        self._ready = not any(app.required for app in apps)
        self._welcome: Welcome | None = None
        self._welcomed = threading.Event()
        self._ending = threading.Lock()
        for app in apps:
            app.requests.is_abort = server.is_abort
        self._path = private_path(server.master)
        self._connection = HubConnection(
            self._path,
            server.master,
            hello=self._hello,
            report=self._report,
            hear=self._hear,
            interval=lambda: STOP_INTERVAL if self.stopping else REPORT_INTERVAL,
            is_wanted=server.has_master,
        )
        self._presence = Presence(server.master, entry_path(self._path))
        self._requests = HubRequests(server, apps, self._presence, self._connection.send, self._exit)

    @property
    def endpoints(self) -> list[str]:
        """Where the hub listens."""
        return [] if self._welcome is None else self._welcome.endpoints

    @property
    def stopping(self) -> bool:
        """Whether the hub has had it drain."""
        return self._requests.stopping

    @property
    def state(self) -> str:
        """The `state` of `status`."""
        return self._requests.state

    @property
    def ready(self) -> bool:
        """Whether load balancers are to send requests."""
        return self._requests.readiness.ready

    def note_failed_check(self) -> None:
        """A health check has been answered with 503."""
        self._requests.readiness.failed_checks += 1

    def begin(self) -> None:
        """Connect. Raises ConfigurationError if an app requires an address that the hub can't have."""
        recorder.begin(max(app.log_ring for app in self.apps))
        if self._ready:
            # What the last hub has left is known at once; the app serves without a hub, too.
            kept = read_state(self._path + ".lock")
            drains = kept is not None and kept.drain is not None
            self._requests.set_state(DRAINING if drains else "running", not drains)
            if kept is not None and kept.leases:
                self._requests.hold_levels(kept.leases)
        self._connection.start()
        self._thread_exceptions = note_thread_exceptions(self.apps)
        # Called before the app's own exit handlers, which were registered at its import.
        atexit.register(self.finish)
        close_at_exit(self)
        if not self._ready:
            if not self._welcomed.wait(START_TIMEOUT):
                raise ConfigurationError(f"the hub has not answered within {START_TIMEOUT:g} s")
            if self._welcome is not None and self._welcome.problems:
                raise ConfigurationError("; ".join(self._welcome.problems))

    def request_stop(self, mode: Mode = "graceful", by: Any = None, grace: float | None = None) -> None:
        """Have the hub begin a stop of the whole server; never blocks."""
        grace = self._requests.grace if grace is None else grace
        self._connection.send(messages.request("stop", {"mode": mode, "grace": grace}))

    def read_metrics(self, requests: RequestCounter, timeout: float) -> dict[str, Any]:
        """In a view: the answer to `metrics` for the app with that counter, of all workers. Raises TimedOut."""
        key = next(key for key, app in self._requests.by_key.items() if app.requests is requests)
        id, answer = next(self._ids), new_future()
        self._asked[id] = answer
        try:
            self._connection.send(messages.request("read_metrics", {"app": key}, id))
            return {"families": _counted(*unpack(wait_in_app(answer, timeout))), "unanswered": []}
        finally:
            del self._asked[id]

    def finish(self) -> None:
        """At the end of the worker, in its main thread: finish commands, run the hooks, send the last figures."""
        if os.getpid() != self._pid or self.ended:
            return
        self._requests.begin_end()
        # A second caller waits here until the process ends.
        self._ending.acquire()
        self.ended = True
        self._requests.finish()
        self._thread_exceptions.end()
        self._requests.leave()
        self._final = True
        self._connection.close(CLOSE_TIMEOUT)

    def close(self) -> None:
        """See `finish`."""
        self.finish()
        forget(self)

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

    # What the connection asks

    def _hello(self) -> bytes:
        server, figures = self.server, self._requests.count()
        hello = Hello(
            package=self.apps[0].versions["flask_ctl"],
            pid=self._pid,
            master=server.master,
            loaded=messages.Loaded(program.pid, program.loaded_at),
            wanted=server.wanted,
            cwd=self._cwd,
            server={
                "name": server.name,
                "version": server.version,
                "listeners": server.listeners if self._ready else [],
                **({"activated": list(server.activated)} if server.activated else {}),
            },
            signals=server.signals,
            drains_by_itself=server.drains_by_itself,
            obstacle=server.obstacle(),
            apps=[record_of(key, app) for key, app in self._requests.by_key.items()],
            figures=figures,
            saved_state=self._requests.saved_state,
            ready=self._ready,
            directory=self._directory,
            commit=self._commit,
            instead=dict(server.instead),
            index=self._index,
            runs_exit_handlers=server.runs_exit_handlers,
        )
        self._requests.told = figures
        return messages.request("hello", messages.as_json(hello), messages.HELLO_ID)

    def _tick(self) -> None:
        self._presence.renew()
        recorder.tick()
        self._requests.expire_levels()
        for slow in self._slow:
            slow.tick()

    def _report(self) -> bytes | None:
        # A hub that is asked often asks this worker as often.
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + REPORT_INTERVAL
            self._tick()
        figures = self._requests.count()
        if figures == self._requests.told and not self._final:
            return None
        self._requests.told = figures
        report = messages.request("report", {"figures": messages.as_json(figures), "final": self._final})
        # At the end the last snapshot comes by itself.
        if self.ended or time.monotonic() < self._next_snapshot:
            return report
        self._next_snapshot = time.monotonic() + REPORT_INTERVAL
        return report + b"".join(self._requests.snapshots())

    def _hear(self, line: bytes) -> None:
        try:
            value = decode(line)
        except CommandError as error:
            raise RemoteProtocolError(error.message) from None
        if not isinstance(value, dict):
            raise RemoteProtocolError("no object")
        if "method" in value:
            self._requests.handle(value["method"], value.get("params", {}), value.get("id"))
        elif value.get("id") == messages.HELLO_ID:
            self._note_welcome(value)
        elif (asked := self._asked.get(value.get("id"))) is not None and not asked.done():
            if "error" in value:
                asked.set_exception(messages.error_of(value))
            else:
                asked.set_result(value.get("result"))

    def _note_welcome(self, value: dict[str, Any]) -> None:
        if "error" in value:
            why = messages.error_of(value).message
            # Once: the connection is tried again and again.
            if why != self._refusal:
                self._refusal = why
                logger.warning("the hub refuses this worker, which tries again: %s", why)
            raise RemoteProtocolError("it refuses this worker")
        self._refusal = ""
        welcome, before = from_json(Welcome, value.get("result"), "the answer to hello"), self._welcome
        self._welcome = welcome
        self._index = welcome.index
        if before is not None:
            # To another hub, which has nothing of this worker.
            for line in self._requests.snapshots(registered=True):
                self._connection.send(line)
        self._requests.listening(welcome.endpoints)
        self._requests.drain(welcome.draining)
        self._requests.set_state(welcome.state, welcome.ready)
        if welcome.leases:
            self._requests.hold_levels(welcome.leases)
        if welcome.first and before is None:
            for endpoint in welcome.endpoints:
                logger.info("%s listens for control at %s", self.server.name, endpoint)
            for problem in welcome.problems if self._ready else []:
                logger.warning("%s serves without a control socket: %s", self.apps[0].name, problem)
        self._welcomed.set()
        if not self._ready and not welcome.problems:
            self._ready = True
            self._connection.send(self._hello())


def _counted(families: list[Family], left_out: int) -> list[Family]:
    """The families, with the samples for which there was no room in the answer among those that are left out."""
    for one in families:
        if one["name"] == LEFT_OUT:
            one["samples"][0][2] += left_out
    return families
