"""At most once: the ids of commands that an instance has seen, with their answers, and the fence of rollouts.

Bounded by number, by age, and by the bytes of all answers. It goes over the exec of a reload, because the reload may be
the very command that is asked for again.
"""

from __future__ import annotations

import base64
import collections
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_IDS = 1024
MAX_AGE = 3600.0
"""Seconds that an answer is known."""
MAX_ID = 128
"""Characters of an id."""
MAX_ANSWERS = 1024 * 1024
"""Bytes of all answers; the oldest are forgotten first, but not that their commands have run."""


@dataclass
class Seen:
    """A command with an id: when it came, on the monotonic clock, and its answer."""

    at: float
    done: bool = False
    answer: bytes | None = None
    """None while it runs, and once the answer is forgotten."""


class CommandMemory:
    """What one instance has seen. Belongs to the control thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: collections.OrderedDict[str, Seen] = collections.OrderedDict()
        self._size = 0
        self.life = secrets.token_hex(4)
        """Goes over an exec, and not into another process: a hub that follows one that was killed has none of this."""
        self.fence = 0
        """The highest revision of a lease that a command has had."""

    def find(self, id: str) -> Seen | None:
        """The command with this id; None for a new one."""
        self._forget_old()
        return self._seen.get(id)

    def begin(self, id: str) -> bool:
        """A new command begins; False if there is no room, because all that are known still run."""
        self._forget_old()
        if len(self._seen) >= MAX_IDS and not self._make_room():
            return False
        self._seen[id] = Seen(self._clock())
        return True

    def finish(self, id: str, answer: bytes) -> None:
        """Its answer; the first one counts."""
        seen = self._seen.get(id)
        if seen is None or seen.done:
            return
        seen.done, seen.answer = True, answer
        self._size += len(answer)
        for other in self._seen.values():
            if self._size <= MAX_ANSWERS:
                break
            self._drop_answer(other)

    def passes(self, fence: int) -> bool:
        """Whether a command under a lease of this revision may run; a lower one is refused from now on."""
        if fence < self.fence:
            return False
        self.fence = fence
        return True

    def export_state(self) -> dict[str, Any]:
        """For the next image of this process; times are of the same monotonic clock."""
        seen = {
            id: [one.at, one.done, one.answer and base64.b85encode(one.answer).decode()]
            for id, one in self._seen.items()
        }
        return {"life": self.life, "fence": self.fence, "seen": seen}

    def restore_state(self, state: dict[str, Any]) -> None:
        """What the previous image has seen."""
        self.life, self.fence = state["life"], state["fence"]
        for id, (at, done, answer) in state["seen"].items():
            known = None if answer is None else base64.b85decode(answer)
            self._seen[id] = Seen(at, done, known)
            self._size += len(known or b"")

    def _forget_old(self) -> None:
        now = self._clock()
        while self._seen:
            id, oldest = next(iter(self._seen.items()))
            if now - oldest.at < MAX_AGE or not oldest.done:
                break
            self._forget(id)

    def _make_room(self) -> bool:
        done = next((id for id, seen in self._seen.items() if seen.done), None)
        if done is not None:
            self._forget(done)
        return done is not None

    def _forget(self, id: str) -> None:
        self._drop_answer(self._seen.pop(id))

    def _drop_answer(self, seen: Seen) -> None:
        self._size -= len(seen.answer or b"")
        seen.answer = None
