"""What is known of each HTTP server: one module a server, each only what differs.

An adapter is a module with

- `SERVER`, the name of its server's module, at whose import it is armed;
- `arm(host)`, which makes that server call `host.begin` when it begins to serve;
- `serve(app, host, port, threads)`, which serves by it, for ``flask-ctl run --server``; if the process has to be made
  ready for that before the app is imported, also `prepare()`. For servers of several processes there is `programs`.

It may import its server, because it is loaded only when the server has been. Other packages add theirs by the
entry-point group GROUP: the name is the server's, the object is such a module, which is loaded at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import ConfigurationError
from ..system.directory import StartDirectory
from .importing import when_imported

if TYPE_CHECKING:
    import threading
    from importlib.metadata import EntryPoint


class Known(NamedTuple):
    """A server's adapter, its own module, and the package that has it."""

    adapter: str
    server: str
    package: str


ADAPTERS = {
    "werkzeug": Known("flask_ctl.servers.werkzeug", "werkzeug.serving", "werkzeug"),
    "waitress": Known("flask_ctl.servers.waitress", "waitress.server", "waitress"),
    "cheroot": Known("flask_ctl.servers.cheroot", "cheroot.server", "cheroot"),
    "pywsgi": Known("flask_ctl.servers.pywsgi", "gevent.pywsgi", "gevent"),
    "gunicorn": Known("flask_ctl.servers.gunicorn", "gunicorn.workers.base", "gunicorn"),
    "uwsgi": Known("flask_ctl.servers.uwsgi", "uwsgi", "pyuwsgi"),
    "granian": Known("flask_ctl.servers.granian", "granian.server.mp", "granian"),
}
"""By the names of the servers, as `run --server` takes them and `status` shows them."""

GROUP = "flask_ctl.adapters"
"""The entry points of adapters that other packages bring."""

WORKERS: dict[str, Callable[[], bool]] = {}
"""Servers that serve from worker processes, by name: whether this process is one of theirs."""

logger = logging.getLogger("flask_ctl")

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

    notify: Callable[[], Any]
    """Called, by any thread and without a lock of the server's, when something has changed that a stop or a reload may
    wait for. Set once, before the server serves, so that no operation takes it from another one."""

    def in_flight(self) -> int:
        """Connections that have begun a request which has not been answered."""

    def quiet(self) -> bool:
        """Whether it accepts no more, and no connection is left."""

    def drain(self) -> None:
        """Stop accepting once the backlog is accepted; returns at once. `notify` is called when `quiet` may be."""

    def close_idle(self) -> None:
        """While draining: close the connections that have not sent a byte."""

    def cut(self) -> int:
        """Close all connections; the number of requests that this cut."""

    def end(self) -> None:
        """Let the server's loop return, and the process end unless it is embedded."""

    def obstacle(self) -> str | None:
        """Why its process can't be replaced under it, None if it can."""

    def own_threads(self) -> Collection[threading.Thread]:
        """Threads of the server's own that end with its loop."""

    def close_after_answers(self, yes: bool) -> None:
        """For a reload: have each answer be the last of its connection, or no longer."""

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

    def addresses(self) -> Collection[str]:
        """Those that it has bound and hands over, as the program has asked for them."""

    def prepare_hand_over(self) -> None:
        """While paused: make the copies of sockets that `hand_over` gives. Raises OSError, with none made."""

    def discard_hand_over(self) -> int:
        """Close those copies; the number of connections that waited there to be accepted."""

    def leave(self) -> None:
        """After `prepare_hand_over`: end the loop, and the program, without answering anybody else."""

    def hand_over(self) -> dict[str, Any]:
        """Once the loop has ended after `leave`: the ``listeners`` and ``parked`` connections for the next image."""

    def is_serving_thread(self) -> bool:
        """Whether the calling thread is answering one of its requests."""


