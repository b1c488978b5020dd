"""The course of a rollout: a table of its states, and what ends it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_ctl_cli.rollout.course import (
    FAILURES,
    TRANSITIONS,
    Course,
    End,
    Event,
    Outcome,
    Plan,
    State,
    count_outcomes,
    number_of,
)

TABLE = """
            BEGIN    NEXT     LAST    STOP    CONTINUE  INTERRUPT
READY       ASKING   -        -       -       -         ENDED
ASKING      -        PAUSING  ENDED   ENDED   -         FINISHING
PAUSING     -        -        -       -       ASKING    ENDED
FINISHING   -        ENDED    ENDED   ENDED   -         ENDED
ENDED       -        -        -       -       -         ENDED
"""


def test_the_states_are_those_of_the_table() -> None:
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    expected = {
        (State[state], Event[event]): State[after]
        for state, *cells in rows
        for event, after in zip(head, cells)
        if after != "-"
    }
    assert expected == TRANSITIONS


D, R, C, F, U, X, N = (
    Outcome.DONE,
    Outcome.REFUSED,
    Outcome.CUT,
    Outcome.FAILED,
    Outcome.UNKNOWN,
    Outcome.UNREACHABLE,
    Outcome.NOT_STARTED,
)


def run(plan: Plan, outcomes: list[Outcome]) -> tuple[list[list[int]], list[Outcome | None], End | None]:
    """The batches that are asked, if each target comes to its outcome, and how it ends."""
    course, batches = Course(len(outcomes), plan), []
    while course.state is not State.ENDED:
        batch = course.next_batch()
        batches.append(batch)
        for number in batch:
            course.report(number, outcomes[number])
    return batches, course.outcomes, course.end


@pytest.mark.parametrize(
    ("plan", "outcomes", "batches", "after", "end"),
    [
        (Plan(), [D, D, D], [[0], [1], [2]], [D, D, D], End.FINISHED),
        (Plan(2), [D, D, D], [[0, 1], [2]], [D, D, D], End.FINISHED),
        (Plan(9), [D, D], [[0, 1]], [D, D], End.FINISHED),
        (Plan(2, canary=1), [D, D, D, D], [[0], [1, 2], [3]], [D, D, D, D], End.FINISHED),
        (Plan(1, canary=9), [D, D], [[0, 1]], [D, D], End.FINISHED),
        (Plan(), [], [[]], [], End.FINISHED),
        (Plan(), [D, R, D], [[0], [1]], [D, R, N], End.TOO_MANY_FAILURES),
        (Plan(2), [R, D, D], [[0, 1]], [R, D, N], End.TOO_MANY_FAILURES),
        (Plan(), [X, D], [[0]], [X, N], End.TOO_MANY_FAILURES),
        (Plan(), [C, D], [[0]], [C, N], End.TOO_MANY_FAILURES),
        (Plan(), [F, D], [[0]], [F, N], End.TOO_MANY_FAILURES),
        # Over the whole rollout, not for each batch.
        (Plan(1, max_failures=1), [R, D, X, D], [[0], [1], [2]], [R, D, X, N], End.TOO_MANY_FAILURES),
        (Plan(1, max_failures=1), [R, D, D], [[0], [1], [2]], [R, D, D], End.FINISHED),
        # At its end, too.
        (Plan(), [D, R], [[0], [1]], [D, R], End.TOO_MANY_FAILURES),
        # Whatever the limit.
        (Plan(1, max_failures=9), [U, D], [[0]], [U, N], End.UNKNOWN_OUTCOME),
        (Plan(2, max_failures=9), [U, D, D], [[0, 1]], [U, D, N], End.UNKNOWN_OUTCOME),
        (Plan(2), [U, R, D], [[0, 1]], [U, R, N], End.UNKNOWN_OUTCOME),
    ],
)
def test_it_goes_on_until_all_are_asked_or_an_outcome_ends_it(
    plan: Plan, outcomes: list[Outcome], batches: list[list[int]], after: list[Outcome], end: End
) -> None:
    assert run(plan, outcomes) == (batches, after, end)


def interrupted(course: Course) -> tuple[list[Outcome | None], End | None, State]:
    course.interrupt()
    return course.outcomes, course.end, course.state


def test_an_interrupt_lets_the_batch_end_and_a_second_one_does_not_wait_for_it() -> None:
    course = Course(4, Plan(2))
    assert course.next_batch() == [0, 1]
    assert interrupted(course) == ([None, None, None, None], None, State.FINISHING)
    course.report(0, D)
    course.report(1, D)
    assert (course.outcomes, course.end) == ([D, D, N, N], End.INTERRUPTED)

    course = Course(4, Plan(2))
    course.next_batch()
    course.report(1, D)
    course.interrupt()
    assert interrupted(course) == ([U, D, N, N], End.INTERRUPTED, State.ENDED)
    course.report(0, D)
    assert course.outcomes == [U, D, N, N], "what comes later is not taken"
    assert interrupted(course) == ([U, D, N, N], End.INTERRUPTED, State.ENDED)


def test_an_interrupt_between_batches_ends_it_at_once() -> None:
    course = Course(2, Plan())
    assert interrupted(course) == ([N, N], End.INTERRUPTED, State.ENDED)
    course = Course(2, Plan())
    course.next_batch()
    course.report(0, D)
    assert course.state is State.PAUSING
    assert interrupted(course) == ([D, N], End.INTERRUPTED, State.ENDED)


@pytest.mark.parametrize(("outcome", "end"), [(D, End.FINISHED), (R, End.TOO_MANY_FAILURES), (U, End.UNKNOWN_OUTCOME)])
def test_an_interrupt_during_the_last_batch_changes_nothing(outcome: Outcome, end: End) -> None:
    course = Course(1, Plan())
    course.next_batch()
    course.interrupt()
    course.report(0, outcome)
    assert (course.outcomes, course.end) == ([outcome], end)


@given(
    st.lists(st.sampled_from([D, R, C, F, U, X]), max_size=12),
    st.builds(Plan, st.integers(1, 5), st.integers(0, 5), st.integers(0, 4)),
)
def test_whatever_comes_of_the_targets_the_record_is_complete(outcomes: list[Outcome], plan: Plan) -> None:
    batches, after, end = run(plan, outcomes)
    asked = list(itertools.chain(*batches))
    assert asked == list(range(len(asked)))
    assert after == [*outcomes[: len(asked)], *[N] * (len(outcomes) - len(asked))]
    failures = [sum(outcome in FAILURES for outcome in outcomes[: batch[0]]) for batch in batches if batch]
    assert all(count <= plan.max_failures for count in failures), "a batch was asked after too many failures"
    assert (end is End.FINISHED) == (U not in after and sum(o in FAILURES for o in after) <= plan.max_failures)


@pytest.mark.parametrize(
    ("amount", "total", "number"),
    [("3", 10, 3), ("0", 10, 0), ("25%", 10, 2), ("25%", 3, 0), ("100%", 7, 7), ("99%", 100, 99), ("12", 3, 12)],
)
def test_a_share_is_rounded_down(amount: str, total: int, number: int) -> None:
    assert number_of(amount, total) == number
    assert number_of(amount, total, at_least=1) == max(1, number)


@pytest.mark.parametrize("amount", ["", "%", "-1", "1.5", "101%", "x", "٣"])
def test_what_is_no_number_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="neither a number nor a percentage"):
        number_of(amount, 10)


def test_outcomes_are_counted_the_good_ones_first() -> None:
    assert count_outcomes([N, D, D, None]) == {"done": 2, "not started": 1}
