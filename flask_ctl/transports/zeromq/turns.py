"""How often a ROUTER is served: in short turns, so that the other sockets have theirs, and a flood costs little."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from ..reactor import READ, Reactor

TURNS_IN_A_ROW = 500
"""Full turns without a rest; every further one comes after REST."""

REST = 0.001
"""Seconds between full turns, so that a flood costs at most a quarter of a processor."""


class Turns:
    """Calls `exchange` when the socket may be ready, until it says that nothing is left, from `begin` to `end`."""

    def __init__(self, reactor: Reactor, sock: zmq.Socket[bytes], exchange: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._socket = sock
        self._exchange = exchange
        self._taking = False
        self._due = False
        self._full = 0
        self._resting = False
        self._ended = False

    def begin(self) -> None:
        """Serve the socket from now on."""
        self._reactor.register(self._socket, READ, lambda _events: self.take())

    def end(self) -> None:
        """Serve it no more."""
        self._ended = True
        self._reactor.unregister(self._socket)

    def take(self) -> None:
        """Take a turn now, and if that is not enough, ask for the next one."""
        if self._ended or self._taking:
            return
        self._taking = True
        try:
            more = self._exchange()
        finally:
            self._taking = False
        self._full = self._full + 1 if more else 0
        if self._full > TURNS_IN_A_ROW:
            self._rest()
        elif more:
            self.soon()

    def soon(self) -> None:
        """Take a turn in the reactor's next round, unless one is being taken."""
        if not (self._taking or self._due or self._resting):
            self._due = True
            self._reactor.call_soon(self._next)

    def _next(self) -> None:
        self._due = False
        if not self._resting:
            self.take()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._reactor.unregister(self._socket)
            self._reactor.call_later(REST, self._end_rest)

    def _end_rest(self) -> None:
        self._resting = False
        if not self._ended:
            self.begin()
            self.take()
