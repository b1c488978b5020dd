"""What an adapter does to the sockets and to the loop of its server; `ServerLoop` says when."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator
from typing import Any

from ..system.handover import inherited
from ..system.native import socket


class LoopHooks(abc.ABC):
    """What differs between servers. The loop's thread calls all methods but `socket_of`."""

    @abc.abstractmethod
    def attach(self) -> None:
        """Make the server report its connections, its loop wait for the waker, and take `inherited_connections`.

        `threads` bounds the requests to answer at once where the server has no such bound of its own.
        """

    @abc.abstractmethod
    def detach(self) -> None:
        """The loop has ended: close the sockets, and have threads end."""

    @abc.abstractmethod
    def end_loop(self) -> None:
        """Let the loop return, or raise what ends it."""

    @abc.abstractmethod
    def listening(self) -> list[socket.socket]:
        """The listening sockets."""

    @abc.abstractmethod
    def idle(self) -> Collection[Any]:
        """The connections that are not busy."""

    @abc.abstractmethod
    def set_accepting(self, accept: bool) -> None:
        """Accept no connection until further notice, or accept them again."""

    def set_reading(self, read: bool) -> None:  # noqa: B027
        """Read no idle connection until further notice, or read them again; `holding` of the loop tells, too."""

    @abc.abstractmethod
    def accept_waiting(self) -> None:
        """Accept the connections that wait in the backlog."""

    @abc.abstractmethod
    def socket_of(self, connection: Any) -> socket.socket:
        """The socket of a connection."""

    @abc.abstractmethod
    def close_connection(self, connection: Any) -> None:
        """Close an idle connection."""

    @abc.abstractmethod
    def give_up(self, connection: Any) -> int:
        """The descriptor of an idle connection, which the server forgets without closing it."""

    @staticmethod
    def inherited_connections() -> Iterator[tuple[socket.socket, Any]]:
        """The connections that the previous image has left, with the addresses of their peers."""
        for connection in inherited.take_parked():
            try:
                yield connection, connection.getpeername()
            except OSError:
                connection.close()


class Replacements:
    """Attributes of a server that are replaced while it is under control."""

    _MISSING = object()

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set the attribute until `put_back`."""
        self._replaced.append((owner, name, vars(owner).get(name, self._MISSING)))
        setattr(owner, name, value)

    def put_back(self) -> None:
        """Restore what was there before."""
        while self._replaced:
            owner, name, previous = self._replaced.pop()
            if previous is not self._MISSING:
                setattr(owner, name, previous)
            elif name in vars(owner):
                delattr(owner, name)
