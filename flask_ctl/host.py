"""The controlled apps of this process, as the HTTP servers' adapters meet them."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from .adapters import HttpServer, WSGIApp, arm_all
from .instance import Instance
from .served import ServedApp, refuse_insecure

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

    def instances(self) -> list[Instance]:
        """The servers that serve the app now."""

    def served_app(self) -> ServedApp:
        """What an instance has to know of the app."""

    def attach(self, instance: Instance) -> None:
        """Note that `instance` serves the app."""

    def close_ended(self) -> None:
        """Have former instances give up their sockets."""


class ProcessHost:
    """Knows the controlled apps of this process, as long as they live, and begins an instance when one is served."""

    def __init__(self) -> None:
        # By the app's id. A state lives exactly as long as its app, which holds it.
        self._states: weakref.WeakValueDictionary[int, Controllable] = weakref.WeakValueDictionary()
        self._first: weakref.ref[Any] | None = None

    def add(self, app: Any, state: Controllable) -> None:
        """Have an app controlled by whatever serves it."""
        self._states[id(app)] = state
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

    def is_stopping(self) -> bool:
        return any(i.stopping for state in self._states.values() for i in state.instances())

    def wants_signals(self) -> bool:
        return any(state.wants_signals for state in self._states.values())

    def begin(self, server: HttpServer, wsgi_app: WSGIApp) -> Instance | None:
        known = dict(self._states)
        return begin(server, [known[id(item)] for item in _walk(wsgi_app, known) if id(item) in known])


def begin(server: HttpServer, states: Iterable[Controllable]) -> Instance | None:
    """An open Instance for those of the apps that no server serves yet; None if there is none.

    Raises ConfigurationError for an app that requires a socket which can't be had.
    """
    states = [state for state in states if not state.instances() and not state.is_off()]
    if not states:
        return None
    for state in states:
        state.close_ended()
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
    """Callables and dicts that an object holds; nothing of one that does not let itself be looked at."""
    try:
        if isinstance(item, dict):
            return list(item.values())
        held = [getattr(item, "__self__", None), getattr(item, "func", None)]
        held += getattr(item, "__dict__", {}).values()
        for cell in getattr(item, "__closure__", None) or ():
            with contextlib.suppress(ValueError):
                held.append(cell.cell_contents)
        return [value for value in held if callable(value) or isinstance(value, dict)]
    except Exception as error:
        # A LocalProxy, say, which stands for something that is there during a request only.
        logger.debug("can't look behind a %s: %s", type(item).__name__, error)
        return []
