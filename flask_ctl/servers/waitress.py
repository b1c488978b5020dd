"""waitress: one thread with a loop over all sockets, and a few that answer requests."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Any

import waitress
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, MultiSocketServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import Task, ThreadedTaskDispatcher

from ..system.handover import inherited
from .attributes import ADAPTER, RELOAD, Attributes, lost_without
from .base import Host, WSGIApp
from .keepalive import KeepAliveServer
from .loop import ServerLoop
from .urls import end_preflight, requested, url

SERVER = "waitress.server"

ATTRIBUTES: Attributes = {
    ADAPTER: {
        BaseWSGIServer: "_map accept accepting adj application channel_class fix_addr run set_socket_options socket",
        MultiSocketServer: "map run",
        TcpWSGIServer: "effective_host effective_port",
        UnixWSGIServer: "effective_host effective_port",
        HTTPChannel: "add_channel close_when_flushed del_channel handle_close handle_read readable received request"
        " requests service socket task_class total_outbufs_len will_close",
        Task: "build_response_header channel request",
        ThreadedTaskDispatcher: "set_thread_count",
        wasyncore: "ExitNow close_all",
    },
    RELOAD: {
        TcpWSGIServer: "bind_server_socket del_channel set_socket sockinfo",
        UnixWSGIServer: "bind_server_socket del_channel set_socket",
        Adjustments: "listen unix_socket",
    },
}


def serve(app: WSGIApp, host: str, port: int, threads: int | None) -> None:
    """Serve `app`, for ``flask-ctl run``."""
    options = {} if threads is None else {"threads": threads}
    waitress.serve(app, host=host, port=port, **options)


def arm(host: Host) -> None:
    """Make every waitress server of this process register with `host` when it begins to serve."""
    lost = lost_without("waitress", ATTRIBUTES)
    if ADAPTER in lost:
        return
    for kind in (BaseWSGIServer, MultiSocketServer):
        kind.run = _controlled(host, kind.run)
    if RELOAD in lost:
        return
    for kind in (TcpWSGIServer, UnixWSGIServer):
        kind.bind_server_socket = _inheriting(host, kind.bind_server_socket)


def _controlled(host: Host, run: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(run)
    def run_under_control(self: Any) -> None:
        sockets = self.map if isinstance(self, MultiSocketServer) else self._map
        listeners = [entry for entry in sockets.values() if isinstance(entry, BaseWSGIServer)]
        server = WaitressServer(sockets, listeners)
        server.serve(host, listeners[0].application, lambda: run(self))

    return run_under_control


def _inheriting(host: Host, bind: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(bind)
    def bind_or_inherit(self: Any) -> None:
        end_preflight(host.check_settings, *(sockaddr for *_, sockaddr in self.adj.listen))
        self._requested_address = _requested(self)
        descriptor = inherited.take_listener(self._requested_address)
        if descriptor is None:
            bind(self)
            return
        self.del_channel()
        self.socket.close()
        self.set_socket(socket.socket(fileno=descriptor))
        self.socket.setblocking(False)

    return bind_or_inherit


class WaitressServer(KeepAliveServer):
    """A waitress server under control, with one listening socket or several."""

    name = package = "waitress"
    loop_end = (wasyncore.ExitNow,)

    def __init__(self, sockets: dict[int, Any], listeners: list[Any]) -> None:
        bound = {entry._requested_address: entry.socket for entry in listeners if hasattr(entry, "_requested_address")}
        super().__init__(list(map(_url, listeners)), bound, given=len(bound) < len(listeners), tls=False)
        self._sockets = sockets
        self._listeners = listeners

    def attach(self) -> None:
        self._sockets[self.loop.waker.fileno()] = _WakeChannel(self.loop)
        for listener in self._listeners:
            self._replacements.replace(listener, "channel_class", _channel_class(listener.channel_class, self))
        for connection, address in self.inherited_connections():
            self._take_in(self._listeners[0], connection, address)

    def detach(self) -> None:
        # Not shutdown(), which waits for threads that may be busy with a request that was cut.
        self._listeners[0].task_dispatcher.set_thread_count(0)
        wasyncore.close_all(self._sockets, ignore_all=True)

    def end_loop(self) -> None:
        raise wasyncore.ExitNow

    def listening(self) -> list[socket.socket]:
        # None once the loop, in another thread, has closed it.
        return [sock for listener in self._listeners if (sock := listener.socket) is not None]

    def idle(self) -> list[Any]:
        channels = [entry for entry in list(self._sockets.values()) if isinstance(entry, HTTPChannel)]
        return [channel for channel in channels if channel not in self.busy]

    def set_accepting(self, accept: bool) -> None:
        for listener in self._listeners:
            listener.accepting = accept

    def accept_waiting(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                while (accepted := listener.accept()) is not None:
                    self._take_in(listener, *accepted)

    def _take_in(self, listener: Any, connection: socket.socket, address: Any) -> None:
        listener.set_socket_options(connection)
        listener.channel_class(listener, connection, listener.fix_addr(address), listener.adj, map=self._sockets)

    def socket_of(self, channel: Any) -> socket.socket:
        sock: socket.socket = channel.socket
        return sock

    def close_connection(self, channel: Any) -> None:
        channel.handle_close()

    def give_up(self, channel: Any) -> int:
        channel.del_channel()
        return self.socket_of(channel).detach()


class _WakeChannel:
    """An entry among the loop's sockets by which other threads wake the loop."""

    accepting = False

    def __init__(self, loop: ServerLoop) -> None:
        self._loop = loop

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self._loop.waker.clear()
        self._loop.look()

    def close(self) -> None:
        """Called when the loop closes all its sockets; the waker is not the loop's."""


