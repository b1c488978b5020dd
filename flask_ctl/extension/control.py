"""The Flask extension: `Control`."""

from __future__ import annotations

import functools
import json
import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, TypeVar, overload

from flask import Flask, current_app, has_app_context

from ..dispatch.commands import Command, Role, Scope, command_from
from ..dispatch.limits import SETTINGS, Limits
from ..dispatch.policy import Policy
from ..errors import ConfigurationError, NotRunning
from ..lifecycle.app import ServedApp
from ..lifecycle.instance import Instance
from ..lifecycle.operation import MAX_SECONDS
from ..servers.launch import refuse_program
from ..servers.middleware import Environ, RequestCounter, StartResponse, WSGIApp
from ..servers.registry import load_adapter
from ..servers.unknown import UnknownServer
from ..system.addresses import OFF, Sockets, as_list, default_path, from_environment, parse_address
from ..system.directory import directory_given
from ..system.platform import HAS_UNIX_SOCKETS
from ..system.preflight import preflighting
from ..transports.factory import CurveFiles
from ..workers.agent.agent import Agent
from .host import ProcessHost, begin

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("flask_ctl")


class Control:
    """Puts Flask apps under the control of other processes.

    ``Control(app)``, or ``control = Control()`` and later ``control.init_app(app)``, is all that an app needs, whatever
    serves it. Configuration, all optional:

    ``CTL_SOCKET``
        Address or list of addresses; ``"off"`` for none. Before it come the environment variable FLASK_CTL_SOCKET and
        the argument `socket`; after it, a default in the user's runtime directory.
    ``CTL_ALLOW``
        Who may observe and who may operate besides the app's own user and root, as
        ``{"observe": ["group:ops"], "operate": ["uid:1001", "user:ann", "gid:100", "key:alice"]}``.
    ``CTL_TCP_OPERATE``
        Whether whoever reaches a plain TCP address of the app may operate it, and not only observe (False).
    ``CTL_CURVE_KEY``, ``CTL_CURVE_CLIENTS``
        The file with the server's CURVE key pair, and the directory with the public keys of those clients that it lets
        in (``name.pub``), for TCP addresses.
    ``CTL_GRACE``
        Seconds that a stop waits for requests, if it is not told otherwise (30).
    ``CTL_SIGNALS``
        Whether TERM and INT begin a stop (True).
    ``CTL_REQUIRED``
        Whether an address that can't be used is an error, and not only a warning (False).
    ``CTL_PREFLIGHT_TIMEOUT``
        Seconds for the new code of a reload to come to serving, in its rehearsal (60).
    ``CTL_DIRECTORY``
        The directory in which a reload starts the program anew, by a name that leads to the next release; before it
        comes the environment variable FLASK_CTL_DIRECTORY. Without it ``$PWD`` of the start.
    ``CTL_LEGACY_SHUTDOWN``
        Whether requests find a function in ``environ["werkzeug.server.shutdown"]``, as before Werkzeug 2.1 (False).
    ``CTL_MAX_CONNECTIONS``, ``CTL_MAX_PENDING``, ``CTL_MAX_QUEUE``, ``CTL_MAX_REFUSALS``
        Connections at one address (256), unanswered commands of one connection (64), commands that wait for a thread
        (64), commands refused to one peer in ten seconds before it has to wait (10).
    """

    def __init__(self, app: Flask | None = None, *, socket: Sockets | None = None) -> None:
        self._commands: dict[str, Command] = {}
        self._stop_hooks: list[Callable[[], Any]] = []
        self._reload_hooks: list[Callable[[], Any]] = []
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        if app is not None:
            self.init_app(app, socket=socket)
        elif socket is not None:
            raise TypeError("socket= goes to init_app, with the app")

    def init_app(self, app: Flask, *, socket: Sockets | None = None) -> None:
        """Put `app` under control once a server serves it. Raises RuntimeError if it is under control already."""
        if "ctl" in app.extensions:
            raise RuntimeError("this app has a Control already; use that one, or remove the second Control(app)")
        for name, value in _DEFAULTS.items():
            app.config.setdefault(name, value)
        _host.claim_environment(app)
        state = _AppState(self, app, socket)
        app.extensions["ctl"] = state
        self._apps.add(app)
        _count_requests(app, state.requests)
        if state.is_off() and not preflighting:
            return
        if not HAS_UNIX_SOCKETS:
            _warn_unsupported()
            return
        state.requests.on_first = state.first_request
        _host.add(app, state)

    @overload
    def command(self, function: F) -> F: ...
    @overload
    def command(
        self, *, name: str | None = None, role: Role = "operate", scope: Scope = "each"
    ) -> Callable[[F], F]: ...
    def command(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        role: Role = "operate",
        scope: Scope = "each",
    ) -> Any:
        """Decorate a function to make it a command of the apps, by its own name or another.

        Its parameters are checked by their annotations: str, int, float, bool, Literal, Enum, list[…], X | None. It
        runs in an app context; what it returns is encoded by ``app.json``. Raises TypeError for another annotation
        and ValueError for a reserved name.
        """

        def register(function: F) -> F:
            command = command_from(function, name=name, role=role, scope=scope)
            if command.name in self._commands:
                raise ValueError(f"there is a command {command.name!r} already")
            self._commands[command.name] = command
            return function

        return register if function is None else register(function)

    def on_stop(self, function: F) -> F:
        """Decorate a function to be called at a stop, in an app context, once the last request has been answered."""
        self._stop_hooks.append(function)
        return function

    def on_reload(self, function: F) -> F:
        """Decorate a function to be called by ``reload --config``, in an app context, while the app serves on."""
        self._reload_hooks.append(function)
        return function

    def run(
        self,
        app: Flask | None = None,
        *,
        socket: Sockets | None = None,
        threads: int | None = None,
        server: str | None = None,
        **options: Any,
    ) -> None:
        """Serve the app by ``app.run(**options)``, with at most `threads` requests at once.

        Another `server` than Werkzeug's takes the options `host` and `port` only.
        `socket` comes before every other setting, but for ``off`` in the environment, and must be usable. Raises
        ConfigurationError if it is not, if there is no app or several and `app` does not say which, or for a `server`
        that is not known, not installed, or starts processes of its own.
        """
        app = app or self._only_app()
        state: _AppState = app.extensions["ctl"]
        state.threads = threads
        if socket is not None:
            state.override, state.required = as_list(socket), True
        if server is None:
            app.run(**options)
        else:
            refuse_program(server)
            load_adapter(server).serve(app, threads=threads, **{"host": "127.0.0.1", "port": 5000, **options})

    def stop(self) -> None:
        """Begin a graceful stop of the current app, or of all apps that are served; never blocks.

        For views, threads and signal handlers. Raises NotRunning if nothing is served.
        """
        apps = list(self._apps)
        if has_app_context() and current_app._get_current_object() in self._apps:  # type: ignore[attr-defined]
            apps = [current_app._get_current_object()]  # type: ignore[attr-defined]
        instances = {instance for app in apps for instance in app.extensions["ctl"].instances()}
        if not instances:
            why = " (control is off)" if any(app.extensions["ctl"].is_off() for app in apps) else ""
            raise NotRunning(f"no server serves an app of this Control in this process{why}")
        here = {instance for instance in instances if instance.server.is_serving_thread()}
        for instance in here or instances:
            instance.request_stop()

    def sockets(self, app: Flask | None = None) -> list[str]:
        """The addresses at which the app listens, or would. Raises ConfigurationError like `run`."""
        state: _AppState = (app or self._only_app()).extensions["ctl"]
        served = [endpoint for instance in state.instances() for endpoint in instance.endpoints]
        return served or [str(parse_address(address)) for address in state.endpoints()]

    def _only_app(self) -> Flask:
        apps = list(self._apps)
        if len(apps) != 1:
            raise ConfigurationError(f"this Control has {len(apps)} apps; say which one")
        return apps[0]