class PreforkWorker(Protocol):
    """One of the worker processes of an HTTP server, as its hub sees it. Methods are called by any thread."""

    name: str
    version: str
    master: int
    """Pid of the process that starts and ends the workers."""
    wanted: int
    """Number of workers that the master keeps, 0 for as many as there are."""
    signals: dict[str, int]
    """What to send to the master: ``stop`` lets the workers finish, ``fast`` does not, ``reload`` replaces them."""

    runs_exit_handlers: bool
    """Whether a worker that ends in order runs them."""

    drains_by_itself: bool
    """Whether the signal ``stop`` lets requests in flight end, where visitors can't be held back before."""

    @property
    def listeners(self) -> list[str]:
        """The URLs at which the server listens; not asked by the thread that is about to serve."""

    def has_master(self) -> bool:
        """Whether the master is still there."""

    def obstacle(self) -> str | None:
        """Why the master can't replace the code of its workers, None if it can."""

    def start_directory(self, given: str | None) -> StartDirectory:
        """Where its code was loaded, and where new workers will load theirs; a directory that was `given` by a setting
        of ours is followed only if the server has it, too."""

    def rehearsal(self) -> dict[str, Any] | None:
        """The ``command``, ``directory`` and ``environment`` that load the new code and end; None if there are none."""

    def hold_back(self, yes: bool) -> bool:
        """Let no new connection arrive, or let them in again; whether that is possible.

        Those that have arrived are answered, and then closed.
        """

    def waiting(self) -> int:
        """Connections that have arrived and wait to be accepted."""

    def begun(self) -> int:
        """Accepted connections that have sent something and wait for an answer; 0 where some are kept open."""

    def silent(self) -> int:
        """Accepted connections that have not sent a byte."""

    def close_silent(self) -> None:
        """Close the connections that have not sent a byte; the server must not wait for them when it ends."""

    def is_abort(self, error: BaseException | None) -> bool:
        """Whether it is the server that has ended a request, by the exception with which that ended."""

    def allow(self, seconds: float) -> None:
        """Have at least so much time for requests in flight when the master ends this worker."""

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

    def serves_controlled(self, wsgi_app: WSGIApp) -> bool:
        """Whether an app that `wsgi_app` leads to is to be controlled."""

    def begin(self, server: HttpServer, wsgi_app: WSGIApp) -> Controlled | None:
        """Called by the thread that is about to serve `wsgi_app`. None if no app that it leads to is under control."""

    def begin_worker(self, worker: PreforkWorker, wsgi_app: WSGIApp | None) -> None:
        """Called by a worker process that is about to serve `wsgi_app`, or whatever app there is if it can't tell.

        Raises ConfigurationError for an app that requires a socket which can't be had.
        """

    def check_settings(self) -> None:
        """Raises ConfigurationError for settings with which an app would not start."""

    def is_stopping(self) -> bool:
        """Whether a stop is under way."""

    def wants_signals(self) -> bool:
        """Whether TERM and INT are to be handled in this process."""


def server_names() -> list[str]:
    """The names of the servers that are known."""
    return list({**ADAPTERS, **_brought()})


def load_adapter(name: str) -> Any:
    """The module for a server's name. Raises ConfigurationError for one that is not known, or not installed."""
    if name in ADAPTERS:
        known = ADAPTERS[name]
        try:
            # First, because its import may arm the adapter, which must not be half loaded then.
            importlib.import_module(known.server)
            return importlib.import_module(known.adapter)
        except ModuleNotFoundError as error:
            if error.name is None or not known.server.startswith(error.name):
                raise
            raise ConfigurationError(f"{name} is not installed; try: pip install {known.package}") from None
    try:
        return _brought()[name].load()
    except KeyError:
        raise ConfigurationError(f"no server is called {name!r}; there are: {', '.join(server_names())}") from None


def prepare_server(name: str) -> None:
    """Make this process ready to be served by that server, before the app is imported. Raises like `load_adapter`."""
    adapter = load_adapter(name)
    if hasattr(adapter, "prepare"):
        adapter.prepare()


def arm_all(host: Host) -> None:
    """Make every known server, whether it is imported already or later, tell `host` when it begins to serve."""
    for name, known in ADAPTERS.items():
        _arm_once(name, host, known.server)
    for name in _brought():
        _arm_once(name, host)


def server_of_workers() -> str | None:
    """The name of the server that this process is a worker of, None if it is of none."""
    return next((name for name, is_worker in WORKERS.items() if is_worker()), None)


_armed: set[str] = set()


def _arm_once(name: str, host: Host, server: str | None = None) -> None:
    if name in _armed:
        return
    _armed.add(name)

    def arm() -> None:
        with _complaining(name):
            load_adapter(name).arm(host)

    with _complaining(name):
        when_imported(server or load_adapter(name).SERVER, arm)


@contextlib.contextmanager
def _complaining(name: str) -> Iterator[None]:
    """An adapter that does not work, or not with this version of its server, costs a warning; the app serves."""
    try:
        yield
    except Exception as error:
        logger.warning("apps that %s serves are not under control: %s: %s", name, type(error).__name__, error)


@functools.cache
def _brought() -> dict[str, EntryPoint]:
    # Loading this costs a client more than all else together.
    from importlib.metadata import entry_points

    return {found.name: found for found in entry_points(group=GROUP) if found.name not in ADAPTERS}
