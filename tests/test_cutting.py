"""Which requests an answer names as cut: never more than were cut, and those that go on first."""

from __future__ import annotations

from typing import Any

import pytest

from flask_ctl.lifecycle.cutting import MAX_CUT_REQUESTS, cut_off
from flask_ctl.workers.hub.cutting import left_of


class Scene:
    """A server, and what it drains: requests by name, before and after the cut."""

    def __init__(self, before: str, after: str, count: int) -> None:
        self._in_flight = [before, after]
        self._count = count

    def cut(self) -> int:
        return self._count

    def requests_in_flight(self) -> dict[Any, Any]:
        names = self._in_flight.pop(0)
        return {name: {"route": name, "age": ord("z") - ord(name)} for name in names}


@pytest.mark.parametrize(
    ("before", "after", "count", "named"),
    [
        ("", "", 0, ""),
        ("", "", 2, ""),
        ("ab", "ab", 2, "ab"),
        ("ab", "", 2, "ab"),
        ("ab", "b", 1, "b"),
        ("ab", "a", 2, "ab"),
        ("a", "ab", 2, "a"),
        ("ba", "ba", 2, "ab"),
        ("ab", "ab", 0, ""),
    ],
)
def test_no_more_are_named_than_were_cut(before: str, after: str, count: int, named: str) -> None:
    scene: Any = Scene(before, after, count)
    cut, requests = cut_off(scene, scene)
    assert (cut, "".join(request["route"] for request in requests)) == (count, named)


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ({}, "abc"),
        ({(1, "x"): {}}, "c"),
        ({(1, "x"): {2: {}}}, "bc"),
        ({(1, "y"): {}}, "abc"),
        ({(1, "x"): {1: {}, 3: {}}, (2, "x"): {}}, "a"),
    ],
)
def test_a_worker_that_does_not_answer_again_still_has_its_requests(after: Any, left: str) -> None:
    before: Any = {(1, "x"): {1: "a", 2: "b"}, (2, "x"): {1: "c"}}
    assert left_of(before, after) == list[Any](left)


def test_only_the_oldest_are_named() -> None:
    names = "".join(map(chr, range(ord("A"), ord("z"))))
    scene: Any = Scene(names, names, 100)
    assert [request["route"] for request in cut_off(scene, scene)[1]] == list(names[:MAX_CUT_REQUESTS])
