"""Streams: results whose items come one after another, until the client ends it, leaves, or there are no more.

Nothing is pushed. What produces items appends them to a bounded ring; a stream reads there by a cursor of its own, as
far as its client reads. A client that is too slow misses items, and is told how many; the producer never waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from ..protocol.items import render_message
from ..protocol.jsonrpc import Id

MAX_STREAMS = 16
"""Streams of one app at the same time: each costs the control thread a look every PULL_INTERVAL."""

PIECE = 256 * 1024
"""Bytes of items that one pull gives at most, about; and characters of a long result in one message."""

MAX_RESULT = 64 * 1024 * 1024
"""Bytes of a long result."""

Message = Mapping[str, Any]
"""What a client gets beside the number of its stream.

``{"seq", "item"}``: an item, a JSON object. ``{"dropped", "from", "to"}``: so many items, from one number to the other,
were lost. ``{"gap": true}``: it is not known how many. ``{"about"}``: what the items can and can't show.
``{"unanswered"}``: the workers that do not answer now. ``{"seq", "chunk"}``: a part of a long result.
"""


class Pulled(NamedTuple):
    """The next messages; whether there are `more` at once; and the reason if the stream ends with them."""

    messages: Sequence[Message] = ()
    more: bool = False
    end: str | None = None


class Stream(ABC):
    """A command's result that has not come to its end. The control thread calls the methods."""

    head: dict[str, Any]
    """The members of the call's result, beside ``subscription``."""
    name = ""
    """The name of the command."""
    on_close: Callable[[Stream], Any] | None = None
    """Called when it is closed."""
    end: Callable[[str], Any] = staticmethod(lambda reason: None)
    """Tells its client a reason, and closes it. Set by the client's connection; on the control thread only."""

    @abstractmethod
    def pull(self) -> Pulled | Future[Pulled]:
        """What has come since the last call. Not called again before a Future is done."""

    def text(self, message: Message) -> str:
        """A message as a line for a person; empty for one that says nothing to a person."""
        return render_message(self.name, message.get("item", message))

    def close(self) -> None:
        """The client has left, or the stream is at its end. Called once."""
        if self.on_close is not None:
            self.on_close(self)


class LongResult(NamedTuple):
    """The result of a request, as JSON text that is too long for one message."""

    id: Id
    text: str


class ResultStream(Stream):
    """A result that is too long for one message, as pieces of its JSON text."""

    def __init__(self, text: str) -> None:
        self.head = {"chunks": -(-len(text) // PIECE)}
        self._text = text
        self._sent = 0

    def pull(self) -> Pulled:
        piece = self._text[self._sent * PIECE : (self._sent + 1) * PIECE]
        self._sent += 1
        more = self._sent < self.head["chunks"]
        return Pulled([{"seq": self._sent, "chunk": piece}], more, None if more else "complete")
