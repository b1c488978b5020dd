"""The course of a rollout as a state machine: which targets are asked next, and when it ends.

Nothing here knows a clock, a file or a socket: `run` asks the targets, and reports each outcome.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Outcome(enum.Enum):
    """What has come of one target."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing has changed there: the old code serves."""
    CUT = "cut"
    """It is done, but requests were cut, or hooks or threads left unfinished."""
    FAILED = "failed"
    """The new code serves and is not healthy, or the process has ended."""
    UNKNOWN = "unknown"
    """It was asked, and has not answered."""
    UNREACHABLE = "unreachable"
    """It could not be asked."""
    NOT_STARTED = "not started"


FAILURES = frozenset({Outcome.REFUSED, Outcome.CUT, Outcome.FAILED, Outcome.UNREACHABLE})
"""What counts against the limit of failures. UNKNOWN does not: it ends the rollout at once."""


class State(enum.Enum):
    """Where a rollout is."""

    READY = "nothing has been asked"
    ASKING = "a batch is at work"
    PAUSING = "the next batch waits"
    FINISHING = "the last batch is at work: the rollout was interrupted"
    ENDED = "nothing more is asked"


class Event(enum.Enum):
    """What moves a rollout from state to state."""

    BEGIN = "the first batch may be asked"
    NEXT = "the batch has ended, and others wait"
    LAST = "the batch has ended, and no other waits"
    STOP = "the batch has ended, and the rollout must not go on"
    CONTINUE = "the pause is over"
    INTERRUPT = "the operator wants it to end"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.READY, Event.BEGIN): State.ASKING,
    (State.READY, Event.INTERRUPT): State.ENDED,
    (State.ASKING, Event.NEXT): State.PAUSING,
    (State.ASKING, Event.LAST): State.ENDED,
    (State.ASKING, Event.STOP): State.ENDED,
    (State.ASKING, Event.INTERRUPT): State.FINISHING,
    (State.PAUSING, Event.CONTINUE): State.ASKING,
    (State.PAUSING, Event.INTERRUPT): State.ENDED,
    (State.FINISHING, Event.NEXT): State.ENDED,
    (State.FINISHING, Event.LAST): State.ENDED,
    (State.FINISHING, Event.STOP): State.ENDED,
    # What has not answered is unknown.
    (State.FINISHING, Event.INTERRUPT): State.ENDED,
    (State.ENDED, Event.INTERRUPT): State.ENDED,
}


class End(enum.Enum):
    """Why a rollout has ended."""

    FINISHED = "finished"
    TOO_MANY_FAILURES = "too many failures"
    UNKNOWN_OUTCOME = "an unknown outcome"
    INTERRUPTED = "interrupted"


class Plan(NamedTuple):
    """How many targets are asked at a time: first `canary`, if that is not 0, then `batch`; and what ends the rollout.

    `max_failures` is for the whole of it: one failure more ends it.
    """

    batch: int = 1
    canary: int = 0
    max_failures: int = 0


class Course:
    """One walk through TRANSITIONS. The targets are numbers, from 0, in the order in which they are asked."""

    def __init__(self, targets: int, plan: Plan) -> None:
        if plan.batch < 1:
            raise ValueError("a batch is of one target at least")
        self.state = State.READY
        self.end: End | None = None
        self.outcomes: list[Outcome | None] = [None] * targets
        self._plan = plan
        self._asked = 0
        self._at_work: set[int] = set()

    @property
    def failures(self) -> int:
        """The number of failures up to now."""
        return sum(outcome in FAILURES for outcome in self.outcomes)

    def next_batch(self) -> list[int]:
        """Begin, or go on after the pause: the targets to ask now."""
        self._advance(Event.BEGIN if self.state is State.READY else Event.CONTINUE)
        size = self._plan.canary if self._plan.canary and not self._asked else self._plan.batch
        batch = list(range(self._asked, min(self._asked + size, len(self.outcomes))))
        self._asked += len(batch)
        self._at_work = set(batch)
        if not batch:
            self._end_batch()
        return batch

    def report(self, number: int, outcome: Outcome) -> None:
        """What has come of a target that was asked; what comes after the end is not taken."""
        if number not in self._at_work:
            return
        self._at_work.remove(number)
        self.outcomes[number] = outcome
        if not self._at_work:
            self._end_batch()

    def interrupt(self) -> None:
        """The batch at work is the last one; the second time its targets are not waited for either."""
        interrupted = self.state is not State.ENDED
        self._advance(Event.INTERRUPT)
        if interrupted and self.state is State.ENDED:
            self._close(End.INTERRUPTED)

    def _end_batch(self) -> None:
        ends = self._reason_to_stop()
        event = Event.STOP if ends else Event.LAST if self._asked == len(self.outcomes) else Event.NEXT
        was_interrupted = self.state is State.FINISHING
        self._advance(event)
        if self.state is State.ENDED:
            complete = event is Event.LAST
            self._close(ends or (End.INTERRUPTED if was_interrupted and not complete else End.FINISHED))

    def _reason_to_stop(self) -> End | None:
        if Outcome.UNKNOWN in self.outcomes:
            return End.UNKNOWN_OUTCOME
        return End.TOO_MANY_FAILURES if self.failures > self._plan.max_failures else None

    def _close(self, end: End) -> None:
        self.end = end
        for number, outcome in enumerate(self.outcomes):
            if outcome is None:
                self.outcomes[number] = Outcome.UNKNOWN if number in self._at_work else Outcome.NOT_STARTED
        self._at_work.clear()

    def _advance(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]


def number_of(amount: str, total: int, *, at_least: int = 0) -> int:
    """A number, or a share of `total`, rounded down: ``3``, ``25%``. Raises ValueError for anything else."""
    share = amount.endswith("%")
    digits = amount.removesuffix("%")
    if not (digits.isascii() and digits.isdigit()) or (share and int(digits) > 100):
        raise ValueError(f"{amount!r} is neither a number nor a percentage")
    return max(at_least, int(digits) * total // 100 if share else int(digits))


def count_outcomes(outcomes: Iterable[Outcome | None]) -> dict[str, int]:
    """How many targets have each outcome, those that no target has left out."""
    found = list(outcomes)
    return {outcome.value: found.count(outcome) for outcome in Outcome if outcome in found}
