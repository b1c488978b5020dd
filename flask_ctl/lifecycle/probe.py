"""A request of our own to the HTTP server: whether it accepts connections, and has a thread to answer them."""

from __future__ import annotations

import contextlib
from typing import Any

from ..system.native import socket
from ..system.waiting import wait_readable

LINE = b"FLASK-CTL-PROBE\r\n\r\n"
"""Where a server answers requests, it answers this with 400, or closes the connection; the app is not called."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def address_of(url: str) -> Any:
    """The socket address to connect to, of a URL with a numeric host in `status`; None if there is none."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:")
    host, _, port = url.partition("//")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdecimal() else None


class Probe:
    """One request at a time; no method blocks or raises."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sent = False

    def passed(self, address: Any) -> bool:
        """Whether the request that was sent before has been answered since; else, without one, sends one."""
        try:
            if self._socket is None:
                self._connect(address)
            assert self._socket is not None
            if not self._sent:
                self._socket.send(LINE)
                self._sent = True
            if not wait_readable([self._socket.fileno()], 0):
                return False
            # Its end is an answer, too: somebody has accepted it, and closed it.
            with contextlib.suppress(ConnectionResetError):
                self._socket.recv(4096)
            self.close()
            return True
        except BlockingIOError:
            # The connection is not accepted yet.
            return False
        except BrokenPipeError:
            # It has been accepted, and closed before the request was sent.
            self.close()
            return True
        except OSError:
            self.close()
            return False

    def close(self) -> None:
        """Give up the request that has not been answered."""
        sock, self._socket, self._sent = self._socket, None, False
        if sock is not None:
            sock.close()

    def _connect(self, address: Any) -> None:
        if isinstance(address, str):
            sock = socket.socket(socket.AF_UNIX)
        elif isinstance(address, tuple):
            sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            address = (_EVERYWHERE.get(address[0], address[0]), address[1])
        else:
            raise OSError("no address")
        self._socket = sock
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
