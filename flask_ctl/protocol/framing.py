"""Framing of messages: a line of a byte stream, or a ZeroMQ frame."""

from __future__ import annotations

from ..errors import RemoteProtocolError

MAX_FRAME = 1024 * 1024
"""The most bytes in one message, so that a peer cannot fill the memory."""

FENCE = b""
"""A ZeroMQ frame that the peer returns once it has answered everything before it."""


ZEROMQ = b"\xff"
"""The first byte from a ZeroMQ peer (ZMTP 3.1, RFC 37 of ZeroMQ). It never occurs in UTF-8."""


def greets_by_zeromq(data: bytes) -> bool:
    """Whether the data begins with the signature of a ZeroMQ greeting."""
    return len(data) >= 10 and data.startswith(ZEROMQ) and data[9] == 0x7F


class LineBuffer:
    """Splits a byte stream into lines.

    It buffers at most `limit` bytes of an incomplete line.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._tail = bytearray()

    @property
    def partial(self) -> bool:
        """Whether there is an incomplete line."""
        return bool(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines completed by `data`, without line ends and without empty lines.

        Raises RemoteProtocolError for a line over the limit; after that the buffer can't be used.
        """
        if not self._tail and data.find(b"\n") == len(data) - 1:
            # The usual case: exactly one message.
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
        """The incomplete line, unchanged."""
        return bytes(self._tail)

    def rest(self) -> bytes:
        """The line completed by the end of the stream, empty if there is none."""
        line, self._tail = _strip(bytes(self._tail)), bytearray()
        return line

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise RemoteProtocolError(f"a message is longer than {self._limit} bytes")


def _strip(line: bytes) -> bytes:
    return line.strip(b" \t\r")
