"""The ROUTER of one control socket, with everything of libzmq's that belongs to it."""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from ...dispatch.guard import Guard
from ...dispatch.peer import Peer
from ...protocol.framing import MAX_FRAME
from ...system.at_exit import is_leaving
from ...system.native import socket
from ...system.reserve import reserve
from ...system.waiting import wait_readable
from ..base import Handler
from ..reactor import READ, Reactor
from ..stream import FLUSH_TIMEOUT
from .curve import KeyPair
from .limits import AcceptedConnections
from .session import Sent, ZmqClient
from .turns import Turns
from .zap import DOMAIN, Authenticator, Identity

TURN = 0.0001
"""Seconds of one turn, in which at least one message is received or sent; then other sockets are served."""

MAX_EXCHANGES = 64
"""Rounds of receiving and sending in one turn."""

HELD = 512 * 1024
"""Bytes held for all clients together: of messages that wait to be handled, and again of unread answers."""

QUEUED = 4
"""Messages in libzmq's queue to or from one peer, up to MAX_FRAME each; more waits here, where it is bounded."""

CLIENT_DESCRIPTORS = 4
"""Descriptors per client: it makes two connections, and each of these is duplicated."""

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for a peer's handshake; a silent peer occupies a connection for so long."""

KEEPALIVE = 60
"""Seconds of silence after which the kernel looks whether a peer over TCP is still there."""

# Plain numbers: libzmq's own are enums, which cost more than the calls.
_EVENTS, _POLLIN, _FIRST = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK | zmq.SNDMORE)

_abandoned: list[object] = []


