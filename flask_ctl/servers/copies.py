"""Copies of listening sockets, made before a reload commits, because nothing may fail after that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..system.native import socket
from ..system.sockets import duplicate_socket, waiting_connections


class ListenerCopies:
    """Copies of a server's listening sockets, by the addresses that were asked for."""

    def __init__(self, listeners: Mapping[str, Any]) -> None:
        self._listeners = listeners
        self._copies: dict[str, socket.socket] = {}

    @property
    def addresses(self) -> list[str]:
        """The addresses, as the program asked for them."""
        return list(self._listeners)

    def make(self) -> None:
        """Copy each socket. Raises OSError, and keeps no copy, if the process is out of descriptors."""
        try:
            for address, listener in self._listeners.items():
                self._copies[address] = duplicate_socket(listener.fileno())
        except OSError:
            self.discard()
            raise

    def discard(self) -> int:
        """Close the copies; returns the number of connections that wait there to be accepted."""
        waiting = 0
        for copy in self._copies.values():
            waiting += waiting_connections(copy)
            copy.close()
        self._copies = {}
        return waiting

    def detach(self) -> dict[str, int]:
        """The descriptors by address; the caller owns them from now on."""
        copies, self._copies = self._copies, {}
        return {address: copy.detach() for address, copy in copies.items()}
