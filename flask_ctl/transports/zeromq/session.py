"""One client of a ZeroMQ socket: its commands, and the answers that it has not read."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Collection
from typing import Any, Literal

from ...dispatch.peer import Peer
from ...errors import CONFLICT, CommandError
from ...protocol.framing import FENCE
from ...protocol.jsonrpc import encode, error_object
from ..base import Handler
from ..connection import STALL_TIMEOUT
from ..reactor import Reactor
from ..session import Session

MAX_WAITING = 1024
"""Messages that wait for earlier ones of the same client; a ROUTER can't stop reading from one peer alone."""

OVERHEAD = 64
"""Bytes of overhead per message."""

RETURN_TIMEOUT = 60.0
"""Seconds that the new image keeps the answer to a reload for a caller that has not connected again."""

Sent = Literal["sent", "blocked", "gone"]
Send = Callable[["ZmqClient", bytes], Sent]


class ZmqClient(Session):
    """One client; lives as long as something is under way for it, and a while longer."""

    def __init__(
        self,
        routing_id: bytes,
        peer: Peer,
        reactor: Reactor,
        handler: Handler,
        max_pending: int,
        send: Send,
        share: Callable[[], int],
        *,
        away: bool = False,
    ) -> None:
        super().__init__(peer, reactor, handler, max_pending)
        self.routing_id = routing_id
        self.descriptor = -1
        self._send = send
        self._share = share
        self._away = away
        self._fence = False
        self._held = away
        self._out: collections.deque[bytes] = collections.deque()
        self._moved = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done for it."""
        return not (self._pending or self._waiting or self._out or self._held or self._subscriptions)

    def take(self, message: bytes) -> None:
        """Handle a message from the client."""
        if self._away:
            self._away = False
            self.send_rest()
        if message == FENCE:
            self._fence = True
            self._settle()
        elif (self._waiting or self._saturated()) and not self._has_room(self._waiting, message):
            self.refuse("too many messages at once; read the answers first")
        else:
            self._waiting.append(message)
            self._proceed()

    def reject(self, message: bytes) -> None:
        """Answer a message that comes in the course of the exec by -32006, as `reject_unanswered` does."""
        if message == FENCE:
            self.take(message)
        elif (answer := self._reloaded(message)) is not None and not self._is_full():
            self._write(answer)

    def refuse(self, reason: str) -> None:
        """Answer a message that is not looked at, unless too many of such answers have not been read."""
        if not self._is_full():
            self._write(encode(error_object(None, CommandError(reason, code=CONFLICT))))

    def answer_caller(self, reply: bytes) -> None:
        """Give the reply that the previous image owed, once the client is back; until now what it sends had to wait."""
        self._held = False
        if reply:
            self._write(reply)
        self._proceed()

    def export_state(self) -> dict[str, Any] | None:
        """Of the caller of the reload: what the next image needs to answer it; None for another client."""
        if self._owed is None:
            return None
        return {"routing_id": self.routing_id.hex(), "peer": self._peer.as_dict(), "reply": self._owed}

    def _saturated(self) -> bool:
        return self._held or super()._saturated()

    def send_rest(self) -> bool:
        """Send what waits, as far as it goes, and handle what had to wait for that; whether something went."""
        went = self._push()
        if went:
            self._proceed()
        return went

    def _push(self) -> bool:
        before = len(self._out)
        while self._out and not self._away:
            sent = self._send(self, self._out[0])
            if sent == "blocked":
                break
            if sent == "gone":
                self._give_up()
                break
            self._moved = time.monotonic()
            self._out.popleft()
        return len(self._out) < before

    def expire(self, now: float) -> None:
        """Give up a client that does not read, or does not come back."""
        self._subscriptions.tick()
        if self._out and now - self._moved > (RETURN_TIMEOUT if self._away else STALL_TIMEOUT):
            self._give_up()

    def _write(self, message: bytes) -> None:
        if not self._out:
            self._moved = time.monotonic()
        self._out.append(message)
        if len(self._out) == 1:
            self._push()

    def _write_answer(self, message: bytes, answer: bytes) -> None:
        self._write(answer)

    def _write_progress(self, message: bytes) -> None:
        if not self._out:
            self._write(message)

    def _write_text(self, line: str) -> None:
        """There are no plain commands over ZeroMQ."""

    def _is_full(self) -> bool:
        return not self._has_room(self._out)

    def _has_room(self, held: Collection[bytes], message: bytes = b"") -> bool:
        """Whether one more message can be held beside `held`."""
        size = sum(map(len, held)) + len(message) + OVERHEAD * len(held)
        return len(held) < MAX_WAITING and size < self._share()

    def _settle(self) -> None:
        self._subscriptions.resume()
        if self._fence and not (self._pending or self._waiting or self._saturated()):
            self._fence = False
            self._write(FENCE)

    def _give_up(self) -> None:
        self._subscriptions.close()
        self._out.clear()
        self._waiting.clear()
