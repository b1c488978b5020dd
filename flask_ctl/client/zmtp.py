"""The greeting of a ZeroMQ server, which names its security mechanism (ZMTP 3.1, RFC 37 of ZeroMQ)."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from ..errors import NotRunning, RemoteProtocolError, TimedOut
from ..system.addresses import Address, resolve

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = b"\x03\x00"
_LENGTH = 64

OWN_ACCORD = 0.1
"""Seconds for a ZeroMQ server on this machine to send its greeting unasked."""


def mechanism_of(address: Address, deadline: float | None) -> str:
    """The security mechanism of the server at a ``tcp`` address: ``NULL``, ``CURVE``, ``PLAIN``.

    Raises NotRunning if nothing listens, TimedOut without a greeting before `deadline` (on the monotonic clock),
    RemoteProtocolError for another protocol's greeting.
    """
    try:
        with _connect(address, deadline) as sock:
            greeting = _exchange(sock, deadline)
    except TimeoutError:
        raise TimedOut(f"{address} accepts connections, but does not answer; it is still there") from None
    except (ConnectionResetError, BrokenPipeError):
        raise _unfriendly(address) from None
    except OSError as error:
        raise NotRunning(
            f"nothing is running at {address}: {error.strerror or error}", {"tried": [str(address)]}
        ) from None
    if not greeting:
        raise _unfriendly(address)
    if len(greeting) < _LENGTH or greeting[:1] != b"\xff" or greeting[9:10] != b"\x7f":
        raise RemoteProtocolError(f"what listens at {address} does not speak ZeroMQ")
    return greeting[12:32].rstrip(b"\0").decode("ascii", "replace")


def first_words(sock: socket.socket, deadline: float) -> bytes:
    """The first bytes of a server: unasked, as from ZeroMQ, or in answer to a `ping` of our protocol; else empty.

    `deadline` is on the monotonic clock. Raises OSError where the connection breaks.
    """
    for question in (b"", b'{"jsonrpc":"2.0","method":"ping","id":1}\n'):
        left = _left(deadline)
        sock.settimeout(left if question else min(left or OWN_ACCORD, OWN_ACCORD))
        with suppress(TimeoutError):
            sock.sendall(question)
            return sock.recv(_LENGTH)
    return b""


def _unfriendly(address: Address) -> RemoteProtocolError:
    return RemoteProtocolError(f"what listens at {address} ends every connection")


def _connect(address: Address, deadline: float | None) -> socket.socket:
    family, sockaddr = resolve(address)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(_left(deadline))
        sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _exchange(sock: socket.socket, deadline: float | None) -> bytes:
    try:
        # Not more than this: a whole greeting of ours would be answered by the end of the connection. The ends of
        # lines are for servers of other protocols, who say nothing before they have one.
        sock.sendall(_SIGNATURE + _VERSION + b"\r\n\r\n")
        return _receive(sock, deadline)
    except ConnectionError:
        return b""


def _receive(sock: socket.socket, deadline: float | None) -> bytes:
    greeting = b""
    while len(greeting) < _LENGTH:
        sock.settimeout(_left(deadline))
        data = sock.recv(_LENGTH - len(greeting))
        if not data:
            break
        greeting += data
    return greeting


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.01, deadline - time.monotonic())
