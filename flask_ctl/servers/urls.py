"""The addresses of HTTP servers: how they are written, and whether new code could bind them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError
from ..system.activation import STORED, activation
from ..system.handover import inherited
from ..system.notify_socket import NotifySocket
from ..system.preflight import end_if_preflighting, preflighting, served
from ..system.program import program

REMOVAL_TIMEOUT = 5.0
"""Seconds for the service manager to close a stored socket that keeps an address."""

logger = logging.getLogger("flask_ctl")

activated: set[str] = set()
"""The addresses, as `requested` writes them, whose sockets systemd has opened."""


def activate(server: str, host: str, port: int) -> tuple[str, int]:
    """The host and the port to serve at: those of the socket that systemd passes as ``http``, else the given ones.

    The adapter of `server` finds the socket as if the previous image had left it. Raises ConfigurationError.
    """
    address = activation.addresses.get("http")
    if address is None:
        storable.add(requested((host, port)))
        if server == "waitress":
            # It looks names up before it asks for a socket.
            with contextlib.suppress(OSError, UnicodeError):
                storable.update(requested((name[0], port)) for name in _names(host, port))
        _take_stored(server, host, port)
        return host, port
    if isinstance(address, str):
        if server != "werkzeug":
            raise ConfigurationError(f"systemd passes a Unix socket for HTTP, which {server} can't serve here; use TCP")
        address = [f"unix://{address}", 0]
    host, port = address
    name = requested((host, port))
    activated.add(name)
    if preflighting:
        served.append(name)
    else:
        inherited.add_listener(name, activation.duplicate("http").detach())
    return host, port


storable: set[str] = set()
"""The addresses, as `requested` writes them, whose sockets the next process takes out of the service's store."""


def _take_stored(server: str, host: str, port: int) -> None:
    """Have the socket in the service's store taken, if it listens where the program wants to; else it goes."""
    stored = activation.take_stored()
    if stored is None:
        return
    try:
        name = stored.getsockname()[:2]
        if stored.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and name in _names(host, port or name[1]):
            inherited.add_listener(requested((name[0] if server == "waitress" else host, port)), stored.detach())
            return
    except (OSError, UnicodeError) as error:
        logger.debug("the socket in the store of the service is of no use: %s", error)
    finally:
        stored.close()
    # It may still keep the address, also from every process after this one.
    told = NotifySocket(program.environment, os.getpid())
    told.send({"FDSTOREREMOVE": 1, "FDNAME": STORED})
    with contextlib.suppress(OSError):
        told.wait_until_done(REMOVAL_TIMEOUT)
    told.close()


def _names(host: str, port: int) -> list[tuple[Any, ...]]:
    """Numeric host and port of each address that the host has. Raises OSError, UnicodeError."""
    return [name[:2] for *_, name in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


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
