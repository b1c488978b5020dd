"""Connections over a Unix-domain stream socket: one message per line."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

from ..errors import AccessDenied, ConfigurationError, NotRunning, RemoteProtocolError, TimedOut, WrongScheme
from ..protocol.framing import ZEROMQ, LineBuffer
from ..protocol.jsonrpc import encode
from ..system.credentials import peer_credentials
from ..system.platform import HAS_UNIX_SOCKETS, MAX_SOCKET_PATH
from ..system.processes import ProcessHandle, open_peer, program_name
from ..system.waiting import wait_readable, wait_writable
from .absence import Absence
from .connection import END_DELAY, Connection
from .trust import Trust
from .zmtp import OWN_ACCORD

_CHUNK = 65536

SYSTEMD = "systemd"
"""The name of the program that holds a socket which is activated, until the server listens at it, too."""


class UnixConnection(Connection):
    """A connection over a connected stream socket, which `close` closes."""

    def __init__(self, endpoint: str, sock: socket.socket, path: str | None = None) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.path = path
        self._sock = sock
        self._sock.setblocking(False)
        self._buffer = LineBuffer()
        self._heard = self._heard_message = False

    def peer_pid(self) -> int | None:
        return peer_credentials(self._sock)[0]

    def peer(self) -> ProcessHandle | None:
        handle = open_peer(self._sock)
        if handle is not None and handle.pid == os.getpid():
            handle.close()
            return None
        return handle

    def peer_has_ended(self) -> bool:
        pid = peer_credentials(self._sock)[0]
        if pid is None or pid in (1, os.getpid()):
            return False
        return ends_soon(open_peer(self._sock))

    def close(self) -> None:
        self._sock.close()

    def _transmit(self, messages: list[bytes], deadline: float | None) -> None:
        # After a broken pipe, what the server sent before can still be received, and explains more.
        try:
            self._send_all(b"".join(message + b"\n" for message in messages), deadline)
        except (BrokenPipeError, ConnectionResetError):
            self.undelivered = True

    def _send_all(self, data: bytes, deadline: float | None) -> None:
        while True:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                timeout = None if deadline is None else deadline - time.monotonic()
                if not wait_writable(self._sock.fileno(), timeout):
                    raise TimedOut(f"{self.endpoint} does not read what it is sent") from None
            if not data:
                return

    def _wait(self, deadline: float | None, watched: Sequence[ProcessHandle]) -> bool:
        timeout = None if deadline is None else deadline - time.monotonic()
        if self.ended:
            wait_readable([handle.fileno() for handle in watched], timeout)
            return False
        descriptor = self._sock.fileno()
        return descriptor in wait_readable([descriptor, *(handle.fileno() for handle in watched)], timeout)

    def _fill(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except OSError:
            data = b""
        self.ended = not data
        if self._is_zeromq(data):
            raise WrongScheme(self.endpoint, f"ipc://{self.path or self.endpoint}", "a socket of ZeroMQ")
        self._heard = self._heard or bool(data)
        try:
            # A server that ends in the middle of a message has not sent it.
            rest = [] if data or self._heard_message else [self._buffer.rest()]
            for line in self._buffer.feed(data) if data else rest:
                if line:
                    self._note(line)
                    self._heard_message = True
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self.endpoint} does not speak this protocol: {error.message}") from None

    def _is_zeromq(self, data: bytes) -> bool:
        """Whether the first thing that has arrived, `data`, or b"" for the end, comes from a ZeroMQ server.

        Such a server sends its greeting at once, but if a request arrives before, it closes the connection silently.
        """
        if self._heard:
            return False
        return data.startswith(ZEROMQ) or (not data and self.path is not None and _greets_by_zeromq(self.path))


def _greets_by_zeromq(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(OWN_ACCORD)
            sock.connect(path)
            return sock.recv(1) == ZEROMQ
    except OSError:
        return False


def ends_soon(process: ProcessHandle | None) -> bool:
    """Whether a process has ended, or ends within END_DELAY; its handle is closed."""
    if process is None:
        return True
    try:
        return bool(wait_readable([process.fileno()], END_DELAY))
    finally:
        process.close()


def connect_socket(path: str, timeout: float | None, trust: Trust) -> socket.socket:
    """A socket connected to the server at `path`, which `trust` has checked.

    While a process of the server lives, a new hub may be about to listen; the call waits for it. Raises NotRunning,
    AccessDenied, TimedOut or ConfigurationError.
    """
    if not HAS_UNIX_SOCKETS:
        raise ConfigurationError("this system has no Unix sockets")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigurationError(f"{path} is longer than {MAX_SOCKET_PATH} bytes, the most for a Unix socket")
    absence = Absence(path, None if timeout is None else time.monotonic() + timeout, trust)
    awaited = False
    while True:
        try:
            sock = _connect(path, absence.left(), trust)
        except NotRunning as error:
            absence.pause(error)
            continue
        # A program that has answered, and still is not the listener, is no server of ours.
        if awaited or program_name(peer_credentials(sock)[0]) != SYSTEMD:
            return sock
        with sock:
            _await_activated(path, sock, absence.left())
        awaited = True


def _await_activated(path: str, sock: socket.socket, timeout: float | None) -> None:
    """Have the server that systemd starts for this connection answer: it listens from then on, as the kernel tells.

    Raises NotRunning, TimedOut.
    """
    with contextlib.suppress(OSError):
        sock.sendall(encode({"jsonrpc": "2.0", "id": 0, "method": "ping"}) + b"\n")
        if not wait_readable([sock.fileno()], timeout):
            raise TimedOut(f"systemd listens at {path} for a server that has not answered yet")
        if sock.recv(1):
            return
    raise NotRunning(
        f"nothing is running at {path}: systemd listens there, and its server has ended", {"tried": [path]}
    )


def _connect(path: str, timeout: float | None, trust: Trust) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _connect_error(path, error) from None
    try:
        trust.check_file(path)
        _wait_for_connect(sock, timeout)
        sock.connect(path)
        trust.check_peer(path, peer_credentials(sock)[1])
    except OSError as error:
        sock.close()
        raise _connect_error(path, error) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _wait_for_connect(sock: socket.socket, timeout: float | None) -> None:
    # With settimeout() a connect to a full backlog fails at once; the kernel's own limit waits (unix(7), EAGAIN).
    if timeout is not None:
        timeout = max(0.001, min(timeout, 10**8))
        with contextlib.suppress(OSError):
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 10**6))
            )


def _connect_error(path: str, error: OSError) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"{path}: permission denied; run as the user of the app, or as root")
    if error.errno == errno.EAGAIN:
        return TimedOut(f"{path}: the server does not accept connections")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotRunning(f"nothing is running at {path}: no such socket", {"tried": [path]})
    if error.errno in (errno.ECONNREFUSED, errno.ENOTSOCK):
        return NotRunning(f"nothing is running at {path}: nothing listens", {"tried": [path]})
    return ConfigurationError(f"{path}: {error.strerror or error}")
