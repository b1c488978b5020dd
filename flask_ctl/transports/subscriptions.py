"""The streams of one client: what it has subscribed to, and when the next items are fetched for it."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..dispatch.streams import Message, Pulled, ResultStream, Stream
from .reactor import Reactor

PULL_INTERVAL = 0.1
"""Seconds between two looks for new items."""

SIGN_OF_LIFE = 15.0
"""Seconds without an item after which the client gets an empty message, which also shows whether it is still there."""

logger = logging.getLogger("flask_ctl")


class Subscription:
    """One stream of a client, as text or as notifications."""

    def __init__(self, stream: Stream, *, plain: bool) -> None:
        self.stream = stream
        self.plain = plain
        self.pulling = False
        self.seq = stream.head.get("seq", 0)
        self.told = time.monotonic()


class Subscriptions:
    """Pulls a client's streams while it has room for more. Lives on the reactor's thread.

    `write` sends a notification about a stream, with its parameters, `write_text` a line of text. `settle` is called
    when something has been written.
    """

    def __init__(
        self,
        reactor: Reactor,
        write: Callable[[dict[str, Any]], Any],
        write_text: Callable[[str], Any],
        has_room: Callable[[], bool],
        settle: Callable[[], Any],
    ) -> None:
        self._reactor = reactor
        self._write = write
        self._write_text = write_text
        self._has_room = has_room
        self._settle = settle
        self._open: dict[int, Subscription] = {}
        self._numbers = itertools.count(1)
        self._more = False
        self._closed = False
        self._next_pull = 0.0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def has_long_result(self) -> bool:
        """Whether the client has not taken in the whole of a long result, of which it gets one at a time."""
        return any(isinstance(each.stream, ResultStream) for each in self._open.values())

    def begin(self, stream: Stream, *, plain: bool = False) -> int:
        """Subscribe the client; the number of the stream."""
        number = next(self._numbers)
        if self._closed:
            # The client left before the answer.
            stream.close()
            return number
        self._open[number] = Subscription(stream, plain=plain)
        stream.end = lambda reason: self._end(number, reason)
        # After the answer to the call.
        self._reactor.call_soon(self.pull)
        return number

    def cancel(self, number: int) -> bool:
        """End one stream; whether it was open."""
        return self._end(number, "cancelled")

    def end_all(self, reason: str) -> None:
        """Tell the client that its streams end, and why."""
        for number in tuple(self._open):
            self._end(number, reason)

    def close(self) -> None:
        """The client is gone."""
        self._closed = True
        subscriptions, self._open = self._open, {}
        for subscription in subscriptions.values():
            subscription.stream.close()

    def resume(self) -> None:
        """The client has read something: fetch what waits for it."""
        if self._more and self._has_room():
            self._more = False
            self._reactor.call_soon(self.pull)

    def tick(self) -> None:
        """Called now and then: go on although a failure of the reactor has cost its timers."""
        if self._open and time.monotonic() > self._next_pull + 1.0:
            self.pull()

    def pull(self) -> None:
        """Fetch what has come, for each stream."""
        for number, subscription in tuple(self._open.items()):
            if not self._has_room():
                self._more = True
            elif not subscription.pulling:
                self._pull(number, subscription)
        now = time.monotonic()
        if self._open and now >= self._next_pull:
            self._next_pull = now + PULL_INTERVAL
            self._reactor.call_later(PULL_INTERVAL, self.pull)

    def _pull(self, number: int, subscription: Subscription) -> None:
        try:
            pulled = subscription.stream.pull()
        except Exception as error:
            self._fail(number, error)
            return
        if isinstance(pulled, Future):
            subscription.pulling = True
            pulled.add_done_callback(lambda future: self._reactor.call_soon(self._pulled, number, subscription, future))
        else:
            self._take(number, subscription, pulled)

    def _pulled(self, number: int, subscription: Subscription, future: Future[Pulled]) -> None:
        subscription.pulling = False
        if self._open.get(number) is not subscription:
            return
        error = future.exception()
        if error is not None:
            self._fail(number, error)
        else:
            self._take(number, subscription, future.result())

    def _take(self, number: int, subscription: Subscription, pulled: Pulled) -> None:
        for message in pulled.messages:
            self._send(number, subscription, message)
        if pulled.end is not None:
            self._end(number, pulled.end)
            return
        self._more = self._more or pulled.more
        if time.monotonic() - subscription.told > SIGN_OF_LIFE and not subscription.plain:
            self._send(number, subscription, {"seq": subscription.seq})
        # Which resumes if there is more, and room for it.
        self._settle()

    def _send(self, number: int, subscription: Subscription, message: Message) -> None:
        subscription.told = time.monotonic()
        subscription.seq = message.get("seq", subscription.seq)
        if subscription.plain:
            if text := subscription.stream.text(message):
                self._write_text(text)
        else:
            self._write({"subscription": number, **message})

    def _fail(self, number: int, error: BaseException) -> None:
        logger.error("a stream has failed", exc_info=error)
        self._end(number, "it has failed; the server's log tells why")

    def _end(self, number: int, reason: str) -> bool:
        subscription = self._open.pop(number, None)
        if subscription is None:
            return False
        subscription.stream.close()
        if not subscription.plain:
            self._write({"subscription": number, "end": reason})
        elif reason != "complete":
            self._write_text(f"— {reason} —")
        self._settle()
        return True
