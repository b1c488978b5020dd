"""Where a message ends: a line of a byte stream, a frame of ZeroMQ."""

from __future__ import annotations

from ..errors import RemoteProtocolError

MAX_FRAME = 1024 * 1024
"""Bytes in one message. The biggest honest one is a custom command's result; a peer must not fill the memory."""

FENCE = b""
"""A frame of ZeroMQ that asks for one like it in return, once everything before it has been answered."""


ZEROMQ = b"\xff"
"""The first byte that a peer sends who speaks ZeroMQ (ZMTP 3.1, RFC 37 of ZeroMQ). In UTF-8 there is no such byte."""


def greets_by_zeromq(data: bytes) -> bool:
    """Whether a connection begins with the signature of ZeroMQ."""
    return len(data) >= 10 and data.startswith(ZEROMQ) and data[9] == 0x7F


class LineBuffer:
    """Cuts a stream of bytes into lines, wherever the pieces were torn.

    Never holds more than `limit` bytes of a line that has not ended.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._tail = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a line has begun that has not ended."""
        return bool(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends; empty ones are left out.

        Raises RemoteProtocolError for a line over the limit; after that the buffer can't be used.
        """
        if not self._tail and data.find(b"\n") == len(data) - 1:
            # One message and no more, as it nearly always comes.
            self._check(len(data) - 1)
            message = _strip(data[:-1])
            return [message] if message else []
        if b"\n" not in data:
            self._tail += data
            self._check(len(self._tail))
            return []
        first, *rest = data.split(b"\n")
        rest.insert(0, bytes(self._tail) + first)
        self._tail = bytearray(rest.pop())
        for line in (*rest, self._tail):
            self._check(len(line))
        return [line for line in map(_strip, rest) if line]

    def unread(self) -> bytes:
        """The beginning of a line that has not ended, as it came."""
        return bytes(self._tail)

    def rest(self) -> bytes:
        """The line that the end of the stream completes, empty if none has begun."""
        line, self._tail = _strip(bytes(self._tail)), bytearray()
        return line

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise RemoteProtocolError(f"a message is longer than {self._limit} bytes")


def _strip(line: bytes) -> bytes:
    return line.strip(b" \t\r")