def _channel_class(base: Any, server: WaitressServer) -> Any:
    """A channel class that reports to `server` when its connections are busy, and when idle."""

    class Channel(base):  # type: ignore[misc]
        task_class = _task_class(base.task_class, server)

        def received(self, data: bytes) -> bool:
            if self not in server.busy:
                server.busy.begin(self)
            received: bool = super().received(data)
            return received

        def handle_read(self) -> None:
            # The loop may have seen that it is readable before the pause began.
            if self in server.busy or not server.loop.holding:
                super().handle_read()

        def readable(self) -> bool:
            # Called by the loop whenever it is about to wait.
            if self in server.busy and not _has_work(self):
                server.busy.done(self)
            return super().readable() and (self in server.busy or not server.loop.holding)

        def service(self) -> None:
            with server.busy.answering():
                super().service()

        def add_channel(self, map: Any = None) -> None:
            super().add_channel(map)
            server.loop.changed()

        def del_channel(self, map: Any = None) -> None:
            super().del_channel(map)
            server.busy.done(self)

    return Channel


def _task_class(base: Any, server: WaitressServer) -> Any:
    """A class of the answers that says when one is the last of its connection."""

    class Task(base):  # type: ignore[misc]
        def build_response_header(self) -> bytes:
            # What the client has sent behind this request would never be answered.
            if server.loop.closing and len(self.channel.requests) <= 1 and self.channel.request is None:
                self.request.headers["CONNECTION"] = "close"
            header: bytes = super().build_response_header()
            return header

    return Task


def _has_work(channel: Any) -> bool:
    """Whether a request has begun, or the client does not have all of the response; asked in the order of events."""
    return bool(
        channel.requests
        or channel.request is not None
        or channel.total_outbufs_len
        or channel.close_when_flushed
        or channel.will_close
    )


def _requested(server: Any) -> str:
    return requested(server.adj.unix_socket if isinstance(server, UnixWSGIServer) else server.sockinfo[3])


def _url(server: Any) -> str:
    host, port = server.effective_host, server.effective_port
    return url(port if isinstance(server, UnixWSGIServer) else (host, port))
