"""cheroot, the server of CherryPy: a loop over idle connections, and threads that answer requests."""

from __future__ import annotations

import contextlib
import functools
import queue
import selectors
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from cheroot.connections import ConnectionManager, _ThreadsafeSelector
from cheroot.makefile import StreamReader
from cheroot.server import HTTPConnection, HTTPRequest, HTTPServer
from cheroot.workers import threadpool

from ..system.handover import inherited
from ..system.waiting import wait_readable
from .attributes import ADAPTER, RELOAD, Attributes, lost_without
from .base import Host, WSGIApp
from .keepalive import KeepAliveServer
from .urls import end_preflight, requested, url

SERVER = "cheroot.server"

ATTRIBUTES: Attributes = {
    ADAPTER: {
        HTTPServer: "ConnectionClass _connections bind_addr process_conn put_conn requests serve socket ssl_adapter"
        " stop",
        HTTPConnection: "RequestHandlerClass close communicate rfile socket",
        HTTPRequest: "close_connection conn send_headers",
        StreamReader: "has_data",
        ConnectionManager: "_from_server_socket _selector put",
        _ThreadsafeSelector: "_selector connections register select unregister",
        threadpool: "_SHUTDOWNREQUEST",
        threadpool.ThreadPool: "_queue _threads",
        threadpool.WorkerThread: "server start",
    },
    RELOAD: {HTTPServer: "bind bind_unix_socket resolve_real_bind_addr"},
}


def serve(app: WSGIApp, host: str, port: int, threads: int | None) -> None:
    """Serve `app`, for ``flask-ctl run``."""
    from cheroot.wsgi import Server

    options = {} if threads is None else {"numthreads": threads, "max": threads}
    Server((host, port), app, **options).start()


def arm(host: Host) -> None:
    """Make every cheroot server of this process register with `host` when it begins to serve."""
    lost = lost_without("cheroot", ATTRIBUTES)
    if ADAPTER in lost:
        return
    HTTPServer.serve = _controlled(host, HTTPServer.serve)
    threadpool.WorkerThread.start = _as_daemon(host, threadpool.WorkerThread.start)
    if RELOAD in lost:
        return
    HTTPServer.bind = _inheriting(host, HTTPServer.bind)
    HTTPServer.bind_unix_socket = _inheriting(host, HTTPServer.bind_unix_socket)