_DEFAULTS: dict[str, Any] = {
    "CTL_SOCKET": None,
    "CTL_ALLOW": None,
    "CTL_TCP_OPERATE": False,
    "CTL_CURVE_KEY": None,
    "CTL_CURVE_CLIENTS": None,
    "CTL_GRACE": 30.0,
    "CTL_SIGNALS": True,
    "CTL_REQUIRED": False,
    "CTL_PREFLIGHT_TIMEOUT": 60.0,
    "CTL_DIRECTORY": None,
    "CTL_LEGACY_SHUTDOWN": False,
    **SETTINGS,
}


def state_of(app: Flask) -> _AppState:
    """An app's share of its Control, or one of its own for an app that has none."""
    state: _AppState | None = app.extensions.get("ctl")
    return _AppState(Control(), app, None) if state is None else state


class _AppState:
    """What ``app.extensions["ctl"]`` holds: an app's share of a Control, with weak references only."""

    def __init__(self, control: Control, app: Flask, socket: Sockets | None) -> None:
        self.control = control
        self.threads: int | None = None
        self.override: list[str] | None = None
        """Addresses that come before all others, as `run --socket` gives them."""
        self.required = False
        self._app = weakref.ref(app)
        self._argument = as_list(socket)
        self._instances: list[Instance | Agent] = []
        self.requests = RequestCounter(_wsgi_app_of(app))
        self._lock = threading.Lock()

    @property
    def app(self) -> Flask:
        app = self._app()
        assert app is not None, "only the app's own server asks"
        return app

    @property
    def wants_signals(self) -> bool:
        return bool(self.app.config["CTL_SIGNALS"])

    def is_off(self) -> bool:
        """Whether the app is not to be controlled."""
        return OFF in from_environment() or OFF in (self.override or self._configured())

    def instances(self) -> list[Instance | Agent]:
        """The servers that serve the app now."""
        return [instance for instance in self._instances if not instance.ended]

    def close_ended(self) -> None:
        """Have those that have ended, but listen for control until the end of the process, give up their sockets."""
        for instance in self._instances:
            if instance.ended:
                instance.close()

    def attach(self, instance: Instance | Agent) -> None:
        """Note that a server serves the app."""
        self._instances = [*self.instances(), instance]
        self.requests.on_first = None
        if self.app.config.get("CTL_LEGACY_SHUTDOWN"):
            self.requests.shutdown = instance.request_stop

    def endpoints(self) -> list[str]:
        """The addresses to listen at."""
        if OFF in from_environment():
            return []
        if self._listens_by_default():
            return [default_path(self.app.name, self.app.root_path)]
        configured = self._configured() if self.override is None else self.override
        return [] if OFF in configured else configured

    def first_request(self, environ: Environ) -> None:
        """Called before every request until a server is known: one that no adapter noticed shows itself here."""
        if "werkzeug.request" in environ:
            return
        with self._lock:
            if self.requests.on_first is None:
                return
            self.requests.on_first = None
            instance = begin(UnknownServer(environ, self.requests), [self])
        if instance is not None:
            instance.serving()

    def served_app(self, endpoints: list[str] | None = None, *, required: bool = False) -> ServedApp:
        """What an instance has to know of the app, which is to listen at `endpoints`, or where its settings say."""
        app = self.app
        return ServedApp(
            name=app.name,
            root_path=app.root_path,
            requests=self.requests,
            commands=list(self.control._commands.values()),
            stop_hooks=self.control._stop_hooks,
            reload_hooks=self.control._reload_hooks,
            run_command=self._run_command,
            run_hook=self._run_hook,
            endpoints=self.endpoints() if endpoints is None else endpoints,
            required=required or self.required or bool(self.app.config.get("CTL_REQUIRED")),
            curve=CurveFiles(self.setting("CTL_CURVE_KEY"), self.setting("CTL_CURVE_CLIENTS")),
            policy=Policy.from_config(self.setting("CTL_ALLOW"), self.setting("CTL_TCP_OPERATE")),
            limits=Limits.from_config(self.setting),
            grace=self.seconds("CTL_GRACE"),
            preflight_timeout=self.seconds("CTL_PREFLIGHT_TIMEOUT"),
            versions=_versions(),
            directory=directory_given(self.setting("CTL_DIRECTORY")),
            by_default=endpoints is None and self._listens_by_default(),
        )

    def setting(self, name: str) -> Any:
        """A setting, or its default in an app without a Control."""
        return self.app.config.get(name, _DEFAULTS[name])

    def seconds(self, name: str) -> float:
        """A setting that is a duration. Raises ConfigurationError for anything else."""
        value = self.setting(name)
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = -1.0
        if not seconds >= 0:
            raise ConfigurationError(f"{name} has to be a number of seconds, 0 or more, not {value!r}")
        return min(seconds, MAX_SECONDS)

    def _listens_by_default(self) -> bool:
        return OFF not in from_environment() and self.override is None and not self._configured()

    def _configured(self) -> list[str]:
        environment = from_environment() if _host.is_first(self.app) else []
        return environment or self._argument or as_list(self.app.config.get("CTL_SOCKET"))

    def _run_command(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        with self.app.app_context():
            result = self.app.ensure_sync(function)(**arguments)
            return json.loads(self.app.json.dumps(result))

    def _run_hook(self, function: Callable[[], Any]) -> None:
        with self.app.app_context():
            self.app.ensure_sync(function)()


def _wsgi_app_of(app: Flask) -> WSGIApp:
    """The app's `wsgi_app`; where it is the app's own method, without a reference that would keep the app alive."""
    if "wsgi_app" in vars(app):
        return app.wsgi_app
    method = weakref.WeakMethod(app.wsgi_app)

    def call(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        wsgi_app = method()
        assert wsgi_app is not None, "whoever calls it has the app"
        return wsgi_app(environ, start_response)

    return call


def _count_requests(app: Flask, requests: RequestCounter) -> None:
    """Have the app's `wsgi_app` be counted, however it is reached.

    By its class: an attribute that holds the app's own method, as middleware does, would make a cycle, and the app
    would not go with its last reference (Flask's `test_app_freed_on_zero_refcount`).
    """
    if "wsgi_app" not in vars(app):
        kind: Any = type(app)
        try:
            app.__class__ = _counting(kind)
            return
        except TypeError:
            # A class that does not let itself be derived from, or assigned.
            logger.debug("%s is counted by an attribute", type(app).__name__, exc_info=True)
    app.wsgi_app = requests  # type: ignore[method-assign]


@functools.cache
def _counting(kind: Any) -> type:
    """The same class, but for a `wsgi_app` that counts."""

    def wsgi_app(self: Flask, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        state: _AppState = self.extensions["ctl"]
        return state.requests(environ, start_response)

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    counting: type = type(kind)(kind.__name__, (kind,), {**names, "wsgi_app": wsgi_app})
    return counting


_host = ProcessHost()


def _versions() -> dict[str, str]:
    import platform

    packages = {name: version(name.replace("_", "-")) for name in ("flask", "werkzeug", "flask_ctl")}
    return {"python": platform.python_version(), **packages}


_warned = False


def _warn_unsupported() -> None:
    global _warned
    if not _warned:
        _warned = True
        logger.warning("this system has no Unix sockets: the app serves without a control socket")
