"""What servers have in common that keep connections open between requests.

A connection is busy from the first byte of a request to the last of its response, and idle otherwise: before its first
request, too. Busy ones are waited for; idle ones are closed by a stop, and go to the next image at a reload. All that
touches connections is done by the thread of the server's own loop, which waits for a `Waker` too, and then looks what
was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from ..system.native import socket, threading
from ..system.signals import signals
from ..system.sockets import refuse_new_connections, waiting_connections, welcome_connections
from ..system.waiting import Gate, Waker, wait_readable
from .base import Host, HttpServer, WSGIApp
from .copies import ListenerCopies
from .hooks import Plumbing
from .inflight import Busy
from .urls import end_rehearsal


class KeepAliveServer(Plumbing, HttpServer):
    """A server that can be drained, paused and left to the next image of its process.

    `bound` has the addresses that were asked for, and the sockets that this process has bound for them; `given` says
    that there are others, which somebody has handed to the program.
    """

    package: str
    loop_end: tuple[type[BaseException], ...] = ()
    """What `_end_loop` raises."""

    def __init__(self, listeners: list[str], bound: dict[str, socket.socket], *, given: bool, tls: bool) -> None:
        HttpServer.__init__(self, version(self.package), listeners)
        Plumbing.__init__(self)
        self.embedded = threading.current_thread() is not threading.main_thread()
        self._bound = bound
        self._given = given
        self._tls = tls
        self._busy = Busy()
        self._answering: set[int] = set()
        self._answers_are_last = False
        self._draining = False
        self._refusing = False
        self._door_shut = False
        self._idle_over = False
        self._cutting = False
        self._ended = False
        self._pausing = False
        self._is_paused = False
        self._leaving = False
        self._copies = ListenerCopies()
        self._left_idle: list[int] = []
        self._waker = Waker()
        self._released = Gate()

    # What the stop and the reload ask for.

    def in_flight(self) -> int:
        return len(self._busy)

    def quiet(self) -> bool:
        return self._ended

    def drain(self) -> None:
        self._draining = True
        self._pausing = False
        self._wake()

    def close_idle(self) -> None:
        self._idle_over = True
        self._wake()

    def cut(self) -> int:
        connections = self._busy.connections()
        for connection in connections:
            # Not the method of an SSLSocket, which would pull the TLS object from under its thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket_of(connection), socket.SHUT_RDWR)
        waiting = 0 if self._ended else sum(map(waiting_connections, self._listening()))
        self._cutting = True
        self._wake()
        return len(connections) + waiting

    def end(self) -> None:
        # The loop has ended by now, unless the stop has failed on its way.
        self._cutting = True
        self._released.set()
        self._wake()

    def obstacle(self) -> str | None:
        if self.embedded:
            return "the server runs in a thread of a bigger program"
        if self._tls:
            return "TLS connections can't be handed over"
        if self._given:
            return "the server was given its socket, which it can't hand over"
        return None

    def set_keep_alive(self, keep: bool) -> None:
        self._answers_are_last = not keep

    def requests(self) -> frozenset[int]:
        return self._busy.requests()

    def answers_any(self, requests: frozenset[int]) -> bool:
        return not requests.isdisjoint(self._busy.requests())

    def pause(self) -> None:
        self._pausing = True
        self._wake()

    def resume(self) -> None:
        self._pausing = False
        self._wake()

    def paused(self) -> bool:
        return self._is_paused and not self._busy

    def addresses(self) -> list[str]:
        return list(self._bound)

    def prepare_hand_over(self) -> None:
        # Copies: the program closes its own while it unwinds.
        self._copies.make(self._bound)

    def discard_hand_over(self) -> int:
        return self._copies.discard()

    def leave(self) -> None:
        self._leaving = True
        self._wake()

    def hand_over(self) -> dict[str, Any]:
        return {"listeners": self._copies.detach(), "parked": self._left_idle}

    def is_serving_thread(self) -> bool:
        return threading.get_ident() in self._answering

    # What the adapters' own connections tell.

    @property
    def closing(self) -> bool:
        """Whether an answer that begins now is to be the last of its connection."""
        return self._draining or self._answers_are_last

    @property
    def holding(self) -> bool:
        """Whether nobody new may be let in, and idle connections are not to be read."""
        return self._is_paused

    def is_busy(self, connection: Any) -> bool:
        return connection in self._busy

    def begin(self, connection: Any) -> None:
        """The connection has begun a request."""
        self._busy.begin(connection)

    def done(self, connection: Any, request: int | None = None) -> None:
        """The connection is idle or closed, unless it has begun another request than the given one."""
        self._busy.done(connection, request)
        self.changed()

    def changed(self) -> None:
        """Something has become of a connection that a drain or a reload may wait for."""
        self.notify()
        if self._draining:
            self._wake()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around what a thread does for a request."""
        ident = threading.get_ident()
        self._answering.add(ident)
        try:
            yield
        finally:
            self._answering.discard(ident)

    # What the loop does.

    def serve(self, host: Host, wsgi_app: WSGIApp, loop: Callable[[], Any]) -> None:
        """Run `loop`, under control if it serves an app that is; after a drain, return or exit only at `end`."""
        end_rehearsal(host.check_settings)
        if self.open(host, wsgi_app):
            self.run(loop)
        else:
            loop()

    def open(self, host: Host, wsgi_app: WSGIApp) -> bool:
        """Put the server under control; False if it serves no app that is to be."""
        registered = False
        try:
            registered = host.register(self, wsgi_app)
        finally:
            if not registered:
                self._close_wakers()
        if registered:
            for listener in self._listening():
                welcome_connections(listener)
            self._attach(self.threads)
            self.on_serving()
        return registered

    def run(self, loop: Callable[[], Any]) -> None:
        """Run `loop` until it has been drained and released; SystemExit if the program is to end with it."""
        try:
            self._run(loop)
        finally:
            self.on_stopped()
            self._close_wakers()
        if not self.embedded and (self._leaving or signals.exit_code):
            raise SystemExit(signals.exit_code)

    def _run(self, loop: Callable[[], Any]) -> None:
        try:
            loop()
        except self.loop_end:
            pass
        finally:
            self._ended = True
            self._put_back()
            self._detach()
            self.notify()
        if self._draining:
            self._released.wait()

    def _wake(self) -> None:
        """Have the loop call `_look` soon, if it still runs."""
        with contextlib.suppress(OSError):
            self._waker.wake()

    def _close_wakers(self) -> None:
        self._waker.close()
        self._released.close()

    def _look(self) -> None:
        """On the loop's thread: do what was asked for since the last time."""
        pausing = self._pausing and not self._draining
        if pausing != self._is_paused:
            self._hold(pausing)
            self._is_paused = pausing
            self.notify()
        if self._leaving:
            # Detached, so that the program does not close them while it unwinds.
            self._left_idle += [self._give_up(connection) for connection in list(self._idle())]
            self._end_loop()
        elif self._draining:
            self._let_in_the_last()
            if self._idle_over:
                self._close_idle()
            if self._cutting or not (self._busy or self._idle() or self._somebody_waits()):
                self._end_loop()

    def _let_in_the_last(self) -> None:
        """Let in who has connected already, and nobody else."""
        if self._refusing:
            return
        self._refusing = True
        # Who was given the socket may be given it again: nothing that outlives this process is done to it.
        refused = [not self._given and refuse_new_connections(listener) for listener in self._listening()]
        if not all(refused):
            self._accept_waiting()
            self._hold(True)
            self._door_shut = True

    def _close_idle(self) -> None:
        idle = {self._socket_of(connection).fileno(): connection for connection in self._idle()}
        for descriptor in set(idle) - set(wait_readable(list(idle), 0)):
            self._close(idle[descriptor])

    def _somebody_waits(self) -> bool:
        return not self._door_shut and bool(wait_readable([listener.fileno() for listener in self._listening()], 0))
