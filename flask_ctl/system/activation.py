"""Sockets that systemd has opened for this process: sd_listen_fds(3), systemd.socket(5).

They keep their descriptors from 3 on, also over the exec of a reload, because the environment of the start names them.
What serves at one gets a duplicate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from ..errors import ConfigurationError
from .handover import inherited
from .native import socket
from .sockets import duplicate_socket

FIRST = 3
"""The first descriptor: SD_LISTEN_FDS_START."""

NAMES = ("http", "control")
"""The values of FileDescriptorName= that are known."""

STORED = "flask-ctl-http"
"""The name of the HTTP listener that a process has left in the store of its service, for the one after a crash."""

PREFLIGHT = "FLASK_CTL_PREFLIGHT_ACTIVATED"
"""The `addresses` in the environment of a preflight, which has no such sockets."""


VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def passed_names(environment: Mapping[str, str]) -> list[str]:
    """The names of the sockets that were passed to this very process, in the order of their descriptors."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count, names = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_FDNAMES", "").split(":")
    number = int(count) if count.isdecimal() else 0
    return [*names, *["unknown"] * number][:number]


class Activation:
    """The sockets of this process by name; empty until `take`."""

    def __init__(self) -> None:
        self.addresses: dict[str, Any] = {}
        """By name the result of getsockname(2)."""
        self._descriptors: dict[str, int] = {}
        self._stored = -1

    def take(self, environment: MutableMapping[str, str]) -> None:
        """Take them out of the environment, in which a server might find them; more than once is fine.

        Raises ConfigurationError for one that is not known, or of no use.
        """
        if PREFLIGHT in environment:
            self.addresses = json.loads(environment[PREFLIGHT])
            return
        for number, name in enumerate(passed_names(environment), FIRST):
            if name == STORED:
                # The first image has taken it, or closed it; its number may stand for another file by now.
                if not inherited.is_there:
                    os.set_inheritable(number, False)
                    self._stored = number
                continue
            if name not in NAMES:
                raise ConfigurationError(
                    f"systemd passes a socket named {name!r}, which is not one of {', '.join(NAMES)};"
                    " set FileDescriptorName= in the [Socket] section of its unit"
                )
            if name in self._descriptors:
                raise ConfigurationError(f"systemd passes two sockets named {name}; give one ListenStream= for it")
            self.addresses[name] = _address_of(name, number)
            self._descriptors[name] = number
            os.set_inheritable(number, False)
        for variable in VARIABLES:
            environment.pop(variable, None)

    def duplicate(self, name: str) -> socket.socket:
        """A duplicate of the socket of that name."""
        return duplicate_socket(self._descriptors[name])

    def take_stored(self) -> socket.socket | None:
        """The HTTP listener that was in the store, once. The caller owns it."""
        number, self._stored = self._stored, -1
        return None if number < 0 else socket.socket(fileno=number)

    def is_control(self, path: str) -> bool:
        """Whether the control socket at this path is one of them."""
        return bool(path) and self.addresses.get("control") == path

    def keep(self) -> None:
        """Right before an exec: have the next image inherit them at their numbers."""
        for number in self._descriptors.values():
            os.set_inheritable(number, True)

    def for_preflight(self) -> dict[str, str]:
        """What the environment of a preflight has in addition."""
        return {PREFLIGHT: json.dumps(self.addresses)} if self.addresses else {}


def _address_of(name: str, number: int) -> Any:
    wanted = "a Unix socket at a path" if name == "control" else "a TCP or Unix socket"
    problem = ConfigurationError(
        f"the socket that systemd passes as {name} is not {wanted} that listens; set ListenStream= and Accept=no"
    )
    try:
        with duplicate_socket(number) as sock:
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise problem
            address = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                is_path = isinstance(address, str) and address.startswith("/")
            else:
                is_path, address = False, list(address[:2])
    except OSError:
        raise problem from None
    if not is_path and (name == "control" or isinstance(address, (str, bytes))):
        raise problem
    return address


activation = Activation()
"""Those of this process."""
