"""What an instance remembers of the commands that came over NATS."""

from __future__ import annotations

import pytest

from flask_ctl.fleet.memory import MAX_AGE, MAX_ANSWERS, MAX_IDS, CommandMemory


class Clock:
    """The time that the memory sees."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> CommandMemory:
    return CommandMemory(clock)


def test_a_command_is_known_from_its_beginning_and_its_first_answer_counts(memory: CommandMemory) -> None:
    assert memory.find("a") is None
    assert memory.begin("a")
    running = memory.find("a")
    assert running is not None
    assert (running.done, running.answer) == (False, None)
    memory.finish("a", b"first")
    memory.finish("a", b"second")
    assert (running.done, running.answer) == (True, b"first")


def test_an_answer_to_nothing_is_not_kept(memory: CommandMemory) -> None:
    memory.finish("a", b"answer")
    assert memory.find("a") is None


def test_a_command_is_forgotten_after_its_time_unless_it_still_runs(memory: CommandMemory, clock: Clock) -> None:
    for id in ("done", "running"):
        memory.begin(id)
    memory.finish("done", b"answer")
    clock.now += MAX_AGE - 1
    assert memory.find("done") is not None
    clock.now += 1
    assert memory.find("done") is None
    assert memory.find("running") is not None


def test_the_oldest_that_is_done_makes_room_for_one_more_than_the_most(memory: CommandMemory) -> None:
    for number in range(MAX_IDS):
        assert memory.begin(str(number))
    assert not memory.begin("refused: all still run")
    memory.finish("5", b"answer")
    assert memory.begin("new")
    assert memory.find("5") is None
    assert memory.find("0") is not None


def test_the_oldest_answers_give_way_to_new_ones_but_not_that_the_commands_have_run(memory: CommandMemory) -> None:
    half = b"x" * (MAX_ANSWERS // 2)
    for id in ("a", "b", "c"):
        memory.begin(id)
        memory.finish(id, half)
    answers = {id: seen.answer for id in "abc" if (seen := memory.find(id)) is not None and seen.done}
    assert answers == {"a": None, "b": half, "c": half}


def test_an_answer_that_is_too_long_alone_is_not_kept(memory: CommandMemory) -> None:
    memory.begin("a")
    memory.finish("a", b"x" * (MAX_ANSWERS + 1))
    seen = memory.find("a")
    assert seen is not None
    assert (seen.done, seen.answer) == (True, None)


@pytest.mark.parametrize(
    ("fences", "pass_"), [([3], [True]), ([3, 3], [True, True]), ([3, 4, 3], [True, True, False])], ids=str
)
def test_a_lower_fence_than_one_seen_is_refused(memory: CommandMemory, fences: list[int], pass_: list[bool]) -> None:
    assert [memory.passes(fence) for fence in fences] == pass_


def test_all_of_it_goes_over_an_exec(memory: CommandMemory, clock: Clock) -> None:
    for id in ("done", "running", "long"):
        memory.begin(id)
    memory.finish("done", b"answer\xff")
    memory.finish("long", b"x" * (MAX_ANSWERS + 1))
    memory.passes(7)
    after = CommandMemory(clock)
    after.restore_state(memory.export_state())
    assert not after.passes(6)
    assert {id: after.find(id) for id in ("done", "running", "long")} == {
        id: memory.find(id) for id in ("done", "running", "long")
    }
