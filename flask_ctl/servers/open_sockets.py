"""The sockets of this process, from /proc/self/fd, for servers that do not show theirs to Python."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator

from ..system.native import socket
from ..system.sockets import duplicate_socket, received_bytes, unread_bytes


def listening() -> Iterator[socket.socket]:
    """The stream sockets at which this process listens, each closed again when the next one is asked for."""
    return _sockets(lambda sock: bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))


def begun_connections(ports: Collection[int]) -> int:
    """How many connections that were accepted at these TCP ports have sent a byte, and are still open."""
    return sum(received_bytes(sock) > 0 for sock in _accepted(ports))


def silent_connections(ports: Collection[int]) -> int:
    """How many connections that were accepted at these TCP ports have not sent a byte."""
    return sum(not received_bytes(sock) for sock in _accepted(ports))


def unread_connections(ports: Collection[int]) -> int:
    """How many connections that were accepted at these TCP ports have sent nothing, or bytes that are still unread."""
    return sum(not received_bytes(sock) or unread_bytes(sock) > 0 for sock in _accepted(ports))


def end_silent_connections(ports: Collection[int]) -> None:
    """Shut down the connections, accepted at these TCP ports, that have not sent a byte; the server reads their end."""
    for sock in _accepted(ports):
        if not received_bytes(sock):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _accepted(ports: Collection[int]) -> Iterator[socket.socket]:
    def is_accepted(sock: socket.socket) -> bool:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[1] not in ports:
            return False
        return not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    return _sockets(is_accepted)


def _sockets(wanted: Callable[[socket.socket], bool]) -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        # Another thread may close any of them at any time.
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with duplicate_socket(int(name)) as sock:
                if sock.type == socket.SOCK_STREAM and wanted(sock):
                    yield sock
