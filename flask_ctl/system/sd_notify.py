"""What a service tells its manager: the datagrams and the address of sd_notify(3). No I/O here."""

from __future__ import annotations

from collections.abc import Mapping

SOCKET = "NOTIFY_SOCKET"

HELD_BACK = "FLASK_CTL_NOTIFY_SOCKET"
"""The same for a server's own program, which would report READY=1 before it has loaded the app."""

MAX_VALUE = 500
"""Characters of a value; systemd reads at most 4096 bytes of a datagram."""

TO_NOTIFY = (SOCKET, HELD_BACK, "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
"""The variables of a process that tells the manager something."""

OF_THE_MANAGER = (*TO_NOTIFY, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
"""The variables by which systemd addresses one process: a preflight, which is another one, must not have them."""


def datagram(fields: Mapping[str, str | int]) -> bytes:
    """The assignments, one a line. A text becomes one line of at most MAX_VALUE characters."""
    lines = (f"{name}={value if isinstance(value, int) else _line(value)}" for name, value in fields.items())
    return "\n".join(lines).encode("utf-8", "replace")


def socket_address(value: str) -> str | None:
    """The address of an AF_UNIX socket for the value of NOTIFY_SOCKET: a path, or abstract; None for another kind."""
    if value.startswith("@"):
        return f"\0{value[1:]}"
    return value if value.startswith("/") else None


def without_manager(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that is not the service: without the variables of OF_THE_MANAGER."""
    return {name: value for name, value in environment.items() if name not in OF_THE_MANAGER}


def held_back(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a server's own program: flask-ctl has the socket, and the server has not."""
    if SOCKET not in environment:
        return dict(environment)
    return {HELD_BACK if name == SOCKET else name: value for name, value in environment.items()}


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_VALUE else f"{line[: MAX_VALUE - 1]}…"
