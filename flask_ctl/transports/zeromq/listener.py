"""ZeroMQ: a ROUTER at ``ipc://`` or ``tcp://``, one JSON-RPC message a frame (RFC 23 and 28 of ZeroMQ).

The socket is bound by us, under the same rules as a Unix socket, and libzmq accepts at a duplicate of it (ZMQ_USE_FD).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import zmq

from ...dispatch.guard import Guard
from ...dispatch.peer import Peer
from ...dispatch.replies import ReplyTo
from ...protocol.framing import MAX_FRAME
from ...system.addresses import Address
from ...system.at_exit import is_leaving
from ...system.reserve import reserve
from ...system.sockets import close_copies
from ...system.waiting import wait_readable
from ..base import Handler
from ..endpoint import Endpoint, Place
from ..reactor import READ, Reactor
from ..stream import FLUSH_TIMEOUT
from .curve import KeyPair
from .limits import AcceptedConnections
from .session import Sent, ZmqClient
from .zap import DOMAIN, Authenticator, Identity

MAX_EXCHANGES = 64
"""Times that libzmq is asked by turns what can be received and sent, before other sockets have their turn."""

TURN = 0.0001
"""Seconds for messages to be taken in and sent, and at least one of them, before other sockets have their turn."""

TURNS_IN_A_ROW = 500
"""Full turns without a rest. Who sends more than fits in these has every further one after REST."""

REST = 0.001
"""Seconds. So a flood costs a quarter of a processor at most, and the program and the other sockets have the rest."""

HELD = 512 * 1024
"""Bytes that are held for all clients together: what waits to be handled, and as much of answers they don't read."""

QUEUED = 4
"""Messages in libzmq's queue to or from one peer, up to MAX_FRAME each; more waits here, where it is bounded."""

