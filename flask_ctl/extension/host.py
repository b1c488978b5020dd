"""The controlled apps of this process, as the HTTP servers' adapters meet them."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ..errors import ConfigurationError
from ..lifecycle.app import ServedApp, refuse_insecure
from ..lifecycle.instance import Instance
from ..servers.base import HttpServer, PreforkWorker, WSGIApp
from ..servers.checkconfig import Rehearsal
from ..servers.registry import arm_all, server_of_workers
from ..system.preflight import check_at_exit
from ..workers.agent.agent import Agent

logger = logging.getLogger("flask_ctl")

MAX_WALK = 200
"""Objects to look at on the way from a server to the apps behind its middleware."""


class Controllable(Protocol):
    """An app's share of a Control: its settings, and the instances that serve it."""

    threads: int | None

    @property
    def wants_signals(self) -> bool:
        """Whether TERM and INT are to be handled."""

    def is_off(self) -> bool:
        """Whether the app is not to be controlled."""

    def instances(self) -> Sequence[Instance | Agent]:
        """The servers that serve the app now."""

    def served_app(self) -> ServedApp:
        """What an instance has to know of the app."""

    def attach(self, instance: Instance | Agent) -> None:
        """Note that `instance` serves the app."""

    def close_ended(self) -> None:
        """Have former instances give up their sockets."""


class ProcessHost:
    """Knows the controlled apps of this process, as long as they live, and begins an instance when one is served."""

    def __init__(self) -> None:
        # By the app's id. A state lives exactly as long as its app, which holds it.
        self._states: weakref.WeakValueDictionary[int, Controllable] = weakref.WeakValueDictionary()
        self._first: weakref.ref[Any] | None = None
        self._gunicorn = Rehearsal()

    def add(self, app: Any, state: Controllable) -> None:
        """Have an app controlled by whatever serves it."""
        self._states[id(app)] = state
        self._gunicorn.look()
        check_at_exit(self._check_start)
        arm_all(self)

    def claim_environment(self, app: Any) -> None:
        """Give the environment's address to the app, if it is the first one of the process."""
        if self._first is None or self._first() is None:
            self._first = weakref.ref(app)

    def is_first(self, app: Any) -> bool:
        """Whether the environment's address is this app's."""
        return self._first is not None and self._first() is app

    def check_settings(self) -> None:
        """Raises ConfigurationError for settings with which an app would not start."""
        for state in self._states.values():
            refuse_insecure(state.served_app())

    def _check_start(self) -> None:
        self.check_settings()
        self._gunicorn.check()

    def is_stopping(self) -> bool:
        return any(i.stopping for state in self._states.values() for i in state.instances())

    def wants_signals(self) -> bool:
        return any(state.wants_signals for state in self._states.values())

    def serves_controlled(self, wsgi_app: WSGIApp) -> bool:
        return any(not state.is_off() for state in self._behind(wsgi_app))

    def begin(self, server: HttpServer, wsgi_app: WSGIApp) -> Instance | None:
        return begin(server, self._behind(wsgi_app))

    def _behind(self, wsgi_app: WSGIApp) -> list[Controllable]:
        known = dict(self._states)
        return [known[id(item)] for item in _walk(wsgi_app, known) if id(item) in known]

    def begin_worker(self, worker: PreforkWorker, wsgi_app: WSGIApp | None) -> None:
        known = dict(self._states)
        served = list(known) if wsgi_app is None else [id(item) for item in _walk(wsgi_app, known)]
        states = _unserved(known[key] for key in served if key in known)
        if not states:
            return
        apps = [state.served_app() for state in states]
        for app in apps:
            refuse_insecure(app)
        try:
            agent = Agent(worker, apps)
            agent.begin()
        except ConfigurationError as error:
            if any(app.required for app in apps):
                raise
            logger.warning("%s serves without a control socket: %s", worker.name, error.message)
            return
        for state in states:
            state.attach(agent)


def begin(server: HttpServer, states: Iterable[Controllable]) -> Instance | None:
    """An open Instance for those of the apps that no server serves yet; None if there is none.

    In a worker of another server there is never one.

    Raises ConfigurationError for an app that requires a socket which can't be had.
    """
    if server_of_workers() not in (None, server.name):
        return None
    states = _unserved(states)
    if not states:
        return None
    instance = Instance(
        server,
        [state.served_app() for state in states],
        handle_signals=all(state.wants_signals for state in states),
        threads=next((state.threads for state in states if state.threads), None),
    )
    instance.open()
    for state in states:
        state.attach(instance)
    return instance


def _unserved(states: Iterable[Controllable]) -> list[Controllable]:
    """Those that are to be controlled, and that no server serves yet."""
    unserved = [state for state in states if not state.instances() and not state.is_off()]
    for state in unserved:
        state.close_ended()
    return unserved


def _walk(wsgi_app: Any, known: dict[int, Controllable]) -> Iterable[Any]:
    """A WSGI app and what it leads to, by the attributes and closures of middleware; nothing behind a known app."""
    queue: list[Any] = [wsgi_app]
    seen: set[int] = set()
    while queue and len(seen) < MAX_WALK:
        item = queue.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if id(item) not in known:
            queue += _held_by(item)


def _held_by(item: Any) -> list[Any]:
    """Callables and collections that an object holds; nothing of one that does not let itself be looked at."""
    try:
        if isinstance(item, dict):
            return list(item.values())
        if isinstance(item, (list, tuple)):
            return list(item[:MAX_WALK])
        held = [getattr(item, "__self__", None), getattr(item, "func", None)]
        held += getattr(item, "__dict__", {}).values()
        for cell in getattr(item, "__closure__", None) or ():
            with contextlib.suppress(ValueError):
                held.append(cell.cell_contents)
        return [value for value in held if callable(value) or isinstance(value, (dict, list, tuple))]
    except Exception as error:
        # A LocalProxy, say, which stands for something that is there during a request only.
        logger.debug("can't look behind a %s: %s", type(item).__name__, error)
        return []
