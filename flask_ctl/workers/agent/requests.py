"""What a worker does when its hub asks: each request of `messages` is a method here."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ...dispatch.audit import write_record
from ...dispatch.commands import CommandRegistry
from ...dispatch.pool import SingleFlight
from ...errors import CommandError, TimedOut
from ...inspection.feeds import left
from ...inspection.levels import CHORES, Lease, levels
from ...inspection.metrics import own_families, pack
from ...inspection.questions import answer
from ...inspection.requests import oldest_request
from ...lifecycle.app import ServedApp, by_key
from ...lifecycle.hooks import run_reload_hooks, run_stop_hooks
from ...lifecycle.metrics import COLLECT_TIMEOUT
from ...lifecycle.readiness import HooksResult, Readiness
from ...lifecycle.stop import READINESS_TIMEOUT
from ...protocol.typed import from_json
from ...servers.base import PreforkWorker
from ...system.addresses import parse_address
from ...system.bytecode import remove_stale
from ...system.native import new_future, threading
from .. import messages
from ..messages import Figures, SavedState, Tally
from .executor import POLL, Executor, make_executor
from .presence import Presence

MAX_WAITING_HOOKS = 8
"""Requests for `on_stop` functions, of one hub after the other, that may wait for a thread."""

logger = logging.getLogger("flask_ctl")


class HubRequests:
    """Answers the requests of the hub by `send`. The executor runs the app's own code, the calling thread all else.

    `exit` ends the process, though requests are in flight.
    """

    def __init__(
        self,
        server: PreforkWorker,
        apps: Sequence[ServedApp],
        presence: Presence,
        send: Callable[[bytes], Any],
        exit: Callable[..., Any],
    ) -> None:
        self.by_key = by_key(apps)
        self.grace = max(app.grace for app in apps)
        self.saved_state: SavedState | None = None
        """What the next hub needs, from the last one."""
        self.told: Figures | None = None
        """The last figures that the hub has got."""
        self.stopping = False
        self._server = server
        self._apps = apps
        self._send = send
        self._registries = {key: CommandRegistry(app.commands) for key, app in self.by_key.items()}
        self._executor = make_executor(max(app.limits.queue for app in apps))
        self._chores = SingleFlight(self._submit)
        # One thread for the hooks of readiness, one for those of a stop, which hanging commands can't keep waiting.
        self._hooks_executor = make_executor(MAX_WAITING_HOOKS, 2, "flask-ctl-hooks")
        self.state = "starting"
        """The `state` of `status`, as the hub has told it."""
        self.readiness = Readiness(apps, lambda function: _submit(self._hooks_executor, function))
        self._presence = presence
        self._paused = False
        self._closes_silent = False
        self._hooks_turn = threading.Lock()
        self._hooks_ended = False
        self._methods: dict[str, Callable[..., Any]] = {
            "listening": self.listening,
            "figures": self._figures,
            "answer": self._answer_question,
            "drain": self.drain,
            "close_silent": self._close_silent,
            "pause": self._pause,
            "resume": self._resume,
            "extend_grace": self._extend_grace,
            "preflight": self._preflight,
            "save_state": self._save_state,
            "audit": write_record,
            "leave": self.leave,
            "exit": exit,
        }
        self._app_methods: dict[str, Callable[..., Callable[[], Any]]] = {
            "call": self._call,
            "collect": self._collect,
            "chore": lambda name, params: lambda: CHORES[name](**params),
            "run_stop_hooks": self._stop_hooks,
            "run_reload_hooks": lambda **_: lambda: run_reload_hooks(apps),
        }
        self._app_submits: dict[str, Callable[[Callable[[], Any]], Future[Any]]] = {
            "collect": self._chores.submit,
            "run_stop_hooks": lambda function: _submit(self._hooks_executor, function),
        }

    def handle(self, method: str, params: dict[str, Any], id: Any) -> None:
        """Do what is asked; a method of a later version is ignored."""
        try:
            if method in self._app_methods:
                self._send(messages.request("received", {"id": id}))
                function = self._app_methods[method](**params)
                submit = self._app_submits.get(method, self._submit)
                submit(function).add_done_callback(lambda done: self._answer(id, done.result()))
            elif method == "state":
                if id is not None:
                    self._send(messages.request("received", {"id": id}))
                self.set_state(**params).add_done_callback(lambda hooks: self._answer(id, hooks.result()))
            elif method in self._methods:
                self._answer(id, self._methods[method](**params))
        except Exception as error:
            # The hub gets the error of one request, and the worker goes on with the next one.
            if not isinstance(error, CommandError):
                logger.exception("the hub's request %s failed", method)
            self._answer(id, error)

    def count(self) -> Figures:
        """The figures of this moment."""
        if self._closes_silent:
            # Connections that waited in the backlog behind slow requests are accepted only now.
            self._server.close_silent()
        # In the order of its way through the server, so that what goes on meanwhile is counted once at least.
        waiting = self._server.waiting()
        begun = silent = 0
        if self.stopping:
            # Only for a stop is it worth the look at all descriptors.
            silent = 0 if self._closes_silent else self._server.silent()
            begun = self._server.begun()
        tallies = {key: _tally_of(app) for key, app in self.by_key.items()}
        begun = max(begun - sum(tally.in_flight for tally in tallies.values()), 0)
        return Figures(tallies, self._executor.unfinished, waiting, begun, silent, self.readiness.failed_checks)

    def set_state(self, state: str, ready: bool) -> Future[HooksResult]:
        """The server is in that state, and `ready` for requests from load balancers or not."""
        self.state = state
        return self.readiness.change(ready)

    def hold_levels(self, leases: Sequence[Lease]) -> None:
        """Have these leases of log levels hold, in a thread of the app's."""
        try:
            self._submit(lambda: levels.hold(leases))
        except CommandError as error:
            logger.error("log levels are not set: %s", error)

    def expire_levels(self) -> None:
        """End the leases of log levels that have expired; called now and then."""
        if levels.due():
            # If too many commands wait, the next time.
            with contextlib.suppress(CommandError):
                self._chores.submit(levels.expire)

    def listening(self, endpoints: list[str]) -> None:
        """The hub listens at these addresses: show there that this worker lives."""
        self._presence.be_at(path for endpoint in endpoints if (path := parse_address(endpoint).path))

    def drain(self, yes: bool = True) -> bool:
        """Accept no new connections, or accept them again; whether the server can do that."""
        self.stopping = yes
        self._closes_silent = False
        return self._server.set_accepting(not yes)

    def begin_end(self) -> None:
        """In the main thread, at the end of the worker: the next worker may accept the connections that wait."""
        if self._paused:
            self._resume()

    def finish(self) -> None:
        """In the main thread, at the end of the worker: let the app's commands end, and run its `on_stop` functions."""
        deadline = time.monotonic() + self.grace
        self._executor.wait(self.grace)

        def through() -> bool:
            # Once the hub has had the hooks of the stop run, it has waited long enough for those of readiness.
            return self._hooks_ended if self._hooks_turn.locked() else self.readiness.running_hook is None

        _wait(through, deadline)
        self._begin_stop_hooks()

    def snapshots(self, *, registered: bool = False, last: bool = False) -> list[bytes]:
        """The messages with what this worker has counted up to now, and what was collected last if it is wanted."""
        return [
            messages.request(
                "metrics",
                {
                    "app": key,
                    "own": pack(own_families(app.requests)),
                    **({"registered": app.registries.packed} if registered else {}),
                    **({"last": True} if last else {}),
                },
            )
            for key, app in self.by_key.items()
        ]

    def leave(self) -> None:
        """Send what the hub keeps of a worker that has ended."""
        self._collect_last([app for app in self._apps if app.registries])
        for line in self.snapshots(registered=True, last=True):
            self._send(line)
        for key, app in self.by_key.items():
            if len(app.exceptions):
                self._send(messages.request("exceptions", {"app": key, "exceptions": app.exceptions.entries()}))
        self._send(messages.request("left", left()))

    def _submit(self, function: Callable[[], Any]) -> Future[Any]:
        return _submit(self._executor, function)

    def _answer(self, id: Any, result: Any) -> None:
        if id is not None:
            self._send(messages.answer(id, result))

    def _figures(self) -> dict[str, Any]:
        self.told = self.count()
        return messages.as_json(self.told)

    def _answer_question(self, app: str, question: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        return answer(self.by_key[app], question, params)

    def _close_silent(self) -> None:
        self._closes_silent = True
        self._server.close_silent()

    def _pause(self) -> None:
        self._paused = True
        self._server.set_accepting(False)

    def _resume(self) -> None:
        self._paused = False
        # A stop may have called the reload off.
        self._server.set_accepting(not self.stopping)

    def _extend_grace(self, seconds: float) -> None:
        # The last request before the master starts new workers.
        remove_stale()
        self.grace = max(self.grace, seconds)
        self._server.extend_grace(seconds)

    def _preflight(self) -> dict[str, Any] | None:
        remove_stale()
        return self._server.preflight()

    def _save_state(self, **state: Any) -> None:
        self.saved_state = from_json(SavedState, state, "the state")

    def _collect(self, app: str) -> Callable[[], Any]:
        registries = self.by_key[app].registries
        registries.check_idle()
        return registries.collect

    def _collect_last(self, apps: Sequence[ServedApp]) -> None:
        deadline = time.monotonic() + COLLECT_TIMEOUT
        for app in apps:
            collected: Future[Any] = new_future()
            try:
                self._executor.submit(app.registries.collect_last, collected.set_result)
            except CommandError:
                # From Python 3.12 on no thread can be started at the end of a process.
                collected.set_result(_outcome(app.registries.collect))
            _wait(collected.done, deadline)
            # A collector of the app's must not keep the worker from its end, even if it hangs.
            result = collected.result() if collected.done() else TimedOut("a collector has not returned in time")
            if isinstance(result, BaseException):
                logger.warning("the last metrics of %s can't be collected: %r", app.name, result)

    def _call(self, app: str, name: str, params: Any = None, texts: Any = None) -> Callable[[], Any]:
        command = self._registries[app].get(name)
        arguments = command.bind(params or {}) if texts is None else command.bind_text(texts)
        return lambda: self.by_key[app].run_command(command.function, arguments)

    def _stop_hooks(self, patience: float = READINESS_TIMEOUT, **_: Any) -> Callable[[], str | None]:
        def run() -> str | None:
            """Wait until they have run; the name of a hook of readiness that still ran before."""
            _wait(lambda: self.readiness.running_hook is None, time.monotonic() + patience)
            left = self.readiness.running_hook
            self._begin_stop_hooks()
            _wait(lambda: self._hooks_ended, math.inf)
            return left

        return run

    def _begin_stop_hooks(self) -> None:
        """Run each app's `on_stop` functions, unless another thread has begun with them."""
        if self._hooks_turn.acquire(blocking=False):
            run_stop_hooks(self._apps)
            self._hooks_ended = True


def _wait(done: Callable[[], bool], deadline: float) -> None:
    while not done() and time.monotonic() < deadline:
        # This lets greenlets go on, too.
        time.sleep(POLL)


def _outcome(function: Callable[[], Any]) -> Any:
    """What it returns, or raises."""
    try:
        return function()
    except Exception as error:
        return error


def _submit(executor: Executor, function: Callable[[], Any]) -> Future[Any]:
    """A Future of what the function returns, or of the exception that it raises."""
    future: Future[Any] = new_future()
    executor.submit(function, future.set_result)
    return future


def _tally_of(app: ServedApp) -> Tally:
    requests = app.requests
    oldest, which = oldest_request(requests)
    return Tally(requests.in_flight, oldest, *requests.totals(), requests.aborted(), which)
