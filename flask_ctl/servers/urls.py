"""The addresses of HTTP servers: how they are written, and whether new code could have them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ..system.preflight import end_if_preflighting, preflighting, served


def requested(address: Any) -> str:
    """The name under which a listening socket is left to the next image: what the program asked for, port 0 too."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else f"unix:{address}"


def url(address: Any, *, tls: bool = False) -> str:
    """A bound address, as `status` shows it."""
    if not isinstance(address, tuple):
        return f"unix://{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{'https' if tls else 'http'}://{host}:{address[1]}"


def end_rehearsal(check: Callable[[], Any], *addresses: Any) -> None:
    """In a preflight, the server is about to bind these addresses: bind those that are not served now, and end.

    Raises OSError where the server itself would find an address taken, and like `check`.
    """
    if preflighting:
        for address in addresses:
            if requested(address) not in served:
                try_to_bind(address)
        end_if_preflighting(check)


def try_to_bind(address: Any, *, shared: bool = False) -> None:
    """Bind a TCP address, and close it at once; it may be `shared` by SO_REUSEPORT. Raises OSError, naming it.

    Unix sockets are left alone: a server may replace the file that is there.
    """
    if not isinstance(address, tuple):
        return
    try:
        found = socket.getaddrinfo(address[0] or None, address[1], type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, resolved = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # What listens at the same port of IPv4 is not in the way of every server.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(resolved)
    except OSError as error:
        raise OSError(error.errno, f"{requested(address)} can't be bound: {error.strerror}") from None
