"""The connections that libzmq has accepted at one socket: a bounded number of them.

libzmq accepts without bound, and reports connections only by its monitor. A duplicate of each descriptor is held here,
so that the connection that is closed is certainly the intended one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Set
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from ...dispatch.commands import Role
from ...system.native import socket
from ...system.sockets import duplicate_socket, is_named
from ..stream import OUT_OF_RESOURCES, SHARES

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_MONITOR = "inproc://flask-ctl-monitor"

TURN = 64
"""Events that are read before the reactor goes on."""

UNHEARD_SHARE = 4
"""Divisor: when all places are taken, connections without a message keep this share of them."""


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = time.monotonic()
        self.role: Role | None = None


class AcceptedConnections:
    """Ends connections when there are more than `limit`, or more observers and inspectors than their share.

    The connection idle longest is closed: first an observer's, or one without a message where there are many of these.
    `name` is what getsockname(2) gives for the listener, `busy` the descriptors of clients that wait for an answer.
    """

    def __init__(self, router: zmq.Socket[bytes], name: Any, limit: int, busy: Callable[[], Set[int]]) -> None:
        router.monitor(_MONITOR, _EVENTS)
        self.monitor = router.context.socket(zmq.PAIR)
        self.monitor.linger = 0
        # Without a bound: libzmq's thread waits for room with a lock held that is needed to close the router.
        self.monitor.rcvhwm = 0
        self.monitor.connect(_MONITOR)
        self._name = name
        self._limit = limit
        self._busy = busy
        self._connections: dict[int, _Connection] = {}

    def note(self) -> bool:
        """Take in what libzmq tells, TURN events at most; whether there may be more."""
        for _ in range(TURN):
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return False
            descriptor = event["value"]
            self._forget(descriptor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._add(descriptor)
        return True

    def heard(self, descriptor: int, role: Role | None) -> None:
        """A message has come over the connection with this descriptor, from a peer with that role."""
        if descriptor not in self._connections:
            # The message may come before the event of its connection, which would count as silent.
            self.note()
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.heard = time.monotonic()
            if role != connection.role:
                connection.role = role
                self._make_room()

    def leave(self) -> None:
        """Keep them open until the process has ended, so that their end proves its end."""
        for connection in self._connections.values():
            connection.sock.detach()
        self._connections.clear()

    def close(self) -> None:
        """Let go of all of them; they end when libzmq's own descriptors are closed, too."""
        for descriptor in list(self._connections):
            self._forget(descriptor)

    def _add(self, descriptor: int) -> None:
        try:
            sock = duplicate_socket(descriptor)
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                self._end_unheld(descriptor)
            return
        # By now the number may be another descriptor's, but never another one's with our name.
        with contextlib.suppress(OSError):
            if is_named(sock, self._name):
                self._connections[descriptor] = _Connection(sock)
                self._make_room()
                return
        sock.close()

    def _end_unheld(self, descriptor: int) -> None:
        """End a connection whose descriptor can't be duplicated: the whole process is short of descriptors."""
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=descriptor)
            try:
                if is_named(sock, self._name):
                    sock.shutdown(socket.SHUT_RDWR)
            finally:
                sock.detach()

    def _make_room(self) -> None:
        surplus = self._surplus()
        if surplus is not None:
            with contextlib.suppress(OSError):
                self._connections[surplus].sock.shutdown(socket.SHUT_RDWR)
            self._forget(surplus)

    def _surplus(self) -> int | None:
        """The connection that has to give way, None if there is room for all."""
        unheard, observing = self._having(None), self._having("observe", "inspect")
        if len(observing) > max(1, self._limit // SHARES["observe"]):
            return next(iter(self._idle(observing)), observing[-1])
        if len(self._connections) <= self._limit:
            return None
        if len(unheard) > max(1, self._limit // UNHEARD_SHARE):
            return unheard[0]
        idle = self._idle(observing) or self._idle(self._having("operate")) or unheard
        return next(iter(idle), None)

    def _having(self, *roles: Role | None) -> list[int]:
        """Those with one of the roles, the one first that has been silent longest."""
        having = [number for number, connection in self._connections.items() if connection.role in roles]
        return sorted(having, key=lambda number: self._connections[number].heard)

    def _idle(self, numbers: list[int]) -> list[int]:
        busy = self._busy()
        return [number for number in numbers if number not in busy]

    def _forget(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor, None)
        if connection is not None:
            connection.sock.close()
