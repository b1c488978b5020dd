"""The messages of one client over any transport: some are being handled, the others wait in order."""

from __future__ import annotations

import abc
import collections
from concurrent.futures import Future
from typing import Any

from ..dispatch.dispatcher import Answer, asks_for_chunks
from ..dispatch.peer import Peer
from ..dispatch.replies import ReplyTo, reloaded_answer
from ..dispatch.streams import LongResult, ResultStream, Stream
from ..protocol.jsonrpc import encode, request_object, result_object
from .base import Handler
from .reactor import Reactor
from .subscriptions import Subscriptions

_OBJECT = b"{}"
"""Placeholder request for messages that answer nothing: begins with `{`, so that they are sent as JSON, not as text."""


TURN = 8
"""Messages of one client that are handled before other clients have their turn."""


class Session(abc.ABC):
    """Hands a client's messages to the handler, at most `max_pending` unanswered ones at once, and TURN at a time.

    Of those that ask for a long result it handles one at a time: each result may take up to MAX_RESULT.

    Lives on the reactor's thread; answers of commands that take their time are handed over to it. A subclass writes.
    """

    def __init__(self, peer: Peer, reactor: Reactor, handler: Handler, max_pending: int) -> None:
        self._peer = peer
        self._reactor = reactor
        self._handler = handler
        self._max_pending = max_pending
        self._pending: list[bytes] = []
        self._waiting: collections.deque[bytes] = collections.deque()
        self._owed: ReplyTo | None = None
        self._subscriptions = Subscriptions(
            reactor, self._write_notification, self._write_text, self._takes_more, self._streams_settled
        )
        self._has_next_turn = False
        self._asks_long = self._next_asks_long = False

    def keep(self, reply: ReplyTo) -> None:
        """See `Connection`."""
        self._owed = reply

    def send(self, message: bytes) -> None:
        """See `Connection`."""

        def write() -> None:
            self._write_answer(_OBJECT, message)
            self._settle()

        self._reactor.call_soon(write)

    def subscribe(self, stream: Stream, *, plain: bool = False) -> int:
        """See `Connection`."""
        return self._subscriptions.begin(stream, plain=plain)

    def cancel(self, subscription: int) -> bool:
        """See `Connection`."""
        return self._subscriptions.cancel(subscription)

    def reject_unanswered(self) -> None:
        """Before an exec: end the streams, and answer what has not been answered by -32006, but for the reload."""
        self._subscriptions.end_all("reload")
        for message in (*self._pending, *self._waiting):
            answer = self._reloaded(message)
            if answer is not None:
                self._write_answer(message, answer)
        self._waiting.clear()

    @abc.abstractmethod
    def _write_answer(self, message: bytes, answer: bytes) -> None:
        """Send the answer to a message."""

    @abc.abstractmethod
    def _write_text(self, line: str) -> None:
        """Send a line of a stream that was asked for by a plain command."""

    @abc.abstractmethod
    def _write_progress(self, message: bytes) -> None:
        """Send a progress notification; drop it if the client is slow, because the next one tells as much."""

    @abc.abstractmethod
    def _is_full(self) -> bool:
        """Whether so much waits to be read by the client that no more of its messages are handled."""

    @abc.abstractmethod
    def _settle(self) -> None:
        """Called when messages have been handled or answered."""

    def _answer(self, message: bytes) -> Answer:
        return self._handler.handle(message, self._peer, self._notify, self)

    def _reloaded(self, message: bytes) -> bytes | None:
        return reloaded_answer(message, self._owed)

    def _write_notification(self, params: dict[str, Any]) -> None:
        self._write_answer(_OBJECT, encode(request_object("stream", params)))

    def _takes_more(self) -> bool:
        return not self._is_full()

    def _saturated(self) -> bool:
        return len(self._pending) >= self._max_pending or self._is_full() or self._subscriptions.has_long_result

    def _goes_on(self) -> bool:
        """Whether a message waits that can be handled now."""
        if not self._waiting or self._saturated():
            return False
        # Found out once: it may be a long message.
        self._next_asks_long = self._asks_long and (self._next_asks_long or asks_for_chunks(self._waiting[0]))
        return not self._next_asks_long

    def _proceed(self) -> None:
        """Handle what waits, as far as there is room; what is more than a turn's share, in the next one."""
        for _ in range(TURN):
            if not self._goes_on():
                break
            self._handle(self._waiting.popleft())
        self._streams_settled()

    def _streams_settled(self) -> None:
        # A long result that has come to its end is what others may have waited for.
        if self._goes_on() and not self._has_next_turn:
            self._has_next_turn = True
            self._reactor.call_soon(self._next_turn)
        self._settle()

    def _next_turn(self) -> None:
        self._has_next_turn = False
        self._proceed()

    def _handle(self, message: bytes) -> None:
        answer = self._answer(message)
        if isinstance(answer, Future):
            asks_long = asks_for_chunks(message)
            self._asks_long = self._asks_long or asks_long
            self._pending.append(message)
            answer.add_done_callback(
                lambda future: self._reactor.call_soon(self._answered, message, future.result(), asks_long)
            )
        else:
            self._give(message, answer)

    def _answered(self, message: bytes, answer: bytes | LongResult | None, asks_long: bool) -> None:
        self._pending.remove(message)
        self._asks_long = self._asks_long and not asks_long
        self._give(message, answer)
        self._proceed()

    def _give(self, message: bytes, answer: bytes | LongResult | None) -> None:
        if isinstance(answer, LongResult):
            stream = ResultStream(answer.text)
            result = {"subscription": self.subscribe(stream), **stream.head}
            answer = encode(result_object(answer.id, result))
        if answer is not None:
            self._write_answer(message, answer)

    def _notify(self, message: bytes) -> None:
        self._reactor.call_soon(self._write_progress, message)
