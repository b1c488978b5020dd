"""Running a rollout: its course, with threads, a clock, Ctrl-C and the record."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .course import Course, Outcome, Plan, State
from .member import Answer, Member
from .record import Record
from .text import outcome_text

Act = Callable[[Member], Answer]
"""Has an instance do it; called in a thread of its own."""


class Report(NamedTuple):
    """A thread's answer for the member with this number, or Ctrl-C, without an answer.

    `lost` is the reason why this process must not go on, and wait for nothing more.
    """

    number: int = -1
    answer: Answer | None = None
    seconds: float = 0.0
    lost: str = ""


class Run:
    """One run of a rollout over `members`, with the `pause` in seconds between two batches; `say` tells a person.

    Each outcome is in the record before the next batch is asked. A record that can't be written does not end the run.
    """

    def __init__(
        self, members: Sequence[Member], plan: Plan, pause: float, act: Act, record: Record, say: Callable[[str], Any]
    ) -> None:
        self._members = members
        self._course = Course(len(members), plan)
        self._pause = pause
        self._act = act
        self._record = record
        self._say = say
        # A signal handler may put into this queue at any time.
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()

    def complete(self) -> None:
        """Return when the rollout has ended. Ctrl-C ends it after the batch at work, a second one at once."""
        course = self._course
        self._record.on_lost = lambda reason: self._reports.put(Report(lost=reason))
        if self._record.lost:
            self._record.on_lost(self._record.lost)
        with _on_interrupt(lambda: self._reports.put(Report())):
            while course.state is not State.ENDED:
                batch = course.next_batch()
                for number in batch:
                    self._members[number].asked = True
                self._save()
                for number in batch:
                    threading.Thread(target=self._work, args=(number,), daemon=True).start()
                while course.state in (State.ASKING, State.FINISHING):
                    self._take(self._reports.get())
                self._wait()
        for member, outcome in zip(self._members, course.outcomes):
            if member.outcome is None and outcome is not None:
                why = "it was not waited for" if outcome is Outcome.UNKNOWN else ""
                member.take(Answer(outcome, 1, why))
        assert course.end is not None
        self._record.finish(course.end.value)

    def _wait(self) -> None:
        """Until the pause is over."""
        over = time.monotonic() + self._pause
        while self._course.state is State.PAUSING and (left := over - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._take(self._reports.get(timeout=left))

    def _work(self, number: int) -> None:
        began = time.monotonic()
        try:
            answer = self._act(self._members[number])
        except Exception as error:
            # A fault of this program must not leave the rollout waiting.
            answer = Answer(Outcome.UNKNOWN, 1, f"{type(error).__name__}: {error}")
        self._reports.put(Report(number, answer, time.monotonic() - began))

    def _take(self, report: Report) -> None:
        if report.lost:
            self._say(f"the rollout ends at once: {report.lost}")
            while self._course.state is not State.ENDED:
                self._course.interrupt()
            return
        if report.answer is None:
            self._course.interrupt()
            if self._course.state is State.FINISHING:
                self._say("the rollout ends after this batch; Ctrl-C again does not wait for it")
            return
        member = self._members[report.number]
        member.take(report.answer, report.seconds)
        self._save()
        done = sum(other.outcome is not None for other in self._members)
        self._say(f"{done} of {len(self._members)}: {member.described()}: {outcome_text(member.as_record())}")
        self._course.report(report.number, report.answer.outcome)

    def _save(self) -> None:
        problem = self._record.problem
        self._record.save()
        if self._record.problem and not problem:
            self._say(self._record.problem)


@contextlib.contextmanager
def _on_interrupt(call: Callable[[], Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda signum, frame: call())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
