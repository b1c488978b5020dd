"""A client's end of one control connection: requests out, replies in, each within its time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Union

from .addresses import OFF, parse_address
from .errors import AccessDenied, ConfigurationError, LocalProtocolError, NotRunning, RemoteProtocolError, TimedOut
from .protocol.framing import MAX_FRAME, LineBuffer
from .protocol.jsonrpc import Request, Response, encode, parse_reply, request_object
from .system import (
    HAS_UNIX_SOCKETS,
    MAX_SOCKET_PATH,
    ProcessHandle,
    open_peer,
    peer_credentials,
    wait_readable,
    wait_writable,
)

_CHUNK = 65536

END_DELAY = 1.0
"""Seconds for a process whose connection has ended to end itself: the kernel closes its descriptors first."""


class Connectable(Protocol):
    """What gives a connected socket, as `MemoryListener` does."""

    @property
    def endpoint(self) -> str: ...

    def connect(self) -> socket.socket: ...


Target = Union[str, "os.PathLike[str]", Connectable]


class Conversation:
    """A connected socket with numbered requests.

    `ended` tells whether the other side has closed; what it sent before can still be received.
    """

    def __init__(self, target: Target, timeout: float | None) -> None:
        """Raises NotRunning, AccessDenied, TimedOut or ConfigurationError."""
        self.endpoint, self._sock = _connect(target, timeout)
        self.ended = False
        self._sock.setblocking(False)
        self._buffer = LineBuffer()
        self._messages: deque[Response | Request] = deque()
        self._last_id = 0

    def peer(self) -> ProcessHandle | None:
        """A handle on the server's process; None if it is this process, or the kernel can't name it."""
        handle = open_peer(self._sock)
        if handle is not None and handle.pid == os.getpid():
            handle.close()
            return None
        return handle

    def peer_has_ended(self) -> bool:
        """Whether the server's process is gone for certain, or goes within END_DELAY."""
        pid = peer_credentials(self._sock)[0]
        if pid is None or pid in (1, os.getpid()):
            return False
        handle = open_peer(self._sock)
        if handle is None:
            return True
        try:
            return bool(wait_readable([handle.fileno()], END_DELAY))
        finally:
            handle.close()

    def send(self, requests: Sequence[tuple[str, Mapping[str, Any]]], deadline: float | None) -> list[int]:
        """The ids of some methods with their parameters, which are on their way in one go.

        Raises LocalProtocolError or TimedOut if they can't be sent.
        """
        ids = list(range(self._last_id + 1, self._last_id + 1 + len(requests)))
        self._last_id += len(requests)
        data = b"".join(_line(method, params, id) for id, (method, params) in zip(ids, requests))
        # After a broken pipe, what was sent before it and the end of the stream can still be received, and say more.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send_all(data, deadline)
        return ids

    def receive(self, deadline: float | None, watched: Sequence[ProcessHandle] = ()) -> Response | Request | None:
        """The next message; None at the end of the stream, at the deadline, or when a watched process has ended.

        Raises RemoteProtocolError for what is no message.
        """
        while not self._messages:
            if not self._wait(deadline, watched):
                return None
            self._fill()
            if self.ended and not self._messages:
                return None
        return self._messages.popleft()

    def close(self) -> None:
        self._sock.close()

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
        """Whether there is something to receive; False at the deadline, or when a watched process has ended first."""
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
        try:
            lines = self._buffer.feed(data) if data else [self._buffer.rest()]
            self._messages += [parse_reply(line) for line in lines if line]
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self.endpoint} does not speak this protocol: {error.message}") from None


def _line(method: str, params: Mapping[str, Any], id: int) -> bytes:
    try:
        data = encode(request_object(method, params, id)) + b"\n"
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"the parameters of {method} are not JSON: {error}") from None
    if len(data) > MAX_FRAME:
        raise LocalProtocolError(f"the parameters of {method} are longer than {MAX_FRAME} bytes")
    return data


def _connect(target: Target, timeout: float | None) -> tuple[str, socket.socket]:
    if not isinstance(target, (str, os.PathLike)):
        return target.endpoint, target.connect()
    if os.fspath(target) == OFF:
        raise ConfigurationError("the address is off: this app has no control socket; give one by --socket")
    if not HAS_UNIX_SOCKETS:
        raise ConfigurationError("this system has no Unix sockets")
    path = parse_address(target)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigurationError(f"{path} is longer than {MAX_SOCKET_PATH} bytes, the most for a Unix socket")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _wait_for_connect(sock, timeout)
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise _connect_error(path, error) from None
    return path, sock


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
        return NotRunning(f"nothing is running at {path}: nobody listens", {"tried": [path]})
    return ConfigurationError(f"{path}: {error.strerror or error}")
