"""What a hub makes of the items of its workers: every answer of theirs, in any order, and none."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from flask_ctl import CommandError
from flask_ctl.inspection.feeds import StreamStart
from flask_ctl.inspection.questions import Answer
from flask_ctl.inspection.ring import Ring
from flask_ctl.workers.hub import table
from flask_ctl.workers.hub.left import MAX_ENDED, LeftFeeds
from flask_ctl.workers.hub.stream import Place, Reader, WorkersStream


class Worker:
    """Answers with what the test puts into `answers`; `asked` are the places from which it was asked."""

    def __init__(self, pid: int, generation: int = 1) -> None:
        self.pid = pid
        self.generation = generation
        self.ended = False
        self.answers: list[Any] = []
        self.asked: list[tuple[Place | None, float | None]] = []

    def has(self, *times: str, more: bool = False, **fields: Any) -> None:
        messages: list[dict[str, Any]] = [{"item": {"time": each, **fields}} for each in times]
        if not self.answers and not self.asked:
            messages.insert(0, {"about": {"kept_since": {"WARNING": f"{self.pid}"}}})
        self.answers.append([{"messages": messages, "after": 7, "quiet": 5, "more": more}])

    def read(self, place: Place | None, room: int, late: float | None) -> Future[list[Answer]]:
        self.asked.append((place, late))
        future: Future[list[Answer]] = Future()
        nothing = [{"messages": [], "after": 7, "quiet": 5, "more": False}]
        future.set_result([Answer(self.pid, self.answers.pop(0) if self.answers else nothing)])
        return future

    def reader(self) -> Reader:
        return Reader(self.pid, self.generation, self.read, id(self), ended=self.ended)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Each call lets the time for another round come."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return lambda: now.__setitem__(0, now[0] + 1)


def pulled(stream: WorkersStream) -> tuple[list[Any], str | None]:
    """What comes until nothing more does at the moment, and how it ends."""
    messages: list[Any] = []
    while True:
        step = stream.pull()
        result = step.result() if isinstance(step, Future) else step
        messages += result.messages
        if result.end is not None or not result.more:
            return messages, result.end


def times(messages: list[Any]) -> list[str]:
    return [message["item"]["time"] for message in messages if "item" in message]


def test_items_of_all_come_in_the_order_of_their_times(clock: Callable[[], None]) -> None:
    first, second = Worker(1), Worker(2)
    first.has("1", "4")
    second.has("2", "3")
    stream = WorkersStream("logs", StreamStart(), {}, lambda: [first.reader(), second.reader()])
    messages, end = pulled(stream)
    assert messages[0] == {"about": {"kept_since": {"WARNING": "2"}}}
    assert times(messages) == ["1", "2", "3", "4"]
    assert [message["seq"] for message in messages[1:]] == [1, 2, 3, 4]
    assert [message["item"]["worker"] for message in messages[1:]] == [1, 2, 2, 1]
    assert end == "complete"


def test_what_was_there_at_the_beginning_is_read_to_its_end_before_the_last_lines_are_chosen(
    clock: Callable[[], None],
) -> None:
    first, second = Worker(1), Worker(2)
    first.has("1", "2", more=True)
    first.has("5", "6")
    second.has("3", "4")
    stream = WorkersStream("logs", StreamStart(lines=3), {}, lambda: [first.reader(), second.reader()])
    messages, end = pulled(stream)
    assert times(messages) == ["4", "5", "6"]
    assert end == "complete"
    assert first.asked == [(None, None), (Place(7, 5, True), None)]
    assert second.asked == [(None, None)]


def test_a_worker_that_comes_later_is_asked_for_what_is_later_than_the_beginning(clock: Callable[[], None]) -> None:
    workers = [Worker(1)]
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [each.reader() for each in workers])
    pulled(stream)
    workers.append(Worker(2, generation=2))
    workers[1].has("9")
    clock()
    messages, end = pulled(stream)
    assert (times(messages), end) == (["9"], None)
    ((place, late),) = workers[1].asked
    assert place is None
    assert late == pytest.approx(time.time(), abs=60)


def test_an_item_that_tells_a_generation_keeps_it(clock: Callable[[], None]) -> None:
    hub = Worker(0, generation=1)
    hub.has("1", generation=2)
    messages, _ = pulled(WorkersStream("events", StreamStart(), {}, lambda: [hub.reader()]))
    assert messages[-1]["item"] == {"time": "1", "generation": 2}


def test_a_silent_worker_is_named_and_so_is_its_return(clock: Callable[[], None]) -> None:
    silent, other = Worker(1), Worker(2)
    silent.answers = [CommandError("it does not answer"), CommandError("it does not answer")]
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [silent.reader(), other.reader()])
    messages, _ = pulled(stream)
    assert {"unanswered": [{"worker": 1, "error": "it does not answer"}]} in messages
    clock()
    assert pulled(stream)[0] == []
    clock()
    assert pulled(stream)[0] == [{"unanswered": []}]


def test_a_stream_that_was_begun_with_another_hub_has_a_gap_and_all_lines(clock: Callable[[], None]) -> None:
    worker = Worker(1)
    worker.has("1", "2", "3")
    start = StreamStart(lines=1, follow=True, after=9, epoch="other")
    messages, _ = pulled(WorkersStream("logs", start, {}, lambda: [worker.reader()]))
    assert {"gap": True} in messages
    assert times(messages) == ["1", "2", "3"]


def test_the_stream_of_one_worker_ends_with_it(clock: Callable[[], None]) -> None:
    workers = [Worker(1)]
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [each.reader() for each in workers], one=True)
    assert pulled(stream)[1] is None
    workers.clear()
    clock()
    assert pulled(stream) == ([{"gap": True, "worker": 1}], "the worker has ended")


def test_what_a_worker_leaves_at_its_end_is_read_to_its_end_and_nothing_is_missing(clock: Callable[[], None]) -> None:
    worker, other = Worker(1), Worker(2)
    readers = [worker, other]
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [each.reader() for each in readers])
    worker.has("1")
    pulled(stream)
    worker.ended = True
    worker.has("2", more=True)
    worker.has("3")
    clock()
    assert times(pulled(stream)[0]) == ["2", "3"]
    asked = len(worker.asked)
    clock()
    assert pulled(stream) == ([], None)
    assert len(worker.asked) == asked, "there is nothing new to come"
    readers.remove(worker)
    clock()
    assert pulled(stream) == ([], None)


@pytest.mark.parametrize("follow", [True, False])
def test_a_follower_is_told_of_a_worker_that_has_ended_without_leaving_anything(
    clock: Callable[[], None], follow: bool
) -> None:
    workers = [Worker(1), Worker(2)]
    stream = WorkersStream("logs", StreamStart(follow=follow), {}, lambda: [each.reader() for each in workers])
    pulled(stream)
    del workers[0]
    clock()
    assert pulled(stream)[0] == ([{"gap": True, "worker": 1}] if follow else [])
    clock()
    assert pulled(stream)[0] == []


def test_a_follower_is_told_of_what_was_left_and_pushed_out_before_it_was_read_to_its_end(
    clock: Callable[[], None],
) -> None:
    worker = Worker(1)
    readers = [worker]
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [each.reader() for each in readers])
    pulled(stream)
    worker.ended = True
    worker.answers.append(CommandError("it does not answer"))
    clock()
    pulled(stream)
    readers.clear()
    clock()
    assert pulled(stream)[0][0] == {"gap": True, "worker": 1}
    clock()
    assert pulled(stream)[0] == []


def ended(number: int, left: dict[str, Ring] | None) -> table.Worker:
    """A worker that has ended; here its number is its pid, too."""
    handle: Any = None
    hello: Any = SimpleNamespace(pid=number, figures=None)
    worker = table.Worker(hello, handle, lambda line: None, 1)
    worker.number, worker.left = number, left
    return worker


def test_what_as_many_workers_have_left_as_there_are_is_kept_without_the_workers() -> None:
    left = LeftFeeds()
    many = 2 * MAX_ENDED
    for number in range(many):
        worker = ended(number, {"logs": Ring(1)})
        left.add(worker, many)
    known = weakref.ref(worker)
    del worker
    assert known() is None
    assert [one.pid for one, _ in left.of("logs", None)] == list(range(many))
    left.add(ended(many, None), 3)
    assert [one.pid for one, _ in left.of("logs", None)] == list(range(MAX_ENDED, many))
    assert [one.pid for one, _ in left.of("logs", many - 1)] == [many - 1]


def test_the_stream_of_one_worker_ends_behind_what_it_has_left(clock: Callable[[], None]) -> None:
    worker = Worker(1)
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [worker.reader()], one=True)
    pulled(stream)
    worker.ended = True
    worker.has("9")
    clock()
    assert times(pulled(stream)[0]) == ["9"]
    clock()
    assert pulled(stream) == ([], "the worker has ended")


def test_the_pid_of_a_worker_that_has_ended_may_be_another_ones(clock: Callable[[], None]) -> None:
    workers = [Worker(1)]
    stream = WorkersStream("logs", StreamStart(follow=True), {}, lambda: [each.reader() for each in workers])
    pulled(stream)
    workers.clear()
    clock()
    pulled(stream)
    workers.append(Worker(1))
    clock()
    pulled(stream)
    assert workers[0].asked[0][0] is None
