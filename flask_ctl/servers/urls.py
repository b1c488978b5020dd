"""The addresses of HTTP servers: how they are written, and whether new code could bind them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from ..system.preflight import end_if_preflighting, preflighting, served


def requested(address: Any) -> str:
    """The key of a listening socket for the next image: the address that the program asked for, even port 0."""
    return host_and_port(*address[:2]) if isinstance(address, tuple) else f"unix:{address}"


def url(address: Any, scheme: str = "http") -> str:
    """``http://host:port`` for an address tuple of `getsockname`, else ``unix:`` and the path, as `status` shows it."""
    if not isinstance(address, tuple):
        return f"unix:{os.fsdecode(address)}"
    return f"{scheme}://{host_and_port(*address[:2])}"


def host_and_port(host: str, port: int | str) -> str:
    """The authority of a URL (RFC 3986): an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def end_preflight(check: Callable[[], Any], *addresses: Any) -> None:
    """In a preflight, when the server is about to bind these addresses: try those that are not served now, and end.

    Raises OSError where the server itself would find an address taken, and like `check`.
    """
    if preflighting:
        for address in addresses:
            if requested(address) not in served:
                try_to_bind(address)
        end_if_preflighting(check)


def try_to_bind(address: Any, *, shared: bool = False) -> None:
    """Bind a TCP address, and close it at once; `shared` sets SO_REUSEPORT. Raises OSError with the address.

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
                # Not every server listens on IPv4 with the same socket.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(resolved)
    except OSError as error:
        raise OSError(error.errno, f"{requested(address)} can't be bound: {error.strerror}") from None
