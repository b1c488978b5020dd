"""A TCP port that is listened at."""

from __future__ import annotations

import errno

from ..dispatch.policy import FileAccess
from ..errors import ConfigurationError
from ..system.addresses import Address, resolve
from ..system.native import socket
from .socketfile import BACKLOG


class TcpPort:
    """A port that is ours from `acquire` to the end of its socket; the kernel keeps others off."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def check(self) -> None:
        """Who may reach a port is decided before."""

    def acquire(self) -> socket.socket:
        """A listening socket. Raises ConfigurationError that says what is in the way and what to do."""
        family, sockaddr = resolve(self._address)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            # Of the former server only connections that are being closed may still be there.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(sockaddr)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise ConfigurationError(
                f"can't listen at {self._address}: {reason}; give another port by FLASK_CTL_SOCKET"
            ) from None
        return listener

    def admit(self, access: FileAccess) -> None:
        """A port has no file."""

    def adopt(self, descriptor: int, lock: int) -> socket.socket:
        """The socket that a former image of this process left, listening for this one."""
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        listener.listen(BACKLOG)
        return listener

    def hand_over(self) -> int:
        """There is no lock."""
        return -1

    def obstacle(self) -> None:
        """A port has no directory."""

    def in_place(self) -> bool:
        """Nobody can take it away."""
        return True

    def keep_lock(self) -> None:
        """There is no lock."""

    def vacant(self) -> bool:
        return False

    def release(self) -> None:
        """The end of the socket gives it up."""
