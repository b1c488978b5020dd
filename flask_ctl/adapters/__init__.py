"""What is known of each HTTP server: one module a server, each only what differs.

A module of this package has `arm(host)`, which makes its server call `host.begin` when it begins to serve.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import ConfigurationError

ADAPTERS: dict[str, str] = {"werkzeug": "flask_ctl.adapters.werkzeug"}
"""Names of servers, as `run --server` takes them and `status` shows them, and the modules that know them."""

WSGIApp = Callable[..., Any]


class HttpServer(Protocol):
    """One HTTP server that serves, as a stop sees it. Its methods may be called by any thread."""

    name: str
    version: str
    listeners: list[str]
    parent: int | None
    """Pid of the process that ends with this one, as the reloader's does."""
    embedded: bool
    """Whether the process goes on when the server ends: it runs in a thread of a bigger program."""

    keeps_signal_handlers: bool
    """Whether handlers of TERM and INT that are there are its own, and stay."""

    def in_flight(self) -> int:
        """Connections that have begun a request which has not been answered."""

    def quiet(self) -> bool:
        """Whether it accepts no more, and no connection is left."""

    def drain(self, on_change: Callable[[], Any]) -> None:
        """Stop accepting once the backlog is accepted; returns at once. `on_change` is called when `quiet` may be."""

    def close_idle(self) -> None:
        """While draining: close the connections that have not sent a byte."""

    def cut(self) -> int:
        """Close all connections; the number of requests that this cut."""

    def end(self) -> None:
        """Let the server's loop return, and the process end unless it is embedded."""

    def obstacle(self) -> str | None:
        """Why its process can't be replaced under it, None if it can."""

    def watch(self, on_change: Callable[[], Any]) -> None:
        """Have `on_change` called when a request has ended, or the server has paused."""

    def requests(self) -> frozenset[Any]:
        """What stands for the requests in flight, for `answers_any`."""

    def answers_any(self, requests: frozenset[Any]) -> bool:
        """Whether one of those requests is still in flight."""

    def pause(self) -> None:
        """Let new visitors wait, soon."""

    def resume(self) -> None:
        """Let them in again."""

    def paused(self) -> bool:
        """Whether it has paused, and no request is in flight."""

    def leave(self) -> None:
        """While paused: end the loop and the program for the next image, but keep the sockets for `hand_over`."""

    def hand_over(self) -> dict[str, Any]:
        """After `leave`: the ``listeners`` and ``parked`` connections for the next image."""

    def is_serving_thread(self) -> bool:
        """Whether the calling thread is answering one of its requests."""


class Controlled(Protocol):
    """What `Host.begin` gives for a server that is under control."""

    threads: int | None
    """Requests to answer at once, None for no bound."""

    def serving(self) -> None:
        """The server's loop is about to run."""

    def finished(self) -> None:
        """The server's loop has returned."""


class Host(Protocol):
    """What the adapters know of the rest of the package."""

    def begin(self, server: HttpServer, wsgi_app: WSGIApp) -> Controlled | None:
        """Called by the thread that is about to serve `wsgi_app`. None if no app that it leads to is under control."""

    def check_settings(self) -> None:
        """Raises ConfigurationError for settings with which an app would not start."""

    def is_stopping(self) -> bool:
        """Whether a stop is under way."""

    def wants_signals(self) -> bool:
        """Whether TERM and INT are to be handled in this process."""


def servers() -> list[str]:
    """The names of the servers that are known."""
    return list(ADAPTERS)


def load_adapter(name: str) -> Any:
    """The module for a server's name. Raises ConfigurationError, with the known names, for another name."""
    try:
        module = ADAPTERS[name]
    except KeyError:
        raise ConfigurationError(f"no server is called {name!r}; there are: {', '.join(ADAPTERS)}") from None
    return importlib.import_module(module)


def arm_all(host: Host) -> None:
    """Make every known server tell `host` when it begins to serve."""
    for name in ADAPTERS:
        load_adapter(name).arm(host)
