"""ZeroMQ: a ROUTER at ``ipc://`` or ``tcp://``, one JSON-RPC message a frame (RFC 23 and 28 of ZeroMQ).

The socket is bound by us, under the same rules as a Unix socket, and libzmq accepts at a duplicate of it (ZMQ_USE_FD).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...dispatch.guard import Guard
from ...dispatch.replies import ReplyTo
from ...system.addresses import Address
from ...system.sockets import close_copies
from ..base import Handler
from ..endpoint import BoundListener, Place
from ..reactor import Reactor
from ..stream import FLUSH_TIMEOUT
from .curve import KeyPair
from .router import Router
from .zap import Identity

MAX_BINDS = 16
"""Sockets that are bound again after their file was removed, before the descriptors of the earlier ones are closed."""


class ZmqListener(BoundListener):
    """Listens at one address of ZeroMQ, as the other transports do."""

    def __init__(
        self,
        address: Address,
        place: Place,
        identity: Identity,
        guard: Guard,
        curve: KeyPair | None = None,
    ) -> None:
        super().__init__(address, place, guard)
        self._identity = identity
        self._curve = curve
        self._router: Router | None = None

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        self._router = Router(self.endpoint, self._identity, self._guard, self._curve, reactor, handler)
        if self._socket is not None or self._restore():
            self._start(self._router)

    def tick(self) -> None:
        if self._router is None:
            return
        if not self._is_reached() and self._restore():
            self._rebind(self._router)
        if self._router.running and self._socket is not None:
            self._router.tick(self._socket)

    def detach(self) -> None:
        if self._router is not None:
            self._router.stop(0)
        self._router = None

    def flush(self, timeout: float) -> None:
        if self._router is not None:
            self._router.flush(timeout)

    def export_state(self) -> dict[str, Any] | None:
        if self._router is None or not self._router.running:
            return None
        state = self._export_socket(self._router.export_state())
        self._router.stop(FLUSH_TIMEOUT)
        return state

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        caller, self._caller = self._caller, None
        if caller is not None and self._router is not None:
            self._router.caller(caller).answer_caller(reply(caller["reply"]))

    def close(self) -> None:
        if self._router is not None:
            self._router.stop(FLUSH_TIMEOUT)
        super().close()

    def abandon(self) -> None:
        if self._router is not None:
            self._router.abandon()
        name = None if self._socket is None else self._socket.getsockname()
        super().abandon()
        if name is not None:
            close_copies(name)

    def _start(self, router: Router) -> None:
        assert self._socket is not None
        router.start(self._socket)
        if self._caller is not None:
            # Until its answer is known, what it sends has to wait.
            router.caller(self._caller)

    def _rebind(self, router: Router) -> None:
        assert self._socket is not None
        if router.running and router.binds < MAX_BINDS:
            router.bind(self._socket)
        else:
            router.stop(0)
            self._start(router)
