"""What a stop, a reload and a hub ask of an HTTP server, and what its adapter asks of the package."""

# Defaults that do nothing are the purpose of these classes.
# ruff: noqa: B027

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..system.activation import activation
from ..system.directory import StartDirectory
from ..system.native import socket
from ..system.sockets import waiting_connections
from .copies import ListenerCopies
from .open_sockets import end_silent_connections, silent_connections

if TYPE_CHECKING:
    import threading

WSGIApp = Callable[..., Any]


class HttpServer(abc.ABC):
    """An HTTP server that serves from this process. Any thread may call its methods.

    The defaults are those of a server that can be drained, but neither paused nor replaced.
    """

    name: str
    parent: int | None = None
    """Pid of the process that ends with this one, as that of Werkzeug's reloader does."""
    embedded = False
    """Whether the process goes on when the server ends: it runs in a thread of a bigger program."""
    keeps_signal_handlers = False
    """Whether existing handlers of TERM and INT are its own, and stay."""
    threads: int | None = None
    """Requests to answer at once; None for no bound."""

    @property
    def activated(self) -> list[str]:
        """The names of the sockets at which systemd listens when the process has ended, and starts it again."""
        return sorted(activation.addresses)

    def __init__(self, version: str, listeners: list[str]) -> None:
        self.version = version
        self.listeners = listeners
        self.restarted = False
        """Whether a reloader has started its program again, in another process."""
        self.to_store: Sequence[socket.socket] = ()
        """The listening sockets that the service manager is to keep for the process after a crash."""
        self.copies = ListenerCopies({})
        """Copies of the listening sockets, which a reload makes before its commit, for the next image."""
        self.notify: Callable[[], Any] = lambda: None
        """Called by any thread, without a lock of the server, when something has changed that a stop or a reload may
        wait for. Set once, before the server serves, so that every operation hears it."""
        self.on_serving: Callable[[], Any] = lambda: None
        """To be called when the server's loop is about to run."""
        self.on_stopped: Callable[[], Any] = lambda: None
        """To be called when the server's loop has returned."""

    # For a stop.

    @abc.abstractmethod
    def in_flight(self) -> int:
        """The number of connections that have begun a request which has not been answered."""

    @abc.abstractmethod
    def quiet(self) -> bool:
        """Whether it accepts no more, and no connection is left."""

    def drain(self) -> None:
        """Stop accepting once the backlog is accepted; returns at once. `notify` is called when `quiet` may be true."""

    def close_idle(self) -> None:
        """While draining: close the connections that have not sent a byte."""

    @abc.abstractmethod
    def cut(self) -> int:
        """Close all connections; the number of requests that this cuts."""

    @abc.abstractmethod
    def end(self) -> None:
        """Let the server's loop return, and the process end unless the server is embedded."""

    # For a watchdog.

    def backlog(self) -> int:
        """The number of connections that wait to be accepted, as far as that is known."""
        return 0

    def reached_at(self) -> list[Any]:
        """Where it listens, as getsockname(2) tells."""
        return []

    # For a reload.

    def obstacle(self) -> str | None:
        """Why its process can't be replaced under it; None if it can."""
        return "nothing is known of this HTTP server"

    def own_threads(self) -> Collection[threading.Thread]:
        """Threads of the server's own that end with its loop."""
        return ()

    def set_keep_alive(self, keep: bool) -> None:
        """Whether a connection may have another request after the next answer."""

    def requests(self) -> frozenset[Any]:
        """Tokens of the requests in flight: the next request of a connection has another one."""
        return frozenset()

    def pause(self) -> None:
        """Let new connections and requests wait, soon."""

    def resume(self) -> None:
        """Accept and read them again."""

    def paused(self) -> bool:
        """Whether it has paused, and no request is in flight."""
        return False

    def leave(self) -> None:
        """After the copies have been made: end the loop, and the program, without another answer."""

    def hand_over(self) -> dict[str, Any]:
        """For the next image, once the loop has ended: ``listeners`` and ``parked`` as `Handover` takes them, or {}."""
        return {}

    def is_serving_thread(self) -> bool:
        """Whether the calling thread is answering one of its requests."""
        return False


