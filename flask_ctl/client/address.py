"""Which server a client means: the given address, that in FLASK_CTL_SOCKET, or that of the instance found here."""

from __future__ import annotations

import os

from ..errors import ConfigurationError
from ..system.addresses import OFF, from_environment, parse_address
from .connect import SocketAddress

FIND_TIMEOUT = 5.0
"""Seconds to find the instance of the current directory."""


class ServerAddress:
    """The address of one client's server, resolved when it is first needed.

    An address that was found is good for a question only. Before a command that changes something, `confirm` finds it
    again by the narrow rule (`find_instance` with `operate`).
    """

    def __init__(self, given: SocketAddress | None) -> None:
        self._address = given
        self._needs_confirmation = False

    def resolve(self, timeout: float | None = FIND_TIMEOUT) -> SocketAddress:
        """The address. Raises NotRunning or AmbiguousTarget where none was given and none is found."""
        if self._address is None:
            self._address = next(iter(from_environment()), None)
        if self._address is None:
            self._address = _find_instance(timeout, operate=False)
            self._needs_confirmation = True
        return self._address

    def confirm(self) -> bool:
        """Whether the address had to be found (again), before a command that changes something.

        Raises like `resolve`.
        """
        if not self._needs_confirmation and (self._address is not None or from_environment()):
            return False
        self._address = _find_instance(FIND_TIMEOUT, operate=True)
        self._needs_confirmation = False
        return True

    def local_path(self) -> str | None:
        """The path of the server's socket, None for a listener in this process. Raises ConfigurationError for TCP."""
        address = self.resolve()
        path = path_of(address)
        if path == "":
            raise ConfigurationError(
                f"a server can't be killed over {address}: the kernel does not name its process there, and a server's"
                " own answer is no proof; run it on the server's machine, by the path of its Unix socket"
            )
        return path


def path_of(address: SocketAddress) -> str | None:
    """The path of a socket, "" for an address over TCP, None for a listener in this process and for ``off``."""
    if not isinstance(address, (str, os.PathLike)) or os.fspath(address) == OFF:
        return None
    return parse_address(address).path


def _find_instance(timeout: float | None, *, operate: bool) -> str:
    from .discovery import find_instance

    return find_instance(timeout=timeout, operate=operate)
