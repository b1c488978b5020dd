"""The last items of a kind, for streams: written by any thread without a lock, read by one."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ..dispatch.streams import PIECE, Message, Pulled, Stream
from ..protocol.jsonrpc import encode
from ..system.native import threading

Keep = Callable[[Any], bool]
"""Whether an item is for a reader."""

AsItem = Callable[[Any], dict[str, Any]]
"""Makes the JSON object of what a ring holds."""

INBOX = 4096
"""Items of a shelf, at least, that wait until the reader numbers them."""


class Ring:
    """Items with numbers from 1 on, in shelves of a size each: `shelf` chooses one for an item.

    `append` may be called in any thread and in signal handlers: it takes no lock, so that neither these nor a forked
    child can find one held. The other methods are for the threads that read.
    """

    def __init__(self, *sizes: int, shelf: Callable[[Any], int] = lambda item: 0) -> None:
        self._shelf_of = shelf
        self._shelves: Sequence[collections.deque[tuple[int, Any]]] = [collections.deque(maxlen=size) for size in sizes]
        self._inboxes = [_Inbox(max(size, INBOX)) for size in sizes]
        self._order = itertools.count().__next__
        self._last = 0
        self._reset_lock()

    @property
    def last(self) -> int:
        """The number of the newest item, 0 before the first."""
        self._take()
        return self._last

    def append(self, item: Any) -> None:
        """Add an item; the oldest one of its shelf leaves."""
        self._inboxes[self._shelf_of(item)].append((self._order(), item))

    def clear(self) -> None:
        """Forget all items, as in a forked child, which has those of its parent, and a copy of a reader's lock."""
        self._reset_lock()
        for shelf, inbox in zip(self._shelves, self._inboxes):
            shelf.clear()
            inbox.take()

    def after(self, number: int) -> list[tuple[int, Any]]:
        """The items behind the one with that number, each with its own, in order."""
        self._take()
        if number >= self._last:
            return []
        return list(heapq.merge(*([pair for pair in shelf if pair[0] > number] for shelf in self._shelves)))

    def oldest(self, shelf: int = 0) -> Any:
        """The oldest item of a shelf; None if that is empty."""
        self._take()
        return self._shelves[shelf][0][1] if self._shelves[shelf] else None

    def is_full(self, shelf: int = 0) -> bool:
        """Whether the next item of a shelf pushes out its oldest one."""
        self._take()
        return len(self._shelves[shelf]) == self._shelves[shelf].maxlen

    def export_state(self, limit: int) -> dict[str, Any]:
        """The newest items, of `limit` bytes as JSON at most, for the next image of this process."""
        newest: list[tuple[int, Any]] = []
        for pair in reversed(self.after(0)):
            limit -= len(encode(pair))
            if limit < 0:
                break
            newest.append(pair)
        return {"last": self.last, "items": newest[::-1]}

    def restore_state(self, state: dict[str, Any], make: Callable[[Any], Any] = lambda item: item) -> None:
        """Continue with the items that the previous image has exported, which `make` makes of JSON.

        What this one has appended already comes behind them.
        """
        self._last = state["last"]
        for number, item in ((number, make(item)) for number, item in state["items"]):
            self._shelves[self._shelf_of(item)].append((number, item))

    def _take(self) -> None:
        """Number what has been appended, and what was lost before."""
        with self._lock:
            taken: list[tuple[int, Any]] = []
            for inbox in self._inboxes:
                items, lost = inbox.take()
                taken += items
                self._last += lost
            for _, item in sorted(taken, key=lambda pair: pair[0]):
                self._last += 1
                self._shelves[self._shelf_of(item)].append((self._last, item))

    def _reset_lock(self) -> None:
        self._lock = threading.Lock()


class _Inbox:
    """Items that any thread appends, without a lock, and a reader takes."""

    def __init__(self, size: int) -> None:
        self._items: collections.deque[tuple[int, Any]] = collections.deque(maxlen=size)
        self._appended, self._number = 0, itertools.count(1).__next__
        self._taken = 0

    def append(self, item: tuple[int, Any]) -> None:
        self._items.append(item)
        # After that: what is counted is in the inbox, or has been pushed out of it.
        self._appended = self._number()

    def take(self) -> tuple[list[tuple[int, Any]], int]:
        """What has been appended since the last call, and the number of items that were pushed out."""
        taken = []
        while self._items:
            taken.append(self._items.popleft())
        lost = max(0, self._appended - self._taken - len(taken))
        self._taken += lost + len(taken)
        return taken, lost


class RingStream(Stream):
    """What is in a ring, and with `follow` what comes there, as far as `keep` says."""

    def __init__(
        self,
        ring: Ring,
        as_item: AsItem,
        *,
        keep: Keep = lambda item: True,
        after: int | None = None,
        lines: int | None = None,
        follow: bool = False,
        head: dict[str, Any] | None = None,
        about: dict[str, Any] | None = None,
        name: str = "",
        quiet: int = 0,
        room: int = PIECE,
        gap: bool = False,
    ) -> None:
        """Begins behind the number `after`, else with the last `lines` kept items, after a `gap` and `about` if given.

        `lines` is None for all. What is missing up to the number `quiet` is not told. A pull gives `room` bytes.
        """
        self._ring = ring
        self._as_item = as_item
        self._keep = keep
        self._follow = follow
        self._about = about
        self.name = name
        # What is there now stays for this reader, and may have holes where items of a shelf have left.
        self._backlog: collections.deque[tuple[int, Any]] = collections.deque()
        present = ring.after(0)
        last = present[-1][0] if present else ring.last
        self._cursor = last if after is None else min(after, last)
        self.quiet = last if after is None else quiet
        """The number up to which holes are those of the beginning."""
        self._room = room
        self._gap = gap
        if after is None and lines != 0:
            self._backlog.extend([pair for pair in present if keep(pair[1])][-(lines or 0) :])
        self.head = {"seq": self.cursor, **(head or {})}

    @property
    def cursor(self) -> int:
        """The number behind which it goes on."""
        return self._backlog[0][0] - 1 if self._backlog else self._cursor

    def pull(self) -> Pulled:
        messages: list[Message] = []
        if self._gap:
            messages.append({"gap": True})
            self._gap = False
        if self._about is not None:
            messages.append({"about": self._about})
            self._about = None
        room = self._room
        while self._backlog and room > 0:
            room -= self._add(messages, *self._backlog.popleft())
        for number, item in self._ring.after(self._cursor):
            if room <= 0:
                break
            first = max(self._cursor, self.quiet) + 1
            if number > first:
                messages.append(dropped(first, number - 1))
            self._cursor = number
            if self._keep(item):
                room -= self._add(messages, number, item)
        more = room <= 0
        return Pulled(messages, more, None if self._follow or more else "complete")

    def _add(self, messages: list[Message], number: int, item: Any) -> int:
        """Append the message about an item; its size in bytes."""
        message = {"seq": number, "item": self._as_item(item)}
        messages.append(message)
        return len(encode(message))


def dropped(first: int, last: int) -> Message:
    """The message about items that left the ring before they were read."""
    return {"dropped": last - first + 1, "from": first, "to": last}
