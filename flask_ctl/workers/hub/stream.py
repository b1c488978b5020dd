"""A stream of the items of all workers."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from ...dispatch.futures import gather, then
from ...dispatch.streams import PIECE, Message, Pulled, Stream
from ...errors import CommandError
from ...inspection.feeds import StreamStart
from ...inspection.questions import Answer
from ...protocol.jsonrpc import encode

INTERVAL = 0.2
"""Seconds between two rounds of questions to the workers."""

LEAST_ROOM = 8192
"""Bytes of items, at least, that a worker gives in a round."""


class Place(NamedTuple):
    """Where the next step of a worker's stream begins, see `RingStream`, and whether there is more already."""

    after: int
    quiet: int
    more: bool


class Reader(NamedTuple):
    """One worker, or with the pid 0 the hub itself. A worker that has `ended` has nothing new to come.

    `read` asks for what is behind a place, None for the beginning, in so many bytes; of a worker that came later only
    what is later than a time, in seconds since the epoch.
    """

    pid: int
    generation: int
    read: Callable[[Place | None, int, float | None], Future[list[Answer]]]
    number: int
    """As that of `Worker`."""
    ended: bool = False


class WorkersStream(Stream):
    """The items of all workers: those of a round are in the order of their times.

    `readers` gives the live workers, and those that have left items at their end. All items are numbered anew, because
    each worker counts its own. `one` says that the stream is of one worker, with which it ends.
    """

    def __init__(
        self,
        name: str,
        start: StreamStart,
        head: dict[str, Any],
        readers: Callable[[], Sequence[Reader]],
        *,
        one: bool = False,
    ) -> None:
        self.name = name
        self.head = {"seq": 0, **head}
        self._follow = start.follow
        # A client that connects again gets every item that is later than its last one.
        self._lines = None if start.epoch else start.lines
        self._readers = readers
        self._one = one
        self._began = time.time()
        self._places: dict[int, Place] = {}
        self._unread: dict[int, int] = {}
        self._finished: set[int] = set()
        self._unanswered: dict[int, str] = {}
        self._first: list[dict[str, Any]] = []
        self._about: list[dict[str, Any]] = []
        self._ready: collections.deque[dict[str, Any]] = collections.deque([{"gap": True}] if start.epoch else [])
        self._begun = False
        self._seq = 0
        self._next = 0.0

    def pull(self) -> Pulled | Future[Pulled]:
        if self._ready:
            return self._pulled()
        unfinished = any(place.more for place in self._places.values())
        if time.monotonic() < self._next and not unfinished:
            return Pulled()
        self._next = time.monotonic() + INTERVAL
        readers = self._readers()
        losses = self._losses(readers)
        readers = [reader for reader in readers if reader.number not in self._finished]
        if self._one and self._begun and not readers:
            return Pulled(losses, end="the worker has ended")
        self._ready.extend(losses)
        self._places = {each.number: self._places[each.number] for each in readers if each.number in self._places}
        asked = [reader for reader in readers if self._is_due(reader)]
        room = max(LEAST_ROOM, PIECE // max(1, len(asked)))
        late = self._began if self._begun else None
        answers = gather([reader.read(self._places.get(reader.number), room, late) for reader in asked])
        return then(answers, lambda answers: self._merged(asked, [answer for (answer,) in answers]))

    def _losses(self, readers: Sequence[Reader]) -> list[dict[str, Any]]:
        """A message about each worker that has been seen, and of which there is nothing any more before it was read."""
        known = {reader.number for reader in readers}
        lost = [pid for number, pid in self._unread.items() if number not in known | self._finished]
        self._finished &= known
        self._unread = {reader.number: reader.pid for reader in readers if reader.pid}
        return [{"gap": True, "worker": pid} for pid in lost] if self._follow else []

    def _is_due(self, reader: Reader) -> bool:
        """Whether to ask a worker in this round: what there was at the beginning is read before all else."""
        place = self._places.get(reader.number)
        asks_first = place is None and reader.pid not in self._unanswered
        return self._begun or asks_first or (place is not None and place.more)

    def _merged(self, readers: Sequence[Reader], answers: Sequence[Answer]) -> Pulled:
        items: list[dict[str, Any]] = []
        asked = {reader.pid for reader in readers}
        unanswered = {pid: error for pid, error in self._unanswered.items() if pid not in asked}
        for reader, (pid, value) in zip(readers, answers):
            if isinstance(value, CommandError):
                # It is asked again, from where it was.
                unanswered[pid] = value.message
                continue
            answer = value[0]
            self._places[reader.number] = Place(answer["after"], answer["quiet"], answer["more"])
            if reader.ended and not answer["more"]:
                self._finished.add(reader.number)
            for message in answer["messages"]:
                if "item" in message:
                    # The hub's own have no worker, and those about a generation tell it themselves.
                    of = {"worker": pid} if pid else {}
                    items.append({"generation": reader.generation, **message["item"], **of})
                elif "about" in message:
                    self._about.append(message["about"])
                else:
                    self._ready.append({**message, "worker": pid})
        items.sort(key=lambda item: item["time"])
        if unanswered != self._unanswered:
            self._unanswered = unanswered
            errors = [{"worker": pid, "error": error} for pid, error in sorted(unanswered.items())]
            self._ready.append({"unanswered": errors})
        self._add(items)
        return self._pulled()

    def _add(self, items: list[dict[str, Any]]) -> None:
        if not self._begun:
            self._first = sorted([*self._first, *items], key=lambda item: item["time"])
            if self._lines is not None:
                self._first = self._first[len(self._first) - min(len(self._first), self._lines) :]
            if any(place.more for place in self._places.values()):
                return
            self._begun = True
            self._ready.append({"about": merged_about(self._about)})
            items, self._first = self._first, []
        self._ready.extend({"item": item} for item in items)

    def _pulled(self) -> Pulled:
        messages: list[Message] = []
        room = PIECE
        while self._ready and room > 0:
            message = self._ready.popleft()
            if "item" in message:
                self._seq += 1
                message = {"seq": self._seq, **message}
            room -= len(encode(message))
            messages.append(message)
        more = not self._begun or bool(self._ready) or any(place.more for place in self._places.values())
        return Pulled(messages, more, None if more or self._follow else "complete")


def merged_about(about: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What holds for all processes: of times the latest, of lists all that is in any of them."""
    merged: dict[str, Any] = {}
    for each in about:
        for name, value in each.items():
            known = merged.get(name)
            if isinstance(value, dict):
                merged[name] = {key: _later((known or {}).get(key), at) for key, at in value.items()}
            elif isinstance(value, list):
                merged[name] = sorted({*(known or []), *value})
            else:
                merged.setdefault(name, value)
    return merged


def _later(first: str | None, second: str | None) -> str | None:
    return max(first or "", second or "") or None
