"""The clients of a listening stream socket, shared by the transports that have one."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from ..access import Peer
from ..commands import Role
from ..guard import Guard
from ..reactor import READ, Reactor
from . import Handler
from .connection import Connection

SHARES: dict[Role | None, int] = {"operate": 1, "observe": 2, None: 16}
"""One part in so many of the connections for those of each role, so that they can't lock out those who may do more."""

FLUSH_TIMEOUT = 1.0
"""Seconds that the end of the server waits for clients to read their last answer."""

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class StreamServer:
    """Accepts connections at a listening socket, as many as the guard's limits say.

    Over that the one that has been idle longest makes room.
    """

    def __init__(self, reactor: Reactor, handler: Handler, guard: Guard) -> None:
        self._reactor = reactor
        self._handler = handler
        self._guard = guard
        self._connections: dict[Connection, Role | None] = {}
        self._paused: list[tuple[socket.socket, Callable[[int], None]]] = []

    def listen(self, listener: socket.socket, identify: Callable[[socket.socket], Peer]) -> None:
        """Accept whoever connects to `listener`; `identify` names the peer."""

        def on_ready(_events: int) -> None:
            try:
                sock = listener.accept()[0]
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._drop_the_gone()
                # The listener stays ready for as long as there are no descriptors: look again at the next tick.
                self._reactor.unregister(listener)
                self._paused.append((listener, on_ready))
                return
            self.add(sock, identify(sock))

        self._reactor.register(listener, READ, on_ready)

    def add(self, sock: socket.socket, peer: Peer) -> Connection | None:
        """Serve a connected socket; None, and closed, if there is no room."""
        role, limits = self._guard.policy.role_of(peer), self._guard.limits
        share = max(1, limits.connections // SHARES[role])
        if not (self._has_room({role}, share) and self._has_room(set(SHARES), limits.connections)):
            sock.close()
            return None
        connection = Connection(sock, peer, self._reactor, self._handler, self._connections.pop, limits.pending)
        self._connections[connection] = role
        return connection

    def tick(self) -> None:
        now = time.monotonic()
        for connection in tuple(self._connections):
            connection.expire(now)
        while self._paused:
            listener, on_ready = self._paused.pop()
            self._reactor.register(listener, READ, on_ready)

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for connection in tuple(self._connections):
            connection.flush(deadline)

    def hand_over(self) -> list[dict[str, Any]]:
        """The clients to whom the next image owes something; the others get what is written for them."""
        self.flush(FLUSH_TIMEOUT)
        left = [connection.hand_over() for connection in tuple(self._connections)]
        return [client for client in left if client is not None]

    def close(self) -> None:
        for connection in tuple(self._connections):
            connection.close()

    def abandon(self) -> None:
        for connection in self._connections:
            connection.abandon()

    def _has_room(self, roles: set[Role | None], limit: int) -> bool:
        """Whether those roles have a place left, if need be that of their connection that has been idle longest."""
        if len(self._having(roles)) < limit:
            return True
        self._drop_the_gone()
        idle = [connection for connection in self._having(roles) if connection.idle_since is not None]
        if len(self._having(roles)) >= limit and idle:
            min(idle, key=lambda connection: connection.idle_since or 0.0).close()
        return len(self._having(roles)) < limit

    def _having(self, roles: set[Role | None]) -> list[Connection]:
        return [connection for connection, role in self._connections.items() if role in roles]

    def _drop_the_gone(self) -> None:
        for connection in [connection for connection in self._connections if connection.has_hung_up()]:
            connection.close()
