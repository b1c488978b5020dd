"""The Flask extension: `Control`."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from flask import Flask, Response, current_app, has_app_context, has_request_context, request

from ..dispatch.commands import Impact, ImpactLevel, Role, Scope, command_from
from ..errors import ConfigurationError, NotRunning
from ..inspection.logs import recorder
from ..lifecycle.instance import Instance
from ..servers.launch import refuse_program
from ..servers.registry import load_adapter
from ..servers.urls import activate
from ..system.activation import activation
from ..system.addresses import Sockets, as_list, parse_address
from ..system.platform import HAS_UNIX_SOCKETS
from ..system.preflight import preflighting
from .app import AppState, Functions, count_requests
from .metrics import Metrics
from .registry import registry
from .settings import DEFAULTS

if TYPE_CHECKING:
    from ..workers.agent.agent import Agent

F = TypeVar("F", bound=Callable[..., Any])

RETRY_AFTER = 5
"""Seconds after which a client that was refused by a health check is to try again (RFC 9110, section 10.2.3)."""

logger = logging.getLogger("flask_ctl")


class Control:
    """Puts Flask apps under the control of other processes.

    ``Control(app)``, or ``control = Control()`` and later ``control.init_app(app)``, is all that an app needs, whatever
    serves it. The settings in `app.config` are all optional: `flask-ctl help settings` lists them.
    """

    def __init__(self, app: Flask | None = None, *, socket: Sockets | None = None) -> None:
        self._functions = Functions()
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        self.metrics = Metrics(self._functions.registries, self._current_app)
        """View for Prometheus, and `register` for the app's own registries."""
        if app is not None:
            self.init_app(app, socket=socket)
        elif socket is not None:
            raise TypeError("socket= goes to init_app, with the app")

    def init_app(self, app: Flask, *, socket: Sockets | None = None) -> None:
        """Have `app` listen for control as soon as a server serves it.

        `socket` is an address or a list of addresses, as for CTL_SOCKET. Raises RuntimeError if the app has a Control
        already. Settings are checked when the server starts.
        """
        if "ctl" in app.extensions:
            raise RuntimeError("this app has a Control already; use that one, or remove the second Control(app)")
        for name, value in DEFAULTS.items():
            app.config.setdefault(name, value)
        state = AppState(self, app, self._functions, socket, first=registry.is_first(app))
        app.extensions["ctl"] = state
        self._apps.add(app)
        count_requests(app, state.requests)
        if state.is_off() and not preflighting:
            return
        if not HAS_UNIX_SOCKETS:
            _warn_unsupported()
            return
        registry.add(app, state)
        recorder.request_id = _request_id

    @overload
    def command(self, function: F) -> F: ...
    @overload
    def command(
        self,
        *,
        name: str | None = None,
        role: Role = "operate",
        scope: Scope = "each",
        impact: ImpactLevel = "low",
        impact_note: str = "",
    ) -> Callable[[F], F]: ...
    def command(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        role: Role = "operate",
        scope: Scope = "each",
        impact: ImpactLevel = "low",
        impact_note: str = "",
    ) -> Any:
        """Decorator: make a function a command that other processes can call. Returns the function unchanged.

        `name`
            The command's name; by default the function's.
        `role`
            The role that a caller needs. ``"operate"``: the server's own user, root, and peers that CTL_ALLOW lets
            operate; each call is in the audit log. ``"inspect"``: also peers that may inspect; for commands without
            side effects whose result may hold personal data; each call is in the audit log. ``"observe"``: also peers
            that may only observe; for commands without side effects.
        `scope`
            Where the command runs on a server with several worker processes. ``"each"``: in every worker; the result is
            a list of ``{"pid", "result"}`` or ``{"pid", "error"}``. ``"one"``: in the least busy worker. A caller can
            name a worker by its pid in either case.

        `impact`, `impact_note`
            How much the command disturbs the server: ``"low"``, ``"medium"`` or ``"high"``, and a sentence that says in
            what way; both stand in its help. On a terminal the command line asks before it runs one of high impact.

        Parameters are checked against their annotations: str, int, float, bool, Literal, Enum, list[…], X | None. The
        function runs in an app context, in one of four threads; ``async def`` works, too. Its result is encoded by
        ``app.json``. Raises TypeError for another annotation, ValueError for a name that is reserved or taken.
        """

        def register(function: F) -> F:
            command = command_from(function, name=name, role=role, scope=scope, impact=Impact(impact, impact_note))
            if command.name in self._functions.commands:
                raise ValueError(f"there is a command {command.name!r} already")
            self._functions.commands[command.name] = command
            return function

        return register if function is None else register(function)

    def on_stop(self, function: F) -> F:
        """Decorator: call a function at a stop and at a reload, in an app context, after the last request."""
        self._functions.stop_hooks.append(function)
        return function

    def on_reload(self, function: F) -> F:
        """Decorator: call a function for ``reload --config``, in an app context, while the app goes on serving."""
        self._functions.reload_hooks.append(function)
        return function

    def on_drain(self, function: F) -> F:
        """Decorator: call a function when a drain or a stop begins, in an app context, while requests are served.

        In each worker that was ready; before the `on_stop` functions.
        """
        self._functions.drain_hooks.append(function)
        return function

    def on_ready(self, function: F) -> F:
        """Decorator: call a function when the app begins to serve, and when a drain ends, in an app context."""
        self._functions.ready_hooks.append(function)
        return function

    @property
    def state(self) -> str | None:
        """The `state` of `status`: ``starting``, ``running``, ``draining``, ``reloading`` or ``stopping``.

        In an app context of the servers of that app, else of all apps of this Control; if they differ, the first one
        that is not ``running``. None if no server under control serves them in this process.
        """
        states = [instance.state for instance in self._served_by()]
        return next((state for state in states if state != "running"), states[0] if states else None)

    @property
    def ready(self) -> bool:
        """Whether load balancers are to send requests: False before the app is served, and in a drain or a stop.

        True where no server under control serves the app in this process, such as Flask's test client.
        """
        return all(instance.ready for instance in self._served_by())

    def health(self) -> Response:
        """View for health checks: 200 while the app is `ready`, else 503 with Retry-After; the text is the `state`.

        ``app.add_url_rule("/healthz", view_func=control.health)`` puts it where the load balancer looks. Its endpoint
        is ``flask_ctl_health``.
        """
        ready = self.ready
        response = Response(f"{self.state or 'running'}\n", 200 if ready else 503, mimetype="text/plain")
        response.cache_control.no_store = True
        if not ready:
            response.retry_after = RETRY_AFTER
            for instance in self._served_by():
                instance.note_failed_check()
        return response

    # The endpoint that Flask derives from it is none of the app's own.
    health.__name__ = "flask_ctl_health"

    def run(
        self,
        app: Flask | None = None,
        *,
        socket: Sockets | None = None,
        threads: int | None = None,
        server: str | None = None,
        **options: Any,
    ) -> None:
        """Serve the app; blocks until the server has stopped.

        Calls ``app.run(**options)``, or another `server` (a name that ``flask-ctl run --server`` takes), whose only
        options are `host` and `port`. If systemd passes sockets to it (sd_listen_fds(3)), it serves at the one named
        ``http``, and listens for control at the one named ``control``. `threads` is the largest number of requests at
        once (default: no limit). `socket` takes precedence over every setting but ``off`` in the environment, and has
        to be usable.

        Raises ConfigurationError if `socket` can't be used, if this Control has not exactly one app and `app` is not
        given, or if `server` is unknown, not installed, or starts processes of its own. Raises SystemExit where
        Werkzeug does, as for a port that is in use.
        """
        app = app or self._only_app()
        state: AppState = app.extensions["ctl"]
        state.threads = threads
        if socket is not None:
            state.override, state.required = as_list(socket), True
        if server is None:
            app.run(**options)
        else:
            refuse_program(server)
            activation.take(os.environ)
            if (control := activation.addresses.get("control")) is not None:
                if state.override not in (None, [control]):
                    raise ConfigurationError(f"systemd listens for control at {control}, and not at {state.override}")
                state.override, state.required = [control], True
            where = {"host": "127.0.0.1", "port": 5000, **options}
            where["host"], where["port"] = activate(server, where["host"], where["port"])
            load_adapter(server).serve(app, threads=threads, **where)

    def stop(self) -> None:
        """Begin a graceful stop of the server, and return at once.

        For views, threads and signal handlers. In an app context it stops the servers of that app, else of all apps of
        this Control. Raises NotRunning if no server of this process serves them.
        """
        apps = self._current_apps()
        instances = {instance for app in apps for instance in app.extensions["ctl"].instances()}
        if not instances:
            why = " (control is off)" if any(app.extensions["ctl"].is_off() for app in apps) else ""
            raise NotRunning(f"no server serves an app of this Control in this process{why}")
        here = {instance for instance in instances if instance.server.is_serving_thread()}
        for instance in here or instances:
            instance.request_stop()

    def sockets(self, app: Flask | None = None) -> list[str]:
        """The app's control addresses: where it listens, or, before it is served, where it would.

        Raises ConfigurationError for an invalid address, or if this Control has not exactly one app and `app` is not
        given.
        """
        state: AppState = (app or self._only_app()).extensions["ctl"]
        served = [endpoint for instance in state.instances() for endpoint in instance.endpoints]
        return served or [str(parse_address(address)) for address in state.endpoints()]

    def _current_apps(self) -> list[Any]:
        """The app whose context this is, else all apps of this Control."""
        current: Any = current_app._get_current_object() if has_app_context() else None  # type: ignore[attr-defined]
        return [current] if current in self._apps else list(self._apps)

    def _current_app(self) -> Flask:
        """The app whose context this is, else the only one."""
        current: Any = current_app._get_current_object() if has_app_context() else None  # type: ignore[attr-defined]
        return current if current in self._apps else self._only_app()

    def _served_by(self) -> list[Instance | Agent]:
        return [instance for app in self._current_apps() for instance in app.extensions["ctl"].last_instances()]

    def _only_app(self) -> Flask:
        apps = list(self._apps)
        if len(apps) != 1:
            raise ConfigurationError(f"this Control has {len(apps)} apps; say which one")
        return apps[0]


def state_of(app: Flask) -> AppState:
    """The app's `AppState`; for an app without a Control a new one with the default settings."""
    state: AppState | None = app.extensions.get("ctl")
    return AppState(None, app, Functions()) if state is None else state


_warned = False


def _warn_unsupported() -> None:
    global _warned
    if not _warned:
        _warned = True
        logger.warning("this system has no Unix sockets: the app serves without a control socket")


def _request_id() -> str | None:
    """The X-Request-ID of the request that this thread or greenlet serves."""
    return request.headers.get("X-Request-ID") if has_request_context() else None
