"""What a stop, a reload and a hub need of an HTTP server, and what its adapter gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol

from ..system.directory import StartDirectory

if TYPE_CHECKING:
    import threading


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
