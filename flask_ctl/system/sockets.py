"""Socket options and queries that the socket module lacks."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import Any

from . import native
from .platform import LINUX

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27

_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP flags
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # if it is SYN alone
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # else let pass
)


def refuse_new_connections(listener: socket.socket) -> bool:
    """Have the kernel drop new connections to a listening TCP socket; whether it does. Those in the backlog stay.

    Closing a listener resets the connections made since the last accept(). With a filter that drops every SYN
    (socket(7), SO_ATTACH_FILTER) the backlog can be emptied first; later clients are refused once it is closed. A Unix
    socket is shut down for reading instead, which also keeps the backlog.
    """
    if not LINUX:
        return False
    try:
        if listener.family == socket.AF_UNIX:
            listener.shutdown(socket.SHUT_RD)
            return False
        code = array.array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN))
        program = struct.pack("HP", len(_DROP_SYN), code.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True


def welcome_connections(listener: socket.socket) -> None:
    """Undo `refuse_new_connections`, which a process that shares the socket may have left behind."""
    if LINUX:
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def waiting_connections(listener: socket.socket) -> int:
    """The number of connections in the backlog, 0 if unknown."""
    counts = backlog(listener)
    return 0 if counts is None else counts[0]


def backlog(listener: socket.socket) -> tuple[int, int] | None:
    """The number of connections in the backlog, and how many may be; None if unknown.

    Of a listening socket these are tcpi_unacked and tcpi_sacked of TCP_INFO, tcp(7).
    """
    if not LINUX or listener.family == socket.AF_UNIX:
        return None
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    except OSError:
        return None
    waiting, most = struct.unpack_from("II", info, 24)
    return waiting, most


def received_bytes(connection: socket.socket) -> int:
    """The bytes that a TCP connection has received, read or not: TCP_INFO, tcpi_bytes_received (Linux 4.1)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return int(struct.unpack_from("Q", info, 128)[0]) if len(info) == 136 else 0


def unread_bytes(connection: socket.socket) -> int:
    """The bytes that have been received and not read: ioctl_tty(2), FIONREAD."""
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
    return count[0]


def duplicate_socket(descriptor: int) -> socket.socket:
    """A socket object on a duplicate of the descriptor. Raises OSError, with nothing left open, for another file."""
    duplicate = os.dup(descriptor)
    try:
        return native.socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def is_named(sock: socket.socket, listener: Any) -> bool:
    """Whether a socket is the listener with this getsockname(2), or was accepted by it."""
    name = sock.getsockname()
    if sock.family == getattr(socket, "AF_UNIX", None) or not isinstance(name, tuple):
        return bool(name == listener)
    if not isinstance(listener, tuple) or sock.type != socket.SOCK_STREAM:
        return False
    # A listener at the wildcard address accepts at a specific one.
    return bool(name[1] == listener[1]) and listener[0] in (name[0], "0.0.0.0", "::")


def close_copies(listener: Any) -> None:
    """In a forked child: close every socket of the parent's listener and its connections, by getsockname(2)."""
    if not LINUX:
        return
    for number in map(int, os.listdir("/proc/self/fd")):
        # Raised for other files.
        with contextlib.suppress(OSError), duplicate_socket(number) as sock:
            if is_named(sock, listener):
                os.close(number)