class PreforkWorker(abc.ABC):
    """One of the worker processes of an HTTP server, as its hub sees it. Any thread may call its methods."""

    name: str
    runs_exit_handlers = True
    """Whether a worker that ends in order runs them."""
    instead: ClassVar[Mapping[str, str]] = {}
    """What helps where `signals` lacks one of ``add``, ``remove`` and ``recycle``."""
    activated: Sequence[str] = ()
    """See `HttpServer`."""
    drains_by_itself = True
    """Whether the signal ``stop`` lets requests in flight end where new connections can't be refused before."""

    def __init__(self, version: str, master: int, wanted: int, signals: Mapping[str, int]) -> None:
        self.version = version
        self.master = master
        """Pid of the process that starts and ends the workers."""
        self.wanted = wanted
        """Number of workers that the master keeps; 0 for as many as there are."""
        self.signals = {what: int(signum) for what, signum in signals.items()}
        """What to send to the master: ``stop`` lets the workers finish, ``fast`` does not, ``reload`` replaces them,
        ``add`` and ``remove`` change their number by one. At ``recycle`` a worker ends, and the master starts another.
        """

    @property
    @abc.abstractmethod
    def listeners(self) -> list[str]:
        """The URLs at which the server listens; not for the thread that is about to serve."""

    @abc.abstractmethod
    def obstacle(self) -> str | None:
        """Why the master can't replace the code of its workers; None if it can."""

    @abc.abstractmethod
    def start_directory(self, given: str | None) -> StartDirectory:
        """Where its code was loaded, and where new workers will load theirs.

        A directory that a setting of flask-ctl has `given` is followed only if the server has it, too.
        """

    @abc.abstractmethod
    def preflight(self) -> dict[str, Any] | None:
        """The ``command``, ``directory`` and ``environment`` of a process that loads the new code and ends, if any."""

    @abc.abstractmethod
    def set_accepting(self, accept: bool) -> bool:
        """Whether new connections arrive; returns whether this worker can have it so.

        Those that have arrived before are answered, and then closed.
        """

    @abc.abstractmethod
    def _listening(self) -> Iterable[socket.socket]:
        """The listening sockets."""

    def _ports(self) -> set[int]:
        """The TCP ports of the listening sockets."""
        return {sock.getsockname()[1] for sock in self._listening() if sock.family != socket.AF_UNIX}

    def has_master(self) -> bool:
        """Whether the master still runs."""
        return os.getppid() == self.master

    def waiting(self) -> int:
        """Connections that have arrived and wait to be accepted."""
        with contextlib.suppress(OSError):
            return sum(map(waiting_connections, self._listening()))
        # The worker has closed them.
        return 0

    def begun(self) -> int:
        """Accepted connections that have sent something and wait for an answer; 0 where the server keeps some open."""
        return 0

    def silent(self) -> int:
        """Accepted connections that have not sent a byte."""
        return silent_connections(self._ports())

    def close_silent(self) -> None:
        """Close the connections that have not sent a byte; the server must not wait for them when it ends."""
        end_silent_connections(self._ports())

    def is_abort(self, error: BaseException | None) -> bool:
        """Whether the server itself has ended a request, by the exception with which the request ended."""
        return False

    def extend_grace(self, seconds: float) -> None:
        """Have at least so much time for requests in flight when the master ends this worker, if it can be changed."""

    def is_serving_thread(self) -> bool:
        """Whether the calling thread may be answering one of its requests."""
        return True


class Host(abc.ABC):
    """What the adapters know of the rest of the package."""

    @abc.abstractmethod
    def serves_controlled(self, wsgi_app: WSGIApp) -> bool:
        """Whether `wsgi_app` leads to an app that is to be controlled."""

    @abc.abstractmethod
    def register(self, server: HttpServer, wsgi_app: WSGIApp) -> bool:
        """Put `server` under control; False if `wsgi_app` leads to no app that is to be.

        Called by the thread that is about to serve. Sets the callables and `threads` of the server. Raises
        ConfigurationError for an app that requires a socket which can't be had.
        """

    @abc.abstractmethod
    def register_worker(self, worker: PreforkWorker, wsgi_app: WSGIApp | None) -> None:
        """Called by a worker process that is about to serve `wsgi_app`, or whatever app there is if it can't tell.

        Raises like `register`.
        """

    @abc.abstractmethod
    def check_settings(self) -> None:
        """Raises ConfigurationError for settings with which an app would not start."""

    @abc.abstractmethod
    def is_stopping(self) -> bool:
        """Whether a stop is under way."""

    @abc.abstractmethod
    def wants_signals(self) -> bool:
        """Whether TERM and INT are to be handled in this process."""
