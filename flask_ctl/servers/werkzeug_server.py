"""A Werkzeug server that can be drained, paused and left to the next image of its process.

Its loop waits for the listening socket and for a stop at once: the server's `fileno` is that of a selector over both,
so nothing is polled. Draining counts connections, because a client that has sent half a request line must still be
answered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from importlib.metadata import version
from typing import Any

from werkzeug.serving import BaseWSGIServer

from ..system.handover import inherited
from ..system.native import selectors, threading
from ..system.signals import signals
from ..system.sockets import refuse_new_connections, waiting_connections, welcome_connections
from ..system.waiting import NativeEvent, Waker, wait_readable
from .base import HttpServer
from .copies import ListenerCopies
from .urls import url

_serve_forever = BaseWSGIServer.serve_forever


class Drained(KeyboardInterrupt):
    """Ends the server's loop, which takes a KeyboardInterrupt for the ordinary way to end."""


class WerkzeugServer(HttpServer):
    """A Werkzeug server that can be drained.

    A connection is parked in the loop's selector until its first byte; then it is busy until it is closed.
    """

    name = "werkzeug"

    def __init__(self, server: BaseWSGIServer, *, embedded: bool, in_reloader: bool = False) -> None:
        super().__init__(version("werkzeug"), [_url(server)])
        self.embedded = embedded
        self.parent = os.getppid() if in_reloader else None
        self._server: Any = server
        self._pid = os.getpid()
        self._in_reloader = in_reloader
        self._lock = threading.Lock()
        self._busy: dict[socket.socket, int | None] = {}
        self._slots: threading.Semaphore | None = None
        self._wake = Waker()
        self._selector = selectors.DefaultSelector()
        self._parked: dict[int, tuple[socket.socket, Any]] = {}
        self._draining = False
        # Who was given the socket may be given it again: nothing that outlives this process is done to it.
        self._is_shared = bool(getattr(server, "_given", False)) and not in_reloader
        self._refusing = False
        self._cutting = False
        self._idle_over = False
        self._in_loop = True
        self._loop_ended = False
        self._pausing = False
        self._is_paused = False
        self._resumed = NativeEvent()
        self._released = NativeEvent()
        self._leaving = False
        self._copies = ListenerCopies()
        self._left_parked: list[int] = []

    def limit(self, threads: int) -> None:
        """Answer at most so many requests at once."""
        self._slots = threading.BoundedSemaphore(threads)

    def serve(self, poll_interval: float) -> None:
        """Run the server's loop; after a drain, until `end`."""
        try:
            _serve_forever(self._server, poll_interval)
            self._in_loop = False
        except Drained:
            # Raised by `_leave_request` at the last moment, when the request had just ended.
            self._in_loop = False
        finally:
            self._close_parked()
            with self._lock:
                self._loop_ended = True
            self.notify()
        if self._draining or self._cutting:
            self._released.wait()

    def in_flight(self) -> int:
        with self._lock:
            return len(self._busy) + len(self._children())

    def quiet(self) -> bool:
        with self._lock:
            return self._loop_ended and not self._busy

    def drain(self) -> None:
        self._draining = True
        self._wake.wake()
        self.resume()

    def close_idle(self) -> None:
        self._idle_over = True
        self._wake.wake()

    def cut(self) -> int:
        with self._lock:
            connections, children = list(self._busy), self._children()
        for connection in connections:
            # Not the method of an SSLSocket, which would pull the TLS object from under its thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        waiting = self._cut_waiting()
        if signals.installed:
            self._interrupt_loop()
        return len(connections) + len(children) + waiting

    def _cut_waiting(self) -> int:
        """Answer nobody else; the number of those who have asked, or have only just connected."""
        self._cutting = True
        self._wake.wake()
        if self._loop_ended:
            return 0
        try:
            return len(wait_readable(list(self._parked), 0)) + waiting_connections(self._server.socket)
        except OSError:
            # The loop has ended at this moment, and closed them.
            return 0

    def end(self) -> None:
        self._released.set()
        self._interrupt_loop()
        if self._in_reloader:
            signals.exit_main()

    def obstacle(self) -> str | None:
        if self.embedded:
            return "the server runs in a thread of a bigger program"
        if self._server.ssl_context is not None:
            return "TLS connections can't be handed over"
        if hasattr(self._server, "active_children"):
            return "a server with processes can't be replaced"
        return None

    def requests(self) -> frozenset[socket.socket]:
        with self._lock:
            return frozenset(self._busy)

    def answers_any(self, requests: frozenset[socket.socket]) -> bool:
        with self._lock:
            return not requests.isdisjoint(self._busy)

    def pause(self) -> None:
        self._resumed.clear()
        self._pausing = True
        self._wake.wake()

    def resume(self) -> None:
        self._pausing = False
        self._resumed.set()

    def paused(self) -> bool:
        with self._lock:
            return self._is_paused and not self._busy

    def addresses(self) -> list[str]:
        return [_requested(self._server)]

    def prepare_hand_over(self) -> None:
        # A copy: the program closes the original while it unwinds. The reloader's child has got its listening socket
        # from its parent, and will again.
        if not self._in_reloader:
            self._copies.make({_requested(self._server): self._server.socket})

    def discard_hand_over(self) -> int:
        return self._copies.discard()

    def leave(self) -> None:
        self._leaving = True
        self.resume()
        self._released.set()
        if self._in_reloader:
            signals.exit_main()

    def hand_over(self) -> dict[str, Any]:
        return {"listeners": self._copies.detach(), "parked": self._left_parked}

    @property
    def left(self) -> bool:
        """Whether its loop ended for the next image."""
        return self._leaving

    def is_serving_thread(self) -> bool:
        return self._is_answering(threading.current_thread())

    def discard(self) -> None:
        """Give up the address without having served."""
        self._server.server_close()
        self.close()

    def close(self) -> None:
        """Release its own descriptors."""
        for resource in (self._selector, self._wake, self._resumed, self._released):
            resource.close()

    def _children(self) -> list[int]:
        """Processes that answer a request each, where the server forks."""
        return list(getattr(self._server, "active_children", None) or ())

    def _interrupt_loop(self) -> None:
        """Without threads the main thread answers requests itself: take it out of one that does not end."""
        if not self.embedded and self._is_answering(threading.main_thread()):
            signals.interrupt_main(self._leave_request)

    def _leave_request(self) -> None:
        if self._in_loop and self._is_answering(threading.main_thread()):
            raise Drained

    def _is_answering(self, thread: threading.Thread) -> bool:
        # Without the lock, which the main thread may hold when a signal handler asks.
        return thread.ident in list(self._busy.values())

    def attach(self) -> None:
        """Take the server's methods over, and the connections that a former image left."""
        server = self._server
        welcome_connections(server.socket)
        server.socket.setblocking(False)
        if server.ssl_context is not None:
            # Left to accept(), a client that does not answer would hold up everybody else.
            server.socket.do_handshake_on_connect = False
        self._selector.register(server.socket, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        server.fileno = self._selector.fileno
        server.get_request = self._get_request
        server.service_actions = self._service_actions
        server.process_request = self._process_request
        server.finish_request = self._finish_request
        server.close_request = self._close_request
        for connection in inherited.take_parked():
            self._park(connection, connection.getpeername())

    def _get_request(self) -> tuple[socket.socket, Any]:
        """Called by the loop when something is ready: a connection that has begun a request. Raises BlockingIOError."""
        ready = [key for key, _ in self._selector.select(0)]
        if any(key.fileobj is self._wake for key in ready):
            self._wake.clear()
        if any(key.fileobj is self._server.socket for key in ready):
            self._accept()
        # Those that have asked are answered even while nobody else can be accepted, for want of descriptors.
        for key in ready:
            if key.fd in self._parked and not self._cutting:
                return self._unpark(key.fd)
        raise BlockingIOError

    def _accept(self) -> bool:
        """Whether a connection could be accepted."""
        try:
            connection, address = type(self._server).get_request(self._server)
        except OSError:
            return False
        # On some systems it has inherited the listener's mode.
        connection.setblocking(True)
        self._park(connection, address)
        return True

    def _park(self, connection: socket.socket, address: Any) -> None:
        self._parked[connection.fileno()] = connection, address
        self._selector.register(connection.fileno(), selectors.EVENT_READ)

    def _unpark(self, descriptor: int) -> tuple[socket.socket, Any]:
        self._selector.unregister(descriptor)
        return self._parked.pop(descriptor)

    def _close_parked(self) -> None:
        for descriptor in tuple(self._parked):
            self._unpark(descriptor)[0].close()

    def _service_actions(self) -> None:
        """Called by the loop after each round of waiting."""
        type(self._server).service_actions(self._server)
        if self._pausing and not self._draining:
            self._stay_paused()
        if self._leaving:
            self._left_parked = [self._unpark(descriptor)[0].detach() for descriptor in tuple(self._parked)]
            raise Drained
        if not self._draining:
            return
        self._accept_the_last()
        somebody_asks = any(key.fileobj is not self._wake for key, _ in self._selector.select(0))
        if self._cutting or (not somebody_asks and (self._idle_over or not self._parked)):
            self._server.socket.setblocking(True)
            raise Drained

    def _stay_paused(self) -> None:
        self._set_paused(True)
        while self._pausing:
            self._resumed.wait()
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        with self._lock:
            self._is_paused = paused
        self.notify()

    def _accept_the_last(self) -> None:
        """Let in who has connected already, and nobody else."""
        listener = self._server.socket
        if self._refusing:
            return
        self._refusing = True
        if self._is_shared or not refuse_new_connections(listener):
            while self._accept():
                pass
            self._selector.unregister(listener)

    def _process_request(self, request: socket.socket, client_address: Any) -> None:
        with self._lock:
            self._busy[request] = None
        type(self._server).process_request(self._server, request, client_address)

    def _finish_request(self, request: socket.socket, client_address: Any) -> None:
        if os.getpid() == self._pid:
            with self._lock:
                self._busy[request] = threading.get_ident()
        else:
            _leave_signals_to_parent()
        with self._slots or contextlib.nullcontext():
            type(self._server).finish_request(self._server, request, client_address)

    def _close_request(self, request: socket.socket) -> None:
        type(self._server).close_request(self._server, request)
        if os.getpid() != self._pid:
            # The locks are the parent's, and may have been taken at the moment of the fork.
            return
        with self._lock:
            self._busy.pop(request, None)
        self.notify()


def _leave_signals_to_parent() -> None:
    """In a child that answers one request: the server waits for it, so a signal to the group must not cut it."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        # Not SIG_IGN, which the programs that a view starts would inherit.
        signal.signal(signum, lambda signum, frame: None)


def _requested(server: Any) -> str:
    """The address that the program asked for, which with port 0 is not the one that it got."""
    return str(server._requested_address)


def _url(server: BaseWSGIServer) -> str:
    # A host name stays as it was given.
    is_unix = server.address_family == getattr(socket, "AF_UNIX", None)
    address = server.server_address if is_unix else (server.host, server.port)
    return url(address, "http" if server.ssl_context is None else "https")
