"""A controlled app: its settings, the servers that serve it, and the counting of its requests."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, got_request_exception, request, request_started

from ..dispatch.commands import Command
from ..dispatch.limits import Limits, whole_number
from ..dispatch.policy import Policy
from ..errors import ConfigurationError
from ..fleet.settings import fleet_from_config
from ..inspection.exceptions import ExceptionTable
from ..inspection.registries import Registries
from ..lifecycle.app import ServedApp
from ..lifecycle.instance import Instance
from ..lifecycle.operation import MAX_SECONDS
from ..servers.middleware import Environ, RequestCounter, StartResponse, WSGIApp
from ..system.addresses import OFF, Sockets, as_list, default_path, from_environment
from ..system.directory import directory_given
from ..system.packages import version_of
from ..transports.factory import CurveFiles
from .description import described_routes, described_settings
from .settings import DEFAULTS

if TYPE_CHECKING:
    from ..workers.agent.agent import Agent

logger = logging.getLogger("flask_ctl")


@dataclass
class Functions:
    """The functions that the program has registered at a Control."""

    commands: dict[str, Command] = field(default_factory=dict)
    stop_hooks: list[Callable[[], Any]] = field(default_factory=list)
    reload_hooks: list[Callable[[], Any]] = field(default_factory=list)
    ready_hooks: list[Callable[[], Any]] = field(default_factory=list)
    drain_hooks: list[Callable[[], Any]] = field(default_factory=list)
    registries: Registries = field(default_factory=Registries)


class AppState:
    """The extension's state of one app, ``app.extensions["ctl"]``. Refers to the app weakly, so that it is no cycle."""

    def __init__(
        self, control: Any, app: Flask, functions: Functions, socket: Sockets | None = None, *, first: bool = False
    ) -> None:
        """`control` is the app's `Control`; the `first` app of the process gets the address of FLASK_CTL_SOCKET."""
        self.control = control
        self._functions = functions
        self._first = first
        self.threads: int | None = None
        self.override: list[str] | None = None
        """Addresses of `Control.run`, which take precedence; None if there are none."""
        self.required = False
        self._app = weakref.ref(app)
        self._argument = as_list(socket)
        self._instances: list[Instance | Agent] = []
        self.requests = RequestCounter(_wsgi_app_of(app))
        self.exceptions = ExceptionTable(app.root_path)

    @property
    def lives(self) -> bool:
        return self._app() is not None

    @property
    def app(self) -> Flask:
        app = self._app()
        assert app is not None, "only the app's own server asks"
        return app

    @property
    def wants_signals(self) -> bool:
        return bool(self.app.config["CTL_SIGNALS"])

    def is_off(self) -> bool:
        """True if control is switched off for the app, by the address ``off``."""
        return OFF in from_environment() or OFF in (self.override or self._configured())

    def instances(self) -> list[Instance | Agent]:
        """The servers of this process that serve the app."""
        return [instance for instance in self._instances if not instance.ended]

    def last_instances(self) -> list[Instance | Agent]:
        """Those of `instances`, or, if all have ended, those that served the app last."""
        return self.instances() or self._instances

    def close_ended(self) -> None:
        """Close the control sockets of servers that have ended; otherwise they stay open until the process ends."""
        for instance in self._instances:
            if instance.ended:
                instance.close()

    def attach(self, instance: Instance | Agent) -> None:
        """Record that a server serves the app."""
        self._instances = [*self.instances(), instance]
        self.requests.on_first = None
        if self.setting("CTL_METRICS"):
            self.requests.measure()
        # It refers to neither of the two strongly.
        got_request_exception.connect(self._note_exception, self.app)
        if self.app.config.get("CTL_LEGACY_SHUTDOWN"):
            self.requests.shutdown = instance.request_stop

    def detach(self, instance: Instance | Agent) -> None:
        """Record that it does not serve the app after all."""
        self._instances = [other for other in self._instances if other is not instance]
        self.requests.shutdown = None

    def endpoints(self) -> list[str]:
        """The addresses to listen at; empty if control is off."""
        if OFF in from_environment():
            return []
        if self._listens_by_default():
            return [default_path(self.app.name, self.app.root_path)]
        configured = self._configured() if self.override is None else self.override
        return [] if OFF in configured else configured

    def served_app(self, endpoints: list[str] | None = None, *, required: bool = False) -> ServedApp:
        """The app as the lifecycle sees it: commands, hooks and checked settings. Raises ConfigurationError.

        `endpoints` replaces the addresses of the settings; `required` has an unusable one be an error.
        """
        app = self.app
        return ServedApp(
            name=app.name,
            root_path=app.root_path,
            requests=self.requests,
            exceptions=self.exceptions,
            registries=self._functions.registries,
            commands=list(self._functions.commands.values()),
            stop_hooks=self._functions.stop_hooks,
            reload_hooks=self._functions.reload_hooks,
            ready_hooks=self._functions.ready_hooks,
            drain_hooks=self._functions.drain_hooks,
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
            settings=lambda: described_settings(self),
            routes=lambda: described_routes(self.app),
            watch_routes=self._watch_routes,
            slow_request=self.seconds("CTL_SLOW_REQUEST"),
            fleet=fleet_from_config(self.setting),
            watchdog_request=self.seconds("CTL_WATCHDOG_REQUEST"),
            log_ring=whole_number("CTL_LOG_RING", self.setting("CTL_LOG_RING"), at_least=0),
            by_default=endpoints is None and self._listens_by_default(),
        )

    def setting(self, name: str) -> Any:
        """A setting of the app, or its default."""
        return self.app.config.get(name, DEFAULTS[name])

    def seconds(self, name: str) -> float:
        """A setting in seconds. Raises ConfigurationError if it is not a number of at least 0."""
        value = self.setting(name)
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = -1.0
        if not seconds >= 0:
            raise ConfigurationError(f"{name} has to be a number of seconds, 0 or more, not {value!r}")
        return min(seconds, MAX_SECONDS)

    def origin_of_addresses(self) -> str | None:
        """``environment`` or ``argument`` where one of these says where to listen, before the app's config."""
        environment = from_environment()
        if OFF in environment or (environment and self.override is None and self._first):
            return "environment"
        return "argument" if self.override is not None or self._argument else None

    def _listens_by_default(self) -> bool:
        return OFF not in from_environment() and self.override is None and not self._configured()

    def _configured(self) -> list[str]:
        environment = from_environment() if self._first else []
        return environment or self._argument or as_list(self.app.config.get("CTL_SOCKET"))

    def _note_exception(self, _app: Flask, exception: BaseException, **_: Any) -> None:
        route = None if request.url_rule is None else request.url_rule.rule
        self.exceptions.note(exception, "request", route, request.method)

    def _watch_routes(self, note: Callable[[str], Any]) -> Callable[[], Any]:
        app = self.app

        def started(_app: Flask, **_: Any) -> None:
            if request.url_rule is not None:
                note(f"{request.method} {request.url_rule.rule}")

        request_started.connect(started, app, weak=False)
        return lambda: request_started.disconnect(started, app)

    def _run_command(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        with self.app.app_context():
            result = self.app.ensure_sync(function)(**arguments)
            return json.loads(self.app.json.dumps(result))

    def _run_hook(self, function: Callable[[], Any]) -> None:
        with self.app.app_context():
            self.app.ensure_sync(function)()


@contextlib.contextmanager
def attached(states: Sequence[AppState], instance: Instance | Agent) -> Iterator[None]:
    """Have the apps know what serves them while that begins: their hooks and commands may run already."""
    for state in states:
        state.attach(instance)
    try:
        yield
    except BaseException:
        for state in states:
            state.detach(instance)
        raise


def _wsgi_app_of(app: Flask) -> WSGIApp:
    """The app's `wsgi_app`, without a strong reference to the app."""
    if "wsgi_app" in vars(app):
        return app.wsgi_app
    method = weakref.WeakMethod(app.wsgi_app)

    def call(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        wsgi_app = method()
        assert wsgi_app is not None, "the caller holds the app"
        return wsgi_app(environ, start_response)

    return call


def count_requests(app: Flask, requests: RequestCounter) -> None:
    """Count the requests of the app's `wsgi_app`.

    Changes the app's class: an attribute that holds a bound method would be a reference cycle, and the app would not
    be freed with its last reference (Flask's `test_app_freed_on_zero_refcount`).
    """
    if "wsgi_app" not in vars(app):
        kind: Any = type(app)
        try:
            app.__class__ = _counting(kind)
            return
        except TypeError:
            # A class that can't be subclassed, or with a layout of its own.
            logger.debug("%s is counted by an attribute", type(app).__name__, exc_info=True)
    app.wsgi_app = requests  # type: ignore[method-assign]


@functools.cache
def _counting(kind: Any) -> type:
    """A subclass, with the same name, whose `wsgi_app` counts requests."""

    def wsgi_app(self: Flask, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        state: AppState = self.extensions["ctl"]
        return state.requests(environ, start_response)

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    counting: type = type(kind)(kind.__name__, (kind,), {**names, "wsgi_app": wsgi_app})
    return counting


def _versions() -> dict[str, str]:
    import platform

    packages = {name: version_of(name.replace("_", "-")) for name in ("flask", "werkzeug", "flask_ctl")}
    return {"python": platform.python_version(), **packages}
