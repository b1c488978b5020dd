"""How the addresses of HTTP servers are written."""

from __future__ import annotations

from typing import Any


def requested(address: Any) -> str:
    """The name under which a listening socket is left to the next image: what the program asked for, port 0 too."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else f"unix:{address}"


def url(address: Any, *, tls: bool = False) -> str:
    """A bound address, as `status` shows it."""
    if not isinstance(address, tuple):
        return f"unix://{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{'https' if tls else 'http'}://{host}:{address[1]}"
