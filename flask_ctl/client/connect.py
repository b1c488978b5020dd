"""Connecting to the server at an address."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Union

from ..errors import ConfigurationError
from ..system.addresses import OFF, parse_address
from .connection import Connection
from .trust import Trust
from .unix import UnixConnection, connect_socket

if TYPE_CHECKING:
    from ..transports.memory import MemoryListener

SocketAddress = Union[str, "os.PathLike[str]", "MemoryListener"]
"""An address, or a listener in this process."""


def connect(given: SocketAddress, timeout: float | None, trust: Trust | None = None) -> Connection:
    """A connection to the server at `given`, made within `timeout` seconds.

    Raises NotRunning, AccessDenied, TimedOut, RemoteProtocolError or ConfigurationError.
    """
    if not isinstance(given, (str, os.PathLike)):
        return UnixConnection(given.endpoint, given.connect())
    if os.fspath(given) == OFF:
        raise ConfigurationError("the address is off: this app has no control socket; give one by --socket")
    address = parse_address(given)
    trust = trust or Trust()
    connection: Connection
    if address.transport == "unix":
        connection = UnixConnection(str(address), connect_socket(address.path, timeout, trust), address.path)
    else:
        if address.transport == "tcp":
            trust.check_registered(address)
        began = time.monotonic()
        from .zeromq import ZmqConnection

        # Loading libzmq may take half a second of the timeout.
        left = None if timeout is None else max(0.0, timeout - time.monotonic() + began)
        connection = ZmqConnection(address, left, trust)
    if address.path:
        try:
            trust.check_holder(address.path, connection.peer_pid())
        except BaseException:
            connection.close()
            raise
    return connection