class Router:
    """The clients at one listening socket, from `start` to `stop`, and again; they outlive a restart.

    `endpoint` is the address for log records.
    """

    def __init__(
        self, endpoint: str, identity: Identity, guard: Guard, curve: KeyPair | None, reactor: Reactor, handler: Handler
    ) -> None:
        self.clients: dict[tuple[bytes, Peer], ZmqClient] = {}
        self.binds = 0
        self._endpoint = endpoint
        self._identity = identity
        self._guard = guard
        self._curve = curve
        self._reactor = reactor
        self._handler = handler
        # In the order in which they have their turn.
        self._blocked: dict[ZmqClient, None] = {}
        self._exporting = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    @property
    def running(self) -> bool:
        """Whether it is between `start` and `stop`."""
        return self._context is not None

    def start(self, listener: socket.socket) -> None:
        """Serve the connections to a listening socket, of which libzmq gets a duplicate."""
        self.binds = 0
        self._context = zmq.Context()
        self._authenticator = Authenticator(self._context, self._identity, self._may_connect)
        self._router = self._context.socket(zmq.ROUTER)
        self._configure(listener)
        self._turns = Turns(self._reactor, self._router, lambda: self._exchange(time.monotonic() + TURN))
        self._accepted = AcceptedConnections(
            self._router,
            listener.getsockname(),
            self._guard.limits.connections,
            busy=lambda: {client.descriptor for client in self.clients.values() if not client.finished},
        )
        self.bind(listener)
        self._reactor.register(self._authenticator.socket, READ, self._authenticate)
        self._reactor.register(self._accepted.monitor, READ, self._note_connections)
        self._turns.begin()
        # Their descriptors tell of changes only: what has come before is looked for once.
        for look in (self._authenticate, self._note_connections, self._turns.take):
            self._reactor.call_soon(look)

    def bind(self, listener: socket.socket) -> None:
        """Accept at another socket, too: to give up the one before it would end the connections made there."""
        # libzmq closes what it is given.
        self._router.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))
        self._router.bind(_endpoint_name(listener.getsockname()))
        self.binds += 1

    def tick(self, listener: socket.socket) -> None:
        """Called now and then: drop overdue clients, and make room for connections that wait at the `listener`."""
        if wait_readable([listener.fileno()], 0):
            # libzmq does not report that it has no descriptors to accept a connection.
            for _ in range(CLIENT_DESCRIPTORS):
                reserve.give_up()
        else:
            reserve.fill()
        now = time.monotonic()
        for client in self.clients.values():
            client.expire(now)
        for key in [key for key, client in self.clients.items() if client.finished]:
            del self.clients[key]
        self._turns.take()

    def flush(self, timeout: float) -> None:
        """Wait, for so many seconds at most, until the peers have what was written for them."""
        deadline = time.monotonic() + timeout
        while self.running and self._blocked and time.monotonic() < deadline:
            wait_readable([self._router.fileno()], deadline - time.monotonic())
            self._turns.take()

    def export_state(self) -> dict[str, Any] | None:
        """The caller of the reload, if it is here; the other clients get -32006 for what was not answered."""
        # What is accepted from now on would be missing from the state for the next image.
        self._exporting = True
        for client in self.clients.values():
            client.reject_unanswered()
        self.flush(FLUSH_TIMEOUT)
        callers = [state for client in self.clients.values() if (state := client.export_state()) is not None]
        return callers[0] if callers else None

    def caller(self, state: dict[str, Any]) -> ZmqClient:
        """The caller of the reload, which the previous image has left; it connects again."""
        return self._client(bytes.fromhex(state["routing_id"]), Peer.from_dict(state["peer"]), away=True)

    def stop(self, linger: float) -> None:
        """Close everything of libzmq's, within about `linger` seconds; more than once is fine."""
        context, self._context = self._context, None
        if context is None:
            return
        self._blocked.clear()
        self._turns.end()
        for sock in (self._authenticator.socket, self._accepted.monitor):
            self._reactor.unregister(sock)
        self._router.disable_monitor()
        self._router.close(int(linger * 1000))
        for sock in (self._authenticator.socket, self._accepted.monitor):
            sock.close(0)
        if is_leaving():
            self._accepted.leave()
        else:
            self._accepted.close()
        # Every socket is closed, so it waits for nothing but what lingers.
        context.term()

    def abandon(self) -> None:
        """In a forked child, which lacks libzmq's threads: close the duplicates, call nothing of libzmq."""
        _abandoned.append(self.__dict__.copy())
        if self.running:
            self._accepted.close()
        self._context = None

    def _configure(self, listener: socket.socket) -> None:
        router = self._router
        router.linger = 0
        router.router_mandatory = True
        router.maxmsgsize = MAX_FRAME
        router.rcvhwm = router.sndhwm = QUEUED
        router.handshake_ivl = int(HANDSHAKE_TIMEOUT * 1000)
        router.tcp_keepalive, router.tcp_keepalive_idle = 1, KEEPALIVE
        router.tcp_keepalive_intvl, router.tcp_keepalive_cnt = KEEPALIVE // 4, 4
        router.ipv6 = listener.family == socket.AF_INET6
        router.zap_domain = DOMAIN
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if self._curve is not None:
            router.curve_server = True
            router.curve_secretkey = self._curve.secret

    def _authenticate(self, _events: int = READ) -> None:
        if self.running and self._authenticator.answer():
            self._reactor.call_soon(self._authenticate)

    def _note_connections(self, _events: int = READ) -> None:
        if self.running and self._accepted.note():
            self._reactor.call_soon(self._note_connections)

    def _exchange(self, end: float) -> bool:
        """Receive and send what is possible until `end`; whether there is more."""
        in_vain = 0
        for _ in range(MAX_EXCHANGES):
            if self._receive_some(end):
                return True
            if not self._blocked:
                return False
            # To look for the one may swallow libzmq's sign of the other: only what stays so is so.
            in_vain = 0 if self._send_rest(end) else in_vain + 1
            if in_vain == 2:
                return False
        return True

    def _receive_some(self, end: float) -> bool:
        """Take in messages until `end`, and at least one; whether there are more."""
        router = self._router
        while int(router.get(_EVENTS)) & _POLLIN:
            routing_id = router.recv(zmq.NOBLOCK)
            frame = router.recv(zmq.NOBLOCK, copy=False)
            whole = not frame.more
            if not whole:
                router.recv_multipart(zmq.NOBLOCK, copy=False)
            self._receive(routing_id, frame, whole=whole)
            if time.monotonic() > end:
                return True
        return False

    def _receive(self, routing_id: bytes, frame: zmq.Frame, *, whole: bool) -> None:
        peer = self._identity.peer(_property(frame, "Peer-Address"), _property(frame, "User-Id"))
        client = self._client(routing_id, peer)
        client.descriptor = int(frame.get(zmq.SRCFD))
        self._accepted.heard(client.descriptor, self._guard.policy.role_of(peer))
        if not whole:
            client.refuse("a message is one frame")
        elif self._exporting:
            client.reject(frame.bytes)
        else:
            client.take(frame.bytes)

    def _client(self, routing_id: bytes, peer: Peer, *, away: bool = False) -> ZmqClient:
        key = (routing_id, peer)
        client = self.clients.get(key)
        if client is None:
            client = ZmqClient(
                routing_id,
                peer,
                self._reactor,
                self._handler,
                self._guard.limits.pending,
                self._send,
                share=lambda: HELD // max(1, len(self.clients)),
                away=away,
            )
            self.clients[key] = client
        return client

    def _send(self, client: ZmqClient, message: bytes) -> Sent:
        if not self.running:
            return "gone"
        self._turns.soon()
        try:
            self._router.send(client.routing_id, _FIRST)
            self._router.send(message, zmq.NOBLOCK)
        except zmq.Again:
            self._blocked[client] = None
            return "blocked"
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return "gone"
            raise
        return "sent"

    def _send_rest(self, end: float) -> bool:
        """Send what had been blocked, until `end`; whether something went, or is still to be tried."""
        for client in tuple(self._blocked):
            # A client that stays blocked has its next turn after all others.
            self._blocked.pop(client, None)
            went = client.send_rest()
            if went or time.monotonic() > end:
                return True
        return False

    def _may_connect(self, peer: Peer, description: str) -> bool:
        if self._guard.policy.role_of(peer) is not None:
            return True
        self._guard.reject(peer, f"{description} may not connect to {self._endpoint}")
        return False


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def _endpoint_name(name: Any) -> str:
    """A bound socket's name in libzmq's words."""
    if isinstance(name, (str, bytes)):
        return f"ipc://{os.fsdecode(name)}"
    return f"tcp://[{name[0]}]:{name[1]}" if ":" in name[0] else f"tcp://{name[0]}:{name[1]}"
