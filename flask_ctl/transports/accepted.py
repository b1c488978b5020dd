"""The connections that libzmq has accepted at one socket: a bounded number of them.

libzmq accepts without bound and tells only by its monitor. A duplicate of each descriptor is held here, so that one
that is ended is the one that was meant.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Set
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..system import duplicate_socket, is_named

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.since = time.monotonic()
        self.operates = False
        self.heard = 0.0
        self.ended = False

    def rank(self) -> tuple[bool, float, float]:
        """The lower, the sooner it gives way: to those who operate, then to those who have been heard of later."""
        return self.operates, self.heard, self.since


class AcceptedConnections:
    """Ends connections when there are more than `limit`: of those who only observe first, of these the most silent.

    `name` is what getsockname(2) gives for the listener, `busy` the descriptors of those that wait for an answer.
    """

    def __init__(self, router: zmq.Socket[bytes], name: Any, limit: int, busy: Callable[[], Set[int]]) -> None:
        self.monitor = router.get_monitor_socket(_EVENTS, addr="inproc://flask-ctl-monitor")
        self.monitor.linger = 0
        self._name = name
        self._limit = limit
        self._busy = busy
        self._connections: dict[int, _Connection] = {}

    def note(self, _events: int = 0) -> None:
        """Take in what libzmq tells."""
        while True:
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            descriptor = event["value"]
            self._forget(descriptor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._add(descriptor)

    def heard(self, descriptor: int, *, operates: bool) -> None:
        """A message has come over the connection with this descriptor, from a peer that may operate or only observe."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.operates = operates
            connection.heard = time.monotonic()

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
        except OSError:
            return
        # By now the number may be another descriptor's, but never another one's with our name.
        with contextlib.suppress(OSError):
            if is_named(sock, self._name):
                self._connections[descriptor] = _Connection(sock)
                self._make_room()
                return
        sock.close()

    def _make_room(self) -> None:
        alive = {number: connection for number, connection in self._connections.items() if not connection.ended}
        busy = self._busy() if len(alive) > self._limit else frozenset()
        idle = sorted(alive.keys() - busy, key=lambda number: alive[number].rank())
        for number in idle[: max(0, len(alive) - self._limit)]:
            connection = alive[number]
            connection.ended = True
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _forget(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor, None)
        if connection is not None:
            connection.sock.close()
