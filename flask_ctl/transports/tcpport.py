"""A TCP port to listen at."""

from __future__ import annotations

import errno

from ..errors import ConfigurationError
from ..system.addresses import Address, resolve
from ..system.native import socket
from .endpoint import Place
from .socketfile import BACKLOG


class TcpPort(Place):
    """A port that is ours from `acquire` until its socket is closed."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def acquire(self) -> socket.socket:
        """A listening socket. Raises ConfigurationError that says what is in the way and what to do."""
        family, sockaddr = resolve(self._address)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            # Closing connections of an earlier server (TIME_WAIT) don't keep the port.
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

    def adopt(self, descriptor: int, lock: int) -> socket.socket:
        """The socket that the previous image of this process left, listening for this one."""
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        listener.listen(BACKLOG)
        return listener
