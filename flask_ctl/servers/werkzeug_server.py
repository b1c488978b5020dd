"""A Werkzeug server that can be drained, paused and left to the next image of its process.

Its loop waits for one selector, which has the listening socket, the waker and the parked connections: the server's
`fileno` is the selector's. A connection is parked until its first byte, and busy from then on: Werkzeug closes it
after the answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

from werkzeug.serving import BaseWSGIServer

from ..system.native import selectors, threading
from ..system.signals import signals
from ..system.waiting import wait_readable
from . import reloader
from .keepalive import KeepAliveServer
from .loop_state import LoopEvent
from .urls import url


class WerkzeugServer(KeepAliveServer):
    """A Werkzeug server under control, with threads, with a process for each request, or with neither."""

    class Drained(KeyboardInterrupt):
        """Ends the loop, which takes a KeyboardInterrupt for the ordinary way to end."""

    name = package = "werkzeug"
    loop_end = (Drained,)
    inherits_given = True

    def __init__(self, server: BaseWSGIServer, *, embedded: bool, in_reloader: bool = False) -> None:
        self.wsgi_server: Any = server
        super().__init__(
            [_url(server)],
            {getattr(server, "_requested_address", ""): server.socket},
            given=getattr(server, "_given", False) and not in_reloader,
            tls=server.ssl_context is not None,
            embedded=embedded,
        )
        self.parent = os.getppid() if in_reloader else None
        self.restarted = in_reloader and reloader.restarted
        self._in_reloader = in_reloader
        self._pid = os.getpid()
        self._slots: Any = contextlib.nullcontext()
        self._selector = selectors.DefaultSelector()
        self.loop.resources.callback(self._selector.close)
        self._parked: dict[int, tuple[socket.socket, Any]] = {}

    def in_flight(self) -> int:
        return super().in_flight() + len(self._children())

    def quiet(self) -> bool:
        # The program may end the loop itself, while threads still answer.
        return super().quiet() and not self.busy

    def cut(self) -> int:
        children = self._children()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        count = super().cut() + len(children)
        if signals.installed:
            self._interrupt_loop()
        return count

    def _count_waiting(self) -> int:
        # Without threads the parked ones have asked, and wait for their turn.
        return super()._count_waiting() + len(wait_readable(list(self._parked), 0))

    def end(self) -> None:
        super().end()
        self._interrupt_loop()
        if self._in_reloader:
            signals.exit_main()

    def obstacle(self) -> str | None:
        if hasattr(self.wsgi_server, "active_children"):
            return "a server with processes can't be replaced"
        return super().obstacle()

    def leave(self) -> None:
        super().leave()
        if self._in_reloader:
            signals.exit_main()

    def discard(self) -> None:
        """Give up the address without having served."""
        self.wsgi_server.server_close()
        self.loop.resources.close()

    def _children(self) -> list[int]:
        """Processes that answer a request each, where the server forks."""
        return list(getattr(self.wsgi_server, "active_children", None) or ())

    def _interrupt_loop(self) -> None:
        """Without threads the main thread answers requests itself: take it out of one that does not end."""
        if not self.embedded and self.busy.is_answered_by(threading.main_thread().ident):
            # At a reload, which has paused the server. A server that stops takes no notice.
            self.loop.report(LoopEvent.HAND_OVER)
            signals.interrupt_main(self._leave_request)

    def _leave_request(self) -> None:
        if self.busy.is_answered_by(threading.main_thread().ident):
            raise self.Drained

    def attach(self) -> None:
        server = self.wsgi_server
        if self.threads is not None:
            self._slots = threading.BoundedSemaphore(self.threads)
        server.socket.setblocking(False)
        if self._tls:
            # Left to accept(), a client that does not answer would hold up all others.
            server.socket.do_handshake_on_connect = False
        self._selector.register(self.loop.waker, selectors.EVENT_READ)
        self._selector.register(server.socket, selectors.EVENT_READ)
        # Not put back: threads may still answer when the loop has ended.
        server.fileno = self._selector.fileno
        server.get_request = self._get_request
        server.process_request = self._process_request
        server.finish_request = self._finish_request
        server.close_request = self._close_request
        for connection, address in self.inherited_connections():
            self._park(connection, address)

    def detach(self) -> None:
        """The loop has closed the listening socket itself."""
        for connection in self.idle():
            self.close_connection(connection)

    def end_loop(self) -> None:
        # The next owner of a socket that was given would find the mode changed.
        self.wsgi_server.socket.setblocking(True)
        raise self.Drained

    def listening(self) -> list[socket.socket]:
        return [self.wsgi_server.socket]

    def idle(self) -> list[socket.socket]:
        return [connection for connection, _ in list(self._parked.values())]

    def set_reading(self, read: bool) -> None:
        for descriptor in self._parked:
            if read:
                self._selector.register(descriptor, selectors.EVENT_READ)
            else:
                self._selector.unregister(descriptor)

    def set_accepting(self, accept: bool) -> None:
        if accept:
            self._selector.register(self.wsgi_server.socket, selectors.EVENT_READ)
        else:
            self._selector.unregister(self.wsgi_server.socket)

    def accept_waiting(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._accept_one()

    def socket_of(self, connection: socket.socket) -> socket.socket:
        return connection

    def close_connection(self, connection: socket.socket) -> None:
        self._unpark(connection.fileno())[0].close()

    def give_up(self, connection: socket.socket) -> int:
        return self._unpark(connection.fileno())[0].detach()

    def _park(self, connection: socket.socket, address: Any) -> None:
        self._parked[connection.fileno()] = connection, address
        self._selector.register(connection.fileno(), selectors.EVENT_READ)
        self.loop.changed()

    def _unpark(self, descriptor: int) -> tuple[socket.socket, Any]:
        # While it pauses they are not registered.
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)
        return self._parked.pop(descriptor)

    def _accept_one(self) -> None:
        connection, address = type(self.wsgi_server).get_request(self.wsgi_server)
        # On some systems it has inherited the listener's mode.
        connection.setblocking(True)
        self._park(connection, address)

    def _get_request(self) -> tuple[socket.socket, Any]:
        """Called by the loop when something is ready: a connection that has begun a request. Raises BlockingIOError."""
        ready = self._ready()
        if self.loop.waker.fileno() in ready:
            self.loop.waker.clear()
            self.loop.look()
            ready = self._ready()
        if self.wsgi_server.socket.fileno() in ready:
            # Requests of parked connections are answered even without a descriptor for another one.
            with contextlib.suppress(OSError):
                self._accept_one()
        for descriptor in ready:
            if descriptor in self._parked:
                return self._unpark(descriptor)
        raise BlockingIOError

    def _ready(self) -> list[int]:
        return [key.fd for key, _ in self._selector.select(0)]

    def _process_request(self, request: socket.socket, client_address: Any) -> None:
        self.busy.begin(request)
        type(self.wsgi_server).process_request(self.wsgi_server, request, client_address)

    def _finish_request(self, request: socket.socket, client_address: Any) -> None:
        if os.getpid() != self._pid:
            _leave_signals_to_parent()
        try:
            with self.busy.answering(), self._slots:
                type(self.wsgi_server).finish_request(self.wsgi_server, request, client_address)
        except self.Drained:
            # The loop ends now: the idle connections are to go to the next image.
            self.loop.look()
            raise

    def _close_request(self, request: socket.socket) -> None:
        type(self.wsgi_server).close_request(self.wsgi_server, request)
        # In a child the locks are copies, which may have been taken at the moment of the fork.
        if os.getpid() == self._pid:
            self.busy.done(request)


def _leave_signals_to_parent() -> None:
    """In a child that answers one request: the server waits for it, so a signal to the group must not cut it."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        # Not SIG_IGN, which the programs that a view starts would inherit.
        signal.signal(signum, lambda signum, frame: None)


def _url(server: BaseWSGIServer) -> str:
    # A host name stays as it was given.
    is_unix = server.address_family == getattr(socket, "AF_UNIX", None)
    address = server.server_address if is_unix else (server.host, server.port)
    return url(address, "http" if server.ssl_context is None else "https")
