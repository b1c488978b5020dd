"""One client's connection over a stream socket, on the reactor's thread."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from ..dispatch.dispatcher import Answer
from ..dispatch.peer import Peer
from ..dispatch.replies import reloaded_text
from ..errors import INVALID_REQUEST, CommandError, RemoteProtocolError
from ..protocol.framing import LineBuffer, greets_by_zeromq
from ..protocol.jsonrpc import encode, error_object
from ..protocol.plain import is_plain
from ..system.native import select, socket
from .base import Handler
from .reactor import READ, WRITE, Reactor
from .session import Session

HIGH_WATER = 16 * 1024
"""Bytes of unread answers, beside the kernel's buffer, above which no more requests are read from a client."""

LINE_TIMEOUT = 10.0
"""Seconds for the rest of a line, counted from its last byte."""

STALL_TIMEOUT = 30.0
"""Seconds without progress after which a client that does not read is disconnected."""

_CHUNK = 16 * 1024
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

logger = logging.getLogger("flask_ctl")


class Connection(Session):
    """One client; while `max_pending` of its commands have not been answered, no other one is read."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        reactor: Reactor,
        handler: Handler,
        forget: Callable[[Connection], Any],
        max_pending: int,
    ) -> None:
        super().__init__(peer, reactor, handler, max_pending)
        sock.setblocking(False)
        self._sock = sock
        self._forget = forget
        self._buffer = LineBuffer()
        self._following: list[bytes] = []
        self._out = bytearray()
        self._last_line_seen = False
        self._closed = False
        self._interest = 0
        self._heard = self._moved = time.monotonic()
        self._settle()

    @property
    def idle_since(self) -> float | None:
        """The time of its last message, None while it waits for an answer, or has a stream."""
        return None if self._pending or self._out or self._subscriptions else self._heard

    def has_hung_up(self) -> bool:
        """Whether the client has disconnected, although nothing is being read from it."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._subscriptions.close()
            self._reactor.unregister(self)
            self._sock.close()
            self._forget(self)

    def abandon(self) -> None:
        """Close this process's copy of the descriptor, without a word to the peer."""
        self._closed = True
        self._sock.close()

    def expire(self, now: float) -> None:
        """Close if the client has not read for STALL_TIMEOUT, or not ended a line within LINE_TIMEOUT."""
        if self._out and now - self._moved > STALL_TIMEOUT:
            self.close()
        elif self._subscriptions and self.has_hung_up():
            # It has shut down its sending side, or what it sends is not read.
            self.close()
        elif self._buffer.partial and not self._last_line_seen and now - self._heard > LINE_TIMEOUT:
            self._refuse(f"a message has to end within {LINE_TIMEOUT:g} seconds")

    def flush(self, deadline: float) -> None:
        """Send what waits, until `deadline` (on the monotonic clock) at most."""
        if not self._out:
            return
        self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            self._sock.sendall(self._out, _NO_SIGNAL)
        except OSError as error:
            logger.debug("an answer was not read: %s", error)
        self._sock.setblocking(False)
        self._out.clear()

    def answer_caller(self, reply: bytes, unread: bytes, *, finish: bool) -> None:
        """Go on where the previous image left off, with the reply that it owed; then `finish`, or handle `unread`."""
        self._last_line_seen = finish
        self._write(reply)
        self._take_in(unread)
        self._proceed()

    def reject_unanswered(self) -> None:
        if self._owed is not None:
            # The connection goes to the next image, with the messages behind the reload that were not handled.
            self._following.extend(self._waiting)
            self._waiting.clear()
        elif not (self._closed or self._last_line_seen):
            self._take_rest()
        super().reject_unanswered()

    def export_state(self) -> dict[str, Any] | None:
        """Of the caller of the reload: what the next image needs to answer it; None for another client."""
        if self._closed or self._owed is None:
            return None
        self._closed = True
        self._forget(self)
        following = b"".join(line + b"\n" for line in self._following)
        unread = (following + self._buffer.unread()).decode("latin-1")
        return {"descriptor": self._sock.detach(), "reply": self._owed, "unread": unread}

    def _take_rest(self) -> None:
        """Take in what the client has sent, and have it fail to send more: no message is lost without a word."""
        # The peer's send() is EPIPE from now on, while what was sent before can still be received.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)
        try:
            while data := self._sock.recv(_CHUNK):
                self._waiting += self._buffer.feed(data)
            self._waiting += self._rest()
        except (OSError, RemoteProtocolError) as error:
            logger.debug("what a client has sent can't be read: %s", error)

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._send()
        if events & READ and not self._closed:
            self._receive()
        self._proceed()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._heard = time.monotonic()
        self._take_in(data, ended=not data)

    def _take_in(self, data: bytes, *, ended: bool = False) -> None:
        if greets_by_zeromq(data) and not self._buffer.partial:
            # It waits for our greeting, and would do so for ever.
            self._refuse("this socket does not speak ZeroMQ; its address is the path alone, without ipc://")
            return
        try:
            self._waiting += self._rest() if ended else self._buffer.feed(data)
        except RemoteProtocolError as error:
            self._refuse(error.message)

    def _rest(self) -> list[bytes]:
        self._last_line_seen = True
        rest = self._buffer.rest()
        return [rest] if rest else []

    def _refuse(self, message: str) -> None:
        self._last_line_seen = True
        self._waiting.clear()
        self._write(encode(error_object(None, CommandError(message, code=INVALID_REQUEST))) + b"\n")
        self._settle()

    def _answer(self, message: bytes) -> Answer:
        if not is_plain(message):
            return super()._answer(message)
        # One plain command a connection: nc and shell scripts wait for the end of the stream.
        self._last_line_seen = True
        self._waiting.clear()
        return self._handler.handle_plain(message, self._peer, self)

    def _reloaded(self, message: bytes) -> bytes | None:
        if not is_plain(message):
            return super()._reloaded(message)
        # A connection has one plain command: if a reply is owed, it is this one's.
        return None if self._owed is not None else reloaded_text(message)

    def _write_answer(self, message: bytes, answer: bytes) -> None:
        self._write(answer if is_plain(message) else answer + b"\n")

    def _write_text(self, line: str) -> None:
        self._write(line.encode(errors="replace") + b"\n")

    def _write_progress(self, message: bytes) -> None:
        if not self._out:
            self._write(message + b"\n")
            self._settle()

    def _write(self, data: bytes) -> None:
        if self._closed:
            return
        if not self._out:
            self._moved = time.monotonic()
        self._out += data
        self._send()

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._out, _NO_SIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._moved = time.monotonic()
        del self._out[:sent]

    def _is_full(self) -> bool:
        return self._closed or len(self._out) >= HIGH_WATER

    def _settle(self) -> None:
        self._subscriptions.resume()
        if self._closed:
            return
        if self._last_line_seen and not (self._pending or self._out or self._waiting or self._subscriptions):
            self.close()
            return
        listening = not (self._last_line_seen or self._waiting or self._saturated())
        interest = (READ if listening else 0) | (WRITE if self._out else 0)
        if interest != self._interest:
            self._interest = interest
            self._reactor.register(self, interest, self._on_ready)
