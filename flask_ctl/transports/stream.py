"""The clients of a listening stream socket, shared by the transports that have one."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any

from ..dispatch.commands import Role
from ..dispatch.guard import Guard
from ..dispatch.peer import Peer
from ..system.native import socket
from ..system.reserve import reserve
from .base import Handler
from .connection import Connection
from .reactor import READ, Reactor

SHARES: dict[Role | None, int] = {"operate": 1, "inspect": 2, "observe": 2, None: 16}
"""Divisor of the connection limit per role: operators may use all of it, inspectors and observers half each,
unauthorized peers 1/16, so that a lower role cannot exhaust it."""

_RANKED = tuple(SHARES)

RETRY = 0.1
"""Seconds until accepting is tried again after the process has run out of descriptors."""

FLUSH_TIMEOUT = 1.0
"""Seconds that the end of the server waits for clients to read their last answer."""

OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

logger = logging.getLogger("flask_ctl")


class StreamServer:
    """Accepts connections at a listening socket, as many as the guard's limits say.

    Above the limit the connection that has been idle longest is closed.
    """

    def __init__(self, reactor: Reactor, handler: Handler, guard: Guard) -> None:
        self._reactor = reactor
        self._handler = handler
        self._guard = guard
        self._connections: dict[Connection, Role | None] = {}
        self._listening = False

    def listen(self, listener: socket.socket, identify: Callable[[socket.socket], Peer]) -> None:
        """Accept connections at `listener`; `identify` gives the peer of each."""

        def on_ready(_events: int) -> None:
            try:
                sock = listener.accept()[0]
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                self._drop_disconnected()
                if error.errno != errno.EMFILE or not reserve.give_up():
                    # The listener stays ready for as long as there are no descriptors.
                    self._reactor.unregister(listener)
                    self._reactor.call_later(RETRY, resume)
                return
            try:
                self.add(sock, identify(sock))
            except OSError as error:
                # One connection that can't be served must not cost the others theirs.
                sock.close()
                logger.warning("a connection for control is refused: %s", error)

        def resume() -> None:
            # Unless this server, or its listener, is closed by now.
            if self._listening and listener.fileno() >= 0:
                self._reactor.register(listener, READ, on_ready)

        self._listening = True
        self._reactor.register(listener, READ, on_ready)

    def add(self, sock: socket.socket, peer: Peer) -> Connection | None:
        """Serve a connected socket; None, and closed, if there is no room."""
        role = self._guard.policy.role_of(peer)
        if not self._make_room(role):
            sock.close()
            return None
        pending = self._guard.limits.pending
        connection = Connection(sock, peer, self._reactor, self._handler, self._forget, pending)
        self._connections[connection] = role
        return connection

    def tick(self) -> None:
        now = time.monotonic()
        for connection in tuple(self._connections):
            connection.expire(now)
        reserve.fill()

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for connection in tuple(self._connections):
            connection.flush(deadline)

    def export_state(self) -> dict[str, Any] | None:
        """The caller of the reload, if it is here; the other clients get -32006 for what was not answered."""
        for connection in tuple(self._connections):
            connection.reject_unanswered()
        self.flush(FLUSH_TIMEOUT)
        states = [connection.export_state() for connection in tuple(self._connections)]
        return next((state for state in states if state is not None), None)

    def close(self) -> None:
        self._listening = False
        for connection in tuple(self._connections):
            connection.close()

    def abandon(self) -> None:
        for connection in self._connections:
            connection.abandon()

    def _forget(self, connection: Connection) -> None:
        del self._connections[connection]
        reserve.fill()

    def _make_room(self, role: Role | None) -> bool:
        """Whether a peer of that role has a place, if need be that of an idle one of no higher role."""
        if self._is_full(role):
            self._drop_disconnected()
        if self._is_full(role):
            no_higher = set(_RANKED[_RANKED.index(role) :])
            self._drop_idle({role} if role != "operate" and self._share_is_full(role) else no_higher)
        return not self._is_full(role)

    def _is_full(self, role: Role | None) -> bool:
        return len(self._connections) >= self._guard.limits.connections or self._share_is_full(role)

    def _share_is_full(self, role: Role | None) -> bool:
        alike = sum(other == role for other in self._connections.values())
        return alike >= max(1, self._guard.limits.connections // SHARES[role])

    def _drop_idle(self, roles: set[Role | None]) -> None:
        having = [connection for connection, role in self._connections.items() if role in roles]
        idle = [connection for connection in having if connection.idle_since is not None]
        if idle:
            min(idle, key=lambda connection: connection.idle_since or 0.0).close()

    def _drop_disconnected(self) -> None:
        for connection in [connection for connection in self._connections if connection.has_hung_up()]:
            connection.close()