def _controlled(host: Host, serve: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(serve)
    def serve_under_control(self: Any) -> None:
        CherootServer(self).serve(host, _app_of(self), lambda: serve(self))

    return serve_under_control


def _inheriting(host: Host, bind: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(bind)
    def bind_or_inherit(self: Any, *args: Any) -> Any:
        end_preflight(host.check_settings, self.bind_addr)
        self._requested_address = requested(self.bind_addr)
        descriptor = inherited.take_listener(self._requested_address)
        if descriptor is None:
            return bind(self, *args)
        self.socket = socket.socket(fileno=descriptor)
        self.bind_addr = self.resolve_real_bind_addr(self.socket)
        return self.socket

    return bind_or_inherit


def _as_daemon(host: Host, start: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(start)
    def start_as_daemon(self: Any) -> None:
        # A thread that is busy with a request which was cut must not keep the process alive.
        if host.serves_controlled(_app_of(self.server)):
            self.daemon = True
        start(self)

    return start_as_daemon


class CherootServer(KeepAliveServer):
    """A cheroot server under control."""

    class Drained(KeyboardInterrupt):
        """Ends the loop, which logs other exceptions and goes on."""

    name = package = "cheroot"
    loop_end = (Drained,)

    def __init__(self, server: Any) -> None:
        name = getattr(server, "_requested_address", None)
        bound = {} if name is None else {name: server.socket}
        tls = server.ssl_adapter is not None
        super().__init__([url(server.bind_addr, "https" if tls else "http")], bound, given=not bound, tls=tls)
        self._server = server
        self._manager = server._connections
        self._process_conn: Callable[[Any], None] = server.process_conn
        self._put_conn: Callable[[Any], None] = server.put_conn

    def own_threads(self) -> Collection[threading.Thread]:
        # This thread answers 503 when the others are busy; cheroot keeps no reference to it.
        mine = getattr(self._server, "_serve_unservicable", self)
        return [thread for thread in threading.enumerate() if getattr(thread, "_target", None) == mine]

    def attach(self) -> None:
        server, selector = self._server, self._manager._selector
        server.socket.setblocking(False)
        self._replacements.replace(server, "ConnectionClass", _connection_class(server.ConnectionClass, self))
        self._replacements.replace(server, "process_conn", self._process)
        self._replacements.replace(server, "put_conn", self._put)
        self._replacements.replace(selector, "select", functools.partial(self._select, selector.select))
        for accepted in self.inherited_connections():
            self._take_in(accepted)

    def detach(self) -> None:
        server, pool = self._server, self._server.requests
        # Its stop() would connect to its own socket, and wait for threads that are busy with a request that was cut.
        if server.socket is not None:
            server.socket.close()
            server.socket = None
        with contextlib.suppress(queue.Full):
            for _ in pool._threads:
                pool._queue.put_nowait(threadpool._SHUTDOWNREQUEST)
        pool._threads.clear()
        server.stop()

    def end_loop(self) -> None:
        raise self.Drained

    def listening(self) -> list[socket.socket]:
        # None once the loop, in another thread, has closed it.
        return [] if (sock := self._server.socket) is None else [sock]

    def idle(self) -> list[Any]:
        connections = [connection for _, connection in self._manager._selector.connections]
        return [each for each in connections if each is not self._server and each not in self.busy]

    def set_accepting(self, accept: bool) -> None:
        selector, listener = self._manager._selector, self._server.socket.fileno()
        if accept:
            selector.register(listener, selectors.EVENT_READ, data=self._server)
        else:
            selector.unregister(listener)

    def accept_waiting(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._take_in(self._server.socket.accept())

    def _take_in(self, accepted: tuple[socket.socket, Any]) -> None:
        connection = self._manager._from_server_socket(_Accepted(accepted))
        if connection is not None:
            self._process(connection)

    def socket_of(self, connection: Any) -> socket.socket:
        sock: socket.socket = connection.socket
        return sock

    def close_connection(self, connection: Any) -> None:
        self._manager._selector.unregister(connection.socket.fileno())
        connection.close()

    def give_up(self, connection: Any) -> int:
        self._manager._selector.unregister(connection.socket.fileno())
        return self.socket_of(connection).detach()

    def _select(self, select: Callable[[float], Iterable[Any]], timeout: float) -> Iterable[Any]:
        """Replaces the loop's `select`: waits for its descriptors and for the waker."""
        descriptors = [self.loop.waker.fileno()]
        if not self.loop.holding:
            descriptors.append(self._manager._selector._selector.fileno())
        if self.loop.waker.fileno() in wait_readable(descriptors, timeout):
            self.loop.waker.clear()
            self.loop.look()
        return [] if self.loop.holding else select(0)

    def _process(self, connection: Any) -> None:
        """Called for a connection that is new, or readable: a new one takes no thread until it has sent something."""
        if connection.is_new and not self._tls:
            connection.is_new = False
            self._manager.put(connection)
            self.loop.changed()
            return
        connection.is_new = False
        self.busy.begin(connection)
        self._process_conn(connection)

    def _put(self, connection: Any) -> None:
        """Called by a thread that has answered; the loop may begin the next request before this returns."""
        request = self.busy.request_of(connection)
        self._put_conn(connection)
        self.busy.done(connection, request)


class _Accepted:
    """Looks like a listening socket that returns a connection which is accepted already."""

    def __init__(self, accepted: tuple[socket.socket, Any]) -> None:
        self._accepted = accepted

    def accept(self) -> tuple[socket.socket, Any]:
        return self._accepted


def _connection_class(base: Any, server: CherootServer) -> Any:
    """A connection class that reports to `server` when its connections are answered, and closed."""

    class Request(base.RequestHandlerClass):  # type: ignore[misc]
        def send_headers(self) -> None:
            # What the client has sent behind this request would never be answered.
            if server.loop.closing and not self.conn.rfile.has_data():
                self.close_connection = True
            super().send_headers()

    class Connection(base):  # type: ignore[misc]
        RequestHandlerClass = Request
        is_new = True

        def communicate(self) -> bool:
            with server.busy.answering():
                keep: bool = super().communicate()
                return keep

        def close(self) -> None:
            try:
                super().close()
            finally:
                server.busy.done(self)

    return Connection


def _app_of(server: Any) -> Any:
    return getattr(server, "wsgi_app", None)
