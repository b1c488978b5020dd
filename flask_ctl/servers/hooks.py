"""What an adapter has to do to the sockets and to the loop of its server, for `KeepAliveServer` to do the rest."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import Any

from ..system.handover import inherited
from ..system.native import socket

_NOTHING = object()


class Plumbing(abc.ABC):
    """The part of a server under control that differs; the loop's thread calls all but `_socket_of`."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    @abc.abstractmethod
    def _attach(self, threads: int | None) -> None:
        """Make the server tell of its connections, its loop wait for the waker, and take in `inherited_connections`.

        `threads` bounds the requests to answer at once, where the server has not been told before.
        """

    @abc.abstractmethod
    def _detach(self) -> None:
        """The loop has ended: close the sockets, have threads end."""

    @abc.abstractmethod
    def _end_loop(self) -> None:
        """Let the loop return, or raise what ends it."""

    @abc.abstractmethod
    def _listening(self) -> list[socket.socket]:
        """The listening sockets."""

    @abc.abstractmethod
    def _idle(self) -> Iterable[Any]:
        """The connections that are not busy."""

    @abc.abstractmethod
    def _hold(self, hold: bool) -> None:
        """Accept nobody for now, or accept again."""

    @abc.abstractmethod
    def _accept_waiting(self) -> None:
        """Accept whoever has connected already."""

    @abc.abstractmethod
    def _socket_of(self, connection: Any) -> socket.socket:
        """The socket of a connection."""

    @abc.abstractmethod
    def _close(self, connection: Any) -> None:
        """Close an idle connection."""

    @abc.abstractmethod
    def _give_up(self, connection: Any) -> int:
        """The descriptor of an idle connection, which the server forgets without closing it."""

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        """Give the server an attribute of ours until it ends."""
        self._replaced.append((owner, name, vars(owner).get(name, _NOTHING)))
        setattr(owner, name, value)

    def _put_back(self) -> None:
        while self._replaced:
            owner, name, former = self._replaced.pop()
            if former is not _NOTHING:
                setattr(owner, name, former)
            elif name in vars(owner):
                delattr(owner, name)

    @staticmethod
    def inherited_connections() -> Iterator[tuple[socket.socket, Any]]:
        """The connections that a former image has left, with the addresses of their peers."""
        for connection in inherited.take_parked():
            try:
                yield connection, connection.getpeername()
            except OSError:
                connection.close()