CLIENT_DESCRIPTORS = 4
"""That a client costs: it makes two connections, and of each there is a duplicate."""

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for a peer to say who it is; who says nothing occupies a connection."""

KEEPALIVE = 60
"""Seconds of silence after which the kernel looks whether a peer over TCP is still there."""

MAX_BINDS = 16
"""Times that a removed file comes back before the descriptors of its former selves are closed."""

# Plain numbers: libzmq's own are enums, which cost more than the calls.
_EVENTS, _POLLIN, _FIRST = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK | zmq.SNDMORE)

_abandoned: list[object] = []


class ZmqListener:
    """Listens at one address of ZeroMQ, as the other transports do."""

    def __init__(
        self,
        address: Address,
        place: Place,
        identity: Identity,
        guard: Guard,
        curve: KeyPair | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, place)
        self._identity = identity
        self._guard = guard
        self._curve = curve
        self._clients: dict[tuple[bytes, Peer], ZmqClient] = {}
        # In the order in which they have their turn.
        self._blocked: dict[ZmqClient, None] = {}
        self._reactor: Reactor | None = None
        self._handler: Handler | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._binds = 0
        self._pumping = False
        self._pump_is_due = False
        self._full_turns = 0
        self._resting = False

    @property
    def endpoint(self) -> str:
        return str(self._endpoint.address)

    def check(self) -> None:
        self._endpoint.check()

    def open(self) -> None:
        self._endpoint.open()

    def renew_access(self) -> None:
        self._endpoint.admit(self._guard.policy.file_access())

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        self._reactor, self._handler = reactor, handler
        if self._endpoint.socket is not None or self._endpoint.restore():
            self._start()

    def tick(self) -> None:
        if not self._endpoint.tend() and self._endpoint.restore():
            self._rebind()
        if self._context is None:
            return
        self._make_room_to_accept()
        now = time.monotonic()
        for client in self._clients.values():
            client.expire(now)
        self._forget_finished()
        self._pump()

    def detach(self) -> None:
        self._clients.clear()
        self._stop(0)

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._context is not None and self._blocked and time.monotonic() < deadline:
            wait_readable([self._router.fileno()], deadline - time.monotonic())
            self._pump()

    def export_state(self) -> dict[str, Any] | None:
        if self._context is None:
            return None
        for client in self._clients.values():
            client.reject_unanswered()
        self.flush(FLUSH_TIMEOUT)
        callers = [state for client in self._clients.values() if (state := client.export_state()) is not None]
        state = self._endpoint.export_state(callers[0] if callers else None)
        self._stop(FLUSH_TIMEOUT)
        return state

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        caller, self._endpoint.caller = self._endpoint.caller, None
        if caller is not None:
            self._caller(caller).answer_caller(reply(caller["reply"]))

    def close(self) -> None:
        self._stop(FLUSH_TIMEOUT)
        self._endpoint.close()

    def abandon(self) -> None:
        # What libzmq has in this process belongs to threads that it does not have: nothing of it may be called.
        _abandoned.append(self.__dict__.copy())
        if self._context is not None:
            self._accepted.close()
        name = None if self._endpoint.socket is None else self._endpoint.socket.getsockname()
        self._endpoint.abandon()
        if name is not None:
            close_copies(name)
        self._context = None

    def _start(self) -> None:
        assert self._reactor is not None
        assert self._endpoint.socket is not None
        name = self._endpoint.socket.getsockname()
        self._binds = 0
        self._context = zmq.Context()
        self._authenticator = Authenticator(self._context, self._identity, self._admits)
        self._router = self._context.socket(zmq.ROUTER)
        self._configure()
        self._accepted = AcceptedConnections(self._router, name, self._guard.limits.connections, self._busy)
        self._bind()
        self._reactor.register(self._authenticator.socket, READ, self._authenticate)
        self._reactor.register(self._accepted.monitor, READ, self._note_connections)
        self._reactor.register(self._router, READ, self._on_readable)
        if self._endpoint.caller is not None:
            # Until its answer is known, what it sends has to wait.
            self._caller(self._endpoint.caller)
        # Their descriptors tell of changes only: what has come before is looked for once.
        for look in (self._authenticate, self._note_connections, self._pump):
            self._reactor.call_soon(look)

    def _make_room_to_accept(self) -> None:
        """Give up some of the reserve if libzmq leaves somebody waiting: it finds no descriptor, and does not tell."""
        assert self._endpoint.socket is not None
        if not wait_readable([self._endpoint.socket.fileno()], 0):
            reserve.fill()
            return
        for _ in range(CLIENT_DESCRIPTORS):
            reserve.give_up()

    def _bind(self) -> None:
        """Accept at our socket, too: to give up the one before it would end the connections that were made there."""
        assert self._endpoint.socket is not None
        # libzmq closes what it is given.
        self._router.setsockopt(zmq.USE_FD, os.dup(self._endpoint.socket.fileno()))
        self._router.bind(_endpoint_name(self._endpoint.socket.getsockname()))
        self._binds += 1

    def _rebind(self) -> None:
        if self._context is not None and self._binds < MAX_BINDS:
            self._bind()
        else:
            self._stop(0)
            self._start()

    def _configure(self) -> None:
        router = self._router
        router.linger = 0
        router.router_mandatory = True
        router.maxmsgsize = MAX_FRAME
        router.rcvhwm = router.sndhwm = QUEUED
        router.handshake_ivl = int(HANDSHAKE_TIMEOUT * 1000)
        router.tcp_keepalive, router.tcp_keepalive_idle = 1, KEEPALIVE
        router.tcp_keepalive_intvl, router.tcp_keepalive_cnt = KEEPALIVE // 4, 4
        router.ipv6 = ":" in self._endpoint.address.host
        router.zap_domain = DOMAIN
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if self._curve is not None:
            router.curve_server = True
            router.curve_secretkey = self._curve.secret

    def _stop(self, linger: float) -> None:
        """Close everything of libzmq's, within about `linger` seconds."""
        context, self._context = self._context, None
        if context is None:
            return
        self._blocked.clear()
        self._resting = False
        sockets = (self._router, self._authenticator.socket, self._accepted.monitor)
        if self._reactor is not None:
            for sock in sockets:
                self._reactor.unregister(sock)
        self._router.disable_monitor()
        self._router.close(int(linger * 1000))
        for sock in sockets[1:]:
            sock.close(0)
        if is_leaving():
            self._accepted.leave()
        else:
            self._accepted.close()
        # Every socket is closed, so it waits for nothing but what lingers.
        context.term()

    def _authenticate(self, _events: int = READ) -> None:
        if self._context is not None and self._authenticator.answer():
            self._reactor_of().call_soon(self._authenticate)

    def _note_connections(self, _events: int = READ) -> None:
        if self._context is not None and self._accepted.note():
            self._reactor_of().call_soon(self._note_connections)

    def _on_readable(self, _events: int) -> None:
        self._pump()

    def _pump(self) -> None:
        """Take in and send what goes in one turn; the rest in the next one."""
        if self._context is None or self._pumping:
            return
        self._pumping = True
        try:
            more = self._exchange(time.monotonic() + TURN)
        finally:
            self._pumping = False
        self._full_turns = self._full_turns + 1 if more else 0
        if self._full_turns > TURNS_IN_A_ROW:
            self._rest()
        elif more:
            self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pump_is_due and not self._resting:
            self._pump_is_due = True
            self._reactor_of().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._pump_is_due = False
        if not self._resting:
            self._pump()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._reactor_of().unregister(self._router)
            self._reactor_of().call_later(REST, self._end_rest)

    def _end_rest(self) -> None:
        if self._resting and self._context is not None:
            self._resting = False
            self._reactor_of().register(self._router, READ, self._on_readable)
            self._pump()

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
        if whole:
            client.take(frame.bytes)
        else:
            client.refuse("a message is one frame")

    def _client(self, routing_id: bytes, peer: Peer, *, away: bool = False) -> ZmqClient:
        key = (routing_id, peer)
        client = self._clients.get(key)
        if client is None:
            assert self._handler is not None
            reactor = self._reactor_of()
            pending = self._guard.limits.pending
            client = ZmqClient(routing_id, peer, reactor, self._handler, pending, self._send, self._share, away=away)
            self._clients[key] = client
        return client

    def _caller(self, state: dict[str, Any]) -> ZmqClient:
        """The caller of the reload, which the previous image has left; it connects again."""
        return self._client(bytes.fromhex(state["routing_id"]), Peer.from_dict(state["peer"]), away=True)

    def _share(self) -> int:
        """Bytes that may be held for one client."""
        return HELD // max(1, len(self._clients))

    def _send(self, client: ZmqClient, message: bytes) -> Sent:
        if self._context is None:
            return "gone"
        if not self._pumping:
            self._pump_soon()
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
            # Who stays blocked has the next turn after all the others.
            self._blocked.pop(client, None)
            went = client.send_rest()
            if went or time.monotonic() > end:
                return True
        return False

    def _forget_finished(self) -> None:
        for key in [key for key, client in self._clients.items() if client.finished]:
            del self._clients[key]

    def _reactor_of(self) -> Reactor:
        assert self._reactor is not None
        return self._reactor

    def _admits(self, peer: Peer, description: str) -> bool:
        if self._guard.policy.role_of(peer) is not None:
            return True
        self._guard.turn_away(peer, f"{description} may not connect to {self.endpoint}")
        return False

    def _busy(self) -> set[int]:
        return {client.descriptor for client in self._clients.values() if not client.finished}


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
