"""gevent's pywsgi: a greenlet for each connection, all in one thread."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.lock
import gevent.socket
from gevent.hub import Hub
from gevent.pywsgi import WSGIHandler, WSGIServer

from ..system.handover import inherited
from ..system.signals import signals
from .attributes import ADAPTER, RELOAD, Attributes, lost_without
from .base import Host, WSGIApp
from .keepalive import KeepAliveServer
from .loop_state import SERVING
from .urls import end_preflight, requested, url

SERVER = "gevent.pywsgi"

ATTRIBUTES: Attributes = {
    ADAPTER: {
        WSGIServer: "_handle address application close closed do_close do_handle do_read full handler_class pool socket"
        " serve_forever ssl_enabled start start_accepting started stop_accepting",
        WSGIHandler: "content_length handle_one_request handle_one_response rfile socket start_response",
        Hub: "cancel_wait loop wait",
        gevent.socket.socket: "_sock",
    },
    RELOAD: {WSGIServer: "backlog init_socket"},
}


def prepare() -> None:
    """Patch the standard library, before ``flask-ctl run`` imports the app: what blocks yields to other greenlets."""
    from gevent import monkey

    monkey.patch_all()


def serve(app: WSGIApp, host: str, port: int, threads: int | None) -> None:
    """Serve `app`, for ``flask-ctl run``; the host bounds the requests at once."""
    WSGIServer((host, port), app).serve_forever()


def arm(host: Host) -> None:
    """Make every pywsgi server of this process register with `host` when it begins to serve."""
    lost = lost_without("gevent", ATTRIBUTES)
    if ADAPTER in lost:
        return
    WSGIServer.start = _controlled(host, WSGIServer.start)
    WSGIServer.serve_forever = _running(WSGIServer.serve_forever)
    if RELOAD not in lost:
        WSGIServer.init_socket = _inheriting(host, WSGIServer.init_socket)


def _inheriting(host: Host, init_socket: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(init_socket)
    def init_or_inherit(self: Any) -> None:
        wanted = [] if hasattr(self, "socket") else [self.address]
        end_preflight(host.check_settings, *wanted)
        if not hasattr(self, "socket"):
            self._requested_address = requested(self.address)
            descriptor = inherited.take_listener(self._requested_address)
            if descriptor is not None:
                self.socket = gevent.socket.socket(fileno=descriptor)
                self.socket.listen(self.backlog)
                self.address = self.socket.getsockname()
        init_socket(self)

    return init_or_inherit


def _controlled(host: Host, start: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(start)
    def start_under_control(self: Any) -> None:
        start(self)
        server = PywsgiServer(self)
        try:
            self._under_control = server if server.open(host, self.application) else None
        except BaseException:
            self.close()
            raise

    return start_under_control


def _running(serve_forever: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(serve_forever)
    def serve_under_control(self: Any, stop_timeout: float | None = None) -> None:
        if not self.started:
            self.start()
        server: PywsgiServer | None = self._under_control
        if server is None:
            serve_forever(self, stop_timeout)
        else:
            server.run(lambda: serve_forever(self, stop_timeout))

    return serve_under_control


class GivenUp(Exception):
    """Wakes a greenlet that waits for a request, because its connection is to be closed."""


class SignalWatch:
    """Makes every signal wake gevent's loop, by the descriptor to which Python writes signals (`signal.set_wakeup_fd`).

    The loop checks for signals before it waits. It would handle one that arrives in between at its next event only,
    which may come hours later.
    """

    def __init__(self, loop: Any) -> None:
        self._read, self._write = os.pipe()
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)
        self._watcher = loop.io(self._read, 1)
        self._set = False

    def start(self) -> None:
        """Watch signals; does nothing outside of the main thread, or if the program has such a descriptor itself."""
        self._watcher.start(self._drain)
        # Only the main thread may set the descriptor.
        with contextlib.suppress(ValueError):
            former = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._set = former == -1
            if not self._set:
                signal.set_wakeup_fd(former)

    def close(self) -> None:
        """More than once is fine."""
        self._watcher.close()
        if self._set:
            self._set = False
            current = signal.set_wakeup_fd(-1)
            if current != self._write:
                signal.set_wakeup_fd(current)
        for descriptor in (self._read, self._write):
            if descriptor >= 0:
                os.close(descriptor)
        self._read = self._write = -1

    def _drain(self) -> None:
        # That the loop wakes is enough: it checks for signals then.
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)


class PywsgiServer(KeepAliveServer):
    """A pywsgi server under control. Its connections are the sockets that it has accepted."""

    name = "pywsgi"
    package = "gevent"

    def __init__(self, server: Any) -> None:
        name = getattr(server, "_requested_address", None)
        bound = {} if name is None else {name: server.socket}
        tls = server.ssl_enabled
        super().__init__([url(server.address, "https" if tls else "http")], bound, given=not bound, tls=tls)
        self._server = server
        self._hub = gevent.get_hub()
        self._calls = self._hub.loop.io(self.loop.waker.fileno(), 1)
        self._signal_watch = SignalWatch(self._hub.loop)
        self.loop.resources.callback(self._signal_watch.close)
        self.loop.resources.callback(self._calls.close)
        self._is_running = False
        self._waiting: dict[Any, Any] = {}
        self._greenlets: dict[Any, Any] = {}
        self._wire: dict[Any, Any] = {}
        self.slots: Any = contextlib.nullcontext()
        self._resumed = gevent.event.Event()
        self._resumed.set()

    def cut(self) -> int:
        count = super().cut()
        if signals.installed and not self.embedded:
            # A request that computes, or that blocks without gevent, keeps the loop from running.
            signals.interrupt_main(self._leave_request)
        return count

    def is_serving_thread(self) -> bool:
        return gevent.getcurrent() in self._greenlets

    def run(self, loop: Callable[[], Any]) -> None:
        self._is_running = True
        super().run(loop)

    def await_request(self, handler: Any) -> bool:
        """In the greenlet of a connection: wait for the next request. False if it is to be closed without one."""
        sock = self._greenlets[gevent.getcurrent()]
        self._wire[sock] = handler.socket
        if not _has_data(handler):
            watcher = self._hub.loop.io(handler.socket.fileno(), 1)
            self._waiting[sock] = watcher
            self.busy.done(sock)
            try:
                self._hub.wait(watcher)
                self._resumed.wait()
            except GivenUp:
                return False
            finally:
                del self._waiting[sock]
                watcher.close()
        self.busy.begin(sock)
        return True

    def _called(self) -> None:
        self.loop.waker.clear()
        if not self.quiet():
            self.loop.look()

    def attach(self) -> None:
        server = self._server
        if self.threads is not None:
            self.slots = gevent.lock.BoundedSemaphore(self.threads)
        self._replacements.replace(server, "handler_class", _handler_class(server.handler_class, self))
        wrapped: dict[str, Callable[..., Any]] = {
            "do_handle": self._do_handle,
            "do_close": self._do_close,
            "start_accepting": self._start_accepting,
            "close": self._close_server,
            "_handle": self._handle,
        }
        for name, ours in wrapped.items():
            self._replacements.replace(server, name, functools.partial(ours, getattr(server, name)))
        self._calls.start(self._called)
        self._signal_watch.start()
        for connection, address in self.inherited_connections():
            server.do_handle(gevent.socket.socket(fileno=connection.detach()), address)

    def detach(self) -> None:
        """The server has closed its sockets itself."""

    def end_loop(self) -> None:
        if self.quiet():
            return
        if self.busy and self._server.pool is not None:
            self._server.pool.kill(block=False)
        self._server.close()
        if not self._is_running:
            gevent.spawn(self._end_program)

    def _end_program(self) -> None:
        """For a program that has not called `serve_forever`, which would have ended it."""
        self.run(lambda: None)
        if not self.embedded:
            raise SystemExit(signals.exit_code)

    def listening(self) -> list[Any]:
        # Missing once the loop, perhaps in another thread, has closed it.
        return [] if (sock := getattr(self._server, "socket", None)) is None else [sock]

    def idle(self) -> list[Any]:
        return list(self._waiting)

    def set_reading(self, read: bool) -> None:
        if read:
            self._resumed.set()
        else:
            self._resumed.clear()

    def set_accepting(self, accept: bool) -> None:
        if accept:
            self._server.start_accepting()
        else:
            self._server.stop_accepting()

    def accept_waiting(self) -> None:
        with contextlib.suppress(OSError):
            while not self._server.full() and (accepted := self._server.do_read()):
                self._server.do_handle(*accepted)

    def socket_of(self, sock: Any) -> socket.socket:
        wire = self._wire.get(sock, sock)
        plain: socket.socket = getattr(wire, "_sock", wire)
        return plain

    def close_connection(self, sock: Any) -> None:
        # Has no effect if the connection begins a request before the hub gets to it.
        self._hub.cancel_wait(self._waiting[sock], GivenUp())

    def give_up(self, sock: Any) -> int:
        # Its greenlet waits for ever.
        return self.socket_of(sock).detach()

    def _leave_request(self) -> None:
        """Called in the main thread: end the request that has it, if one has."""
        if gevent.getcurrent() in self._greenlets and not self.quiet():
            raise gevent.GreenletExit

    def _do_handle(self, do_handle: Callable[..., None], sock: Any, *args: Any) -> None:
        self.busy.begin(sock)
        do_handle(sock, *args)

    def _do_close(self, do_close: Callable[..., None], sock: Any, *args: Any) -> None:
        try:
            do_close(sock, *args)
        finally:
            self._wire.pop(sock, None)
            self.busy.done(sock)

    def _start_accepting(self, start_accepting: Callable[[], None]) -> None:
        # The server would accept again when a place in its pool gets free.
        if self.loop.accepting:
            start_accepting()

    def _handle(self, handle: Callable[..., None], sock: Any, address: Any) -> None:
        self._greenlets[gevent.getcurrent()] = sock
        try:
            handle(sock, address)
        finally:
            del self._greenlets[gevent.getcurrent()]

    def _close_server(self, close: Callable[[], None]) -> None:
        close()
        if not self._is_running and self.loop.state in SERVING:
            # The program closes the server itself, and no serve_forever() waits for that.
            self.run(lambda: None)


def _handler_class(base: Any, server: PywsgiServer) -> Any:
    """A handler class that reports to `server` when its connections begin a request."""

    class Handler(base):  # type: ignore[misc]
        def handle_one_request(self) -> Any:
            return super().handle_one_request() if server.await_request(self) else None

        def handle_one_response(self) -> None:
            with server.slots:
                super().handle_one_response()

        def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
            # What the client has sent behind this request would never be answered.
            if server.loop.closing and (self.content_length or not _has_data(self)):
                headers = [pair for pair in headers if pair[0].lower() != "connection"] + [("Connection", "close")]
            return super().start_response(status, headers, exc_info)

    return Handler


def _has_data(handler: Any) -> bool:
    """Whether the client has sent bytes that the handler has not read, or has disconnected."""
    if handler.rfile.closed:
        return True
    timeout = handler.socket.gettimeout()
    handler.socket.settimeout(0.0)
    try:
        return bool(handler.rfile.peek(1))
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True
    finally:
        handler.socket.settimeout(timeout)
