"""The registry of this process's controlled apps: the adapters of the HTTP servers find an app here."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..lifecycle.app import ServedApp, refuse_insecure
from ..lifecycle.instance import Instance
from ..servers.base import Host, HttpServer, PreforkWorker, WSGIApp
from ..servers.checkconfig import ConfigCheck
from ..servers.middleware import Environ
from ..servers.registry import WORKERS, arm_all, server_of_workers
from ..servers.unknown import UnknownServer
from ..system.preflight import check_at_exit
from .app import AppState, attached

if TYPE_CHECKING:
    from ..workers.agent.agent import Agent

logger = logging.getLogger("flask_ctl")

MAX_WALK = 200
"""Objects to inspect in the search for the apps behind a server's middleware."""

TOO_LATE = (
    "%s serves without a control socket: the server of %s started without it;"
    " create the app before that, and have the WSGI app that is served refer to it"
)
"""With the names of an app and of those that its server has found at its start."""


class AppRegistry(Host):
    """The controlled apps of this process, by weak references. Starts the control of an app when a server serves it."""

    def __init__(self) -> None:
        # The key is the app's id: the app holds its state, so both are freed together.
        self._states: weakref.WeakValueDictionary[int, AppState] = weakref.WeakValueDictionary()
        self._first: weakref.ref[Any] | None = None
        self._lock = threading.Lock()
        self._gunicorn = ConfigCheck()

    def add(self, app: Any, state: AppState) -> None:
        """Register an app, and patch the known servers."""
        self._states[id(app)] = state
        state.requests.on_first = functools.partial(self._begin_unknown, state)
        self._gunicorn.look()
        check_at_exit(self._check_start)
        arm_all(self)
        if WORKERS:
            # Now, because a worker may be forked when the environment has been deleted.
            _agent_class()

    def is_first(self, app: Any) -> bool:
        """True for the first app of the process, or the next one once the first has been freed."""
        if self._first is None or self._first() is None:
            self._first = weakref.ref(app)
        return self._first() is app

    def check_settings(self) -> None:
        """Raises ConfigurationError for settings with which an app refuses to start."""
        for state in list(self._states.values()):
            # The app of a program that has failed at its import may be gone.
            if state.lives:
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

    def register(self, server: HttpServer, wsgi_app: WSGIApp) -> bool:
        return begin(server, self._behind(wsgi_app)) is not None

    def _begin_unknown(self, state: AppState, environ: Environ) -> None:
        """Called before each request until the server is known: begins the control of a server without an adapter."""
        if "werkzeug.request" in environ:
            # The request of Werkzeug's or Flask's test client.
            return
        with self._lock:
            if state.requests.on_first is None:
                return
            state.requests.on_first = None
            if (server_apps := self._apps_of_known_server()) is not None:
                if not state.is_off():
                    logger.warning(TOO_LATE, state.app.name, ", ".join(app.name for app in server_apps))
                return
            instance = begin(UnknownServer(environ, state.requests), [state])
        if instance is not None:
            instance.serving()

    def _apps_of_known_server(self) -> Sequence[ServedApp] | None:
        """The controlled apps of the server with an adapter that answers this request; None if there is none.

        A server in the main thread always counts: it has the signals, and SystemExit there would cut its requests.
        """
        for state in list(self._states.values()):
            for instance in state.instances():
                # Workers have agents, and no unknown server.
                if isinstance(instance, Instance) and not isinstance(instance.server, UnknownServer):
                    server = instance.server
                    if not server.embedded or server.is_serving_thread():
                        return instance.apps
        return None

    def _behind(self, wsgi_app: WSGIApp) -> list[AppState]:
        known = dict(self._states)
        return [known[id(item)] for item in _walk(wsgi_app, known) if id(item) in known]

    def register_worker(self, worker: PreforkWorker, wsgi_app: WSGIApp | None) -> None:
        known = dict(self._states)
        served = list(known) if wsgi_app is None else [id(item) for item in _walk(wsgi_app, known)]
        states = _unserved(known[key] for key in served if key in known)
        if not states:
            return
        apps = [state.served_app() for state in states]
        for app in apps:
            refuse_insecure(app)
        try:
            agent = _agent_class()(worker, apps)
            with attached(states, agent):
                agent.begin()
        except ConfigurationError as error:
            if any(app.required for app in apps):
                raise
            logger.warning("%s serves without a control socket: %s", worker.name, error.message)


registry = AppRegistry()


def begin(server: HttpServer, states: Iterable[AppState]) -> Instance | None:
    """An open Instance for the apps that have no server yet; None if there is no such app.

    None, too, in a worker process of another server. Raises ConfigurationError for an app that requires a
    control socket (CTL_REQUIRED) which can't be opened.
    """
    if server_of_workers() not in (None, server.name):
        return None
    states = _unserved(states)
    if not states:
        return None
    server.threads = next((state.threads for state in states if state.threads), None)
    apps = [state.served_app() for state in states]
    instance = Instance(server, apps, handle_signals=all(state.wants_signals for state in states))
    with attached(states, instance):
        instance.open()
    if not instance.has_predecessor and not server.embedded and instance.endpoints:
        _tell_flask_run(instance.endpoints)
    return instance


def _agent_class() -> type[Agent]:
    """Imported late: most processes have no workers."""
    from ..workers.agent.agent import Agent

    return Agent


def _tell_flask_run(endpoints: list[str]) -> None:
    """Under `flask run`, where records of level INFO are not shown, say on stderr where the apps listen for control."""
    shown = logger.isEnabledFor(logging.INFO) and logger.hasHandlers()
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true" and logger.isEnabledFor(logging.WARNING) and not shown:
        print(f" * Listening for control at {', '.join(endpoints)}", file=sys.stderr, flush=True)


def _unserved(states: Iterable[AppState]) -> list[AppState]:
    """The apps that have no server yet and whose control is not off."""
    unserved = [state for state in states if not state.instances() and not state.is_off()]
    for state in unserved:
        state.close_ended()
    return unserved


def _walk(wsgi_app: Any, known: dict[int, AppState]) -> Iterable[Any]:
    """The WSGI app and the objects behind its attributes and closures, breadth first; not those behind a known app."""
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
    """The callables and collections that an object refers to; empty if the object can't be inspected."""
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
        # Such as a LocalProxy outside of a request.
        logger.debug("can't look behind a %s: %s", type(item).__name__, error)
        return []
