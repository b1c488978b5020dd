"""Werkzeug's own server: `app.run()`, `flask run`, `make_server`.

Its loop waits for the listening socket and for a stop at once: the server's `fileno` is that of a selector over both,
so nothing is polled. Draining counts connections, because a client that has sent half a request line must still be
answered.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from werkzeug.serving import LISTEN_QUEUE, BaseWSGIServer, make_server, select_address_family

from ..signals import signals
from ..system import Waker, refuse_new_connections, wait_readable
from . import Controlled, Host, WSGIApp, reloader

_serve_forever = BaseWSGIServer.serve_forever
_armed = False


class Drained(KeyboardInterrupt):
    """Ends the server's loop, which takes a KeyboardInterrupt for the ordinary way to end."""


class WerkzeugServer:
    """A Werkzeug server that can be drained."""

    name = "werkzeug"
    keeps_signal_handlers = False

    def __init__(self, server: BaseWSGIServer, *, embedded: bool, in_reloader: bool = False) -> None:
        self.version = version("werkzeug")
        self.listeners = [_url(server)]
        self.embedded = embedded
        self.parent = os.getppid() if in_reloader else None
        self._server = server
        self._in_reloader = in_reloader
        self._forks = hasattr(server, "active_children")
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, int | None] = {}
        self._slots: threading.Semaphore | None = None
        self._wake = Waker()
        self._idle_over = Waker()
        self._selector = selectors.DefaultSelector()
        self._draining = False
        self._on_change: Callable[[], Any] = lambda: None
        self._loop_ended = False
        self._released = threading.Event()

    def limit(self, threads: int) -> None:
        """Answer at most so many requests at once."""
        self._slots = threading.BoundedSemaphore(threads)

    def serve(self, poll_interval: float) -> None:
        """Run the server's loop; after a drain, until `end`."""
        self._attach()
        try:
            _serve_forever(self._server, poll_interval)
        finally:
            with self._lock:
                self._loop_ended = True
            self._on_change()
        if self._draining:
            self._released.wait()

    def in_flight(self) -> int:
        with self._lock:
            busy = sum(thread is not None for thread in self._connections.values())
        return busy + len(getattr(self._server, "active_children", None) or ())

    def quiet(self) -> bool:
        with self._lock:
            return self._loop_ended and not self._connections

    def drain(self, on_change: Callable[[], Any]) -> None:
        self._on_change = on_change
        self._draining = True
        self._wake.wake()

    def close_idle(self) -> None:
        self._idle_over.wake()

    def cut(self) -> int:
        cut = self.in_flight()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            # Not the method of an SSLSocket, which would pull the TLS object from under its thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for pid in tuple(getattr(self._server, "active_children", None) or ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if signals.installed:
            self._interrupt_loop()
        return cut

    def end(self) -> None:
        self._released.set()
        self._interrupt_loop()
        if self._in_reloader:
            signals.interrupt_main(SystemExit(signals.exit_code))

    def is_serving_thread(self) -> bool:
        with self._lock:
            return threading.get_ident() in self._connections.values()

    def _interrupt_loop(self) -> None:
        """Without threads the loop itself answers requests: take it out of one that does not end."""
        with self._lock:
            stuck = not self._loop_ended
        if stuck and not self.embedded and not self._in_reloader:
            signals.interrupt_main(Drained())

    def _attach(self) -> None:
        server: Any = self._server
        server.socket.setblocking(False)
        if server.ssl_context is not None:
            # Left to accept(), a client that does not answer would hold up everybody else.
            server.socket.do_handshake_on_connect = False
        self._selector.register(server.socket, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        server.fileno = self._selector.fileno
        server.service_actions = self._service_actions
        server.process_request = self._process_request
        server.finish_request = self._finish_request
        server.close_request = self._close_request

    def discard(self) -> None:
        """Give up the address without having served."""
        self._server.server_close()
        self.close()

    def close(self) -> None:
        """Release its own descriptors."""
        self._selector.close()
        self._wake.close()
        self._idle_over.close()

    def _service_actions(self) -> None:
        """Called by the loop after each round of waiting."""
        server: Any = self._server
        type(server).service_actions(server)
        if self._draining:
            refuse_new_connections(server.socket)
            while wait_readable([server.socket.fileno()], 0):
                server._handle_request_noblock()
            raise Drained

    def _process_request(self, request: socket.socket, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
        type(self._server).process_request(self._server, request, client_address)

    def _finish_request(self, request: socket.socket, client_address: Any) -> None:
        if request.fileno() not in wait_readable([request.fileno(), self._idle_over.fileno()], None):
            return
        with self._lock:
            self._connections[request] = threading.get_ident()
        with self._slots or contextlib.nullcontext():
            type(self._server).finish_request(self._server, request, client_address)

    def _close_request(self, request: socket.socket) -> None:
        type(self._server).close_request(self._server, request)
        with self._lock:
            self._connections.pop(request, None)
        self._on_change()


def run(server: WerkzeugServer, controlled: Controlled, poll_interval: float = 0.5) -> None:
    """Serve under control, until the server has ended."""
    if controlled.threads is not None:
        server.limit(controlled.threads)
    controlled.serving()
    try:
        server.serve(poll_interval)
    finally:
        controlled.finished()
        server.close()


def make_background_server(
    host: str, port: int, wsgi_app: WSGIApp, *, threaded: bool, **options: Any
) -> tuple[WerkzeugServer, int]:
    """A bound server that is to run in a thread, and its port. Raises OSError if the address can't be used."""
    family = select_address_family(host, port)
    # Werkzeug's own bind would print and exit.
    with socket.create_server((host, port), family=family, backlog=LISTEN_QUEUE) as listener:
        server = make_server(host, port, wsgi_app, threaded=threaded, fd=listener.fileno(), **options)
    return WerkzeugServer(server, embedded=True), server.port


def arm(host: Host) -> None:
    """Make every Werkzeug server of this process tell `host` when it begins to serve."""
    global _armed
    if _armed:
        return
    _armed = True

    @functools.wraps(_serve_forever)
    def serve_forever(self: BaseWSGIServer, poll_interval: float = 0.5) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        in_reloader = not in_main and reloader.is_serving_child()
        server = WerkzeugServer(self, embedded=not in_main and not in_reloader, in_reloader=in_reloader)
        controlled = host.begin(server, self.app)
        if controlled is None:
            server.close()
            _serve_forever(self, poll_interval)
            return
        run(server, controlled, poll_interval)
        if in_main and signals.exit_code:
            raise SystemExit(signals.exit_code)

    BaseWSGIServer.serve_forever = serve_forever  # type: ignore[method-assign]
    reloader.arm(host)


def _url(server: BaseWSGIServer) -> str:
    if server.address_family == getattr(socket, "AF_UNIX", None):
        return server.host
    scheme = "http" if server.ssl_context is None else "https"
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{scheme}://{host}:{server.port}"
