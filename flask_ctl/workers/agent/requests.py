"""What a worker does when its hub asks: each request of `messages` is a method here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ...dispatch.audit import write_record
from ...dispatch.commands import CommandRegistry
from ...errors import CommandError
from ...lifecycle.app import ServedApp
from ...lifecycle.hooks import run_reload_hooks, run_stop_hooks
from ...protocol.typed import from_json
from ...servers.base import PreforkWorker
from ...system.addresses import parse_address
from ...system.bytecode import remove_stale
from .. import messages
from ..messages import Figures, SavedState, Tally
from .executor import POLL, make_executor
from .presence import Presence
from .records import by_key

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
        self._presence = presence
        self._paused = False
        self._closes_silent = False
        self._hooks_begun = self._hooks_ended = False
        self._methods: dict[str, Callable[..., Any]] = {
            "listening": self.listening,
            "figures": self._figures,
            "drain": self.drain,
            "close_silent": self._close_silent,
            "pause": self._pause,
            "resume": self._resume,
            "extend_grace": self._extend_grace,
            "preflight": self._preflight,
            "save_state": self._save_state,
            "audit": write_record,
            "exit": exit,
        }
        self._app_methods: dict[str, Callable[..., Callable[[], Any]]] = {
            "call": self._call,
            "run_stop_hooks": lambda **_: self._run_stop_hooks,
            "run_reload_hooks": lambda **_: lambda: run_reload_hooks(apps),
        }

    def handle(self, method: str, params: dict[str, Any], id: Any) -> None:
        """Do what is asked; a method of a later version is ignored."""
        try:
            if method in self._app_methods:
                self._send(messages.request("received", {"id": id}))
                function = self._app_methods[method](**params)
                self._executor.submit(function, lambda result: self._answer(id, result))
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
        tallies = {key: _tally_of(app) for key, app in self.by_key.items()}
        begun = silent = 0
        if self.stopping:
            # Only for a stop is it worth the look at all descriptors.
            begun = max(self._server.begun() - sum(tally.in_flight for tally in tallies.values()), 0)
            silent = 0 if self._closes_silent else self._server.silent()
        return Figures(tallies, self._executor.unfinished, self._server.waiting(), begun, silent)

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
        self._executor.wait(self.grace)
        self._run_stop_hooks(wait=False)

    def _answer(self, id: Any, result: Any) -> None:
        if id is not None:
            self._send(messages.answer(id, result))

    def _figures(self) -> dict[str, Any]:
        self.told = self.count()
        return messages.as_json(self.told)

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

    def _call(self, app: str, name: str, params: Any = None, texts: Any = None) -> Callable[[], Any]:
        command = self._registries[app].get(name)
        arguments = command.bind(params or {}) if texts is None else command.bind_text(texts)
        return lambda: self.by_key[app].run_command(command.function, arguments)

    def _run_stop_hooks(self, wait: bool = True) -> None:
        """Run each app's `on_stop` functions, once; a second caller may `wait` until they have run."""
        if self._hooks_begun:
            while wait and not self._hooks_ended:
                # This lets greenlets go on, too.
                time.sleep(POLL)
            return
        self._hooks_begun = True
        run_stop_hooks(self._apps)
        self._hooks_ended = True


def _tally_of(app: ServedApp) -> Tally:
    requests = app.requests
    return Tally(requests.in_flight, requests.oldest(), *requests.totals(), requests.aborted())
