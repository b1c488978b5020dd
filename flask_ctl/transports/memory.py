"""A transport without files, for tests: `connect` gives the client's end."""

from __future__ import annotations

import collections
import socket
from collections.abc import Callable
from typing import Any

from ..dispatch.guard import Guard
from ..dispatch.peer import this_process
from ..dispatch.replies import ReplyTo
from ..system.waiting import Waker
from .base import Handler
from .reactor import READ, Reactor
from .stream import StreamServer


class MemoryListener:
    """Listens inside this process; every peer is the process itself."""

    endpoint = "memory"
    connects_out = False

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._waker = Waker()
        self._accepted: collections.deque[socket.socket] = collections.deque()
        self._server: StreamServer | None = None

    def connect(self) -> socket.socket:
        """The client's end of a new connection; the caller closes it."""
        client, server = socket.socketpair()
        self._accepted.append(server)
        self._waker.wake()
        return client

    def check(self) -> None:
        """Nothing to check: only this process can reach it."""

    def open(self) -> None:
        """Nothing has to be bound."""

    def renew_access(self) -> None:
        """There is no file."""

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        self._server = StreamServer(reactor, handler, self._guard)
        reactor.register(self._waker, READ, self._accept)
        self._accept()

    def tick(self) -> None:
        if self._server is not None:
            self._server.tick()

    def detach(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def flush(self, timeout: float) -> None:
        if self._server is not None:
            self._server.flush(timeout)

    def export_state(self) -> dict[str, Any] | None:
        if self._server is not None:
            self._server.export_state()
        return None

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        """No caller is left over: its peers end with this image."""

    def close(self) -> None:
        self.detach()
        self._waker.close()
        while self._accepted:
            self._accepted.pop().close()

    def abandon(self) -> None:
        if self._server is not None:
            self._server.abandon()
        self._waker.close()

    def _accept(self, _events: int = READ) -> None:
        self._waker.clear()
        while self._accepted and self._server is not None:
            self._server.add(self._accepted.popleft(), this_process())
