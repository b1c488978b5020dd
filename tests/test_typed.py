"""Values with Python types made of JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Optional, Union

import pytest

from flask_ctl.errors import RemoteProtocolError
from flask_ctl.protocol.typed import from_json


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass
class Path:
    points: list[Point] = field(default_factory=list)
    end: Point | None = None


class Named(NamedTuple):
    x: int
    y: Optional[str]


VALID: list[tuple[Any, Any, Any]] = [
    (Any, {"a": [None]}, {"a": [None]}),
    (int, 1, 1),
    (float, 1, 1),
    (bool, True, True),
    (str, "x", "x"),
    (Optional[int], None, None),
    (Union[int, str], "x", "x"),
    (Literal["a", "b"], "b", "b"),
    (list[int], [1, 2], [1, 2]),
    (tuple[str, int], ["x", 1], ("x", 1)),
    (Collection[tuple[str, int]], [["x", 1]], (("x", 1),)),
    (dict[str, list[int]], {"x": [1]}, {"x": [1]}),
    (Mapping[Literal["a"], int], {"a": 1}, {"a": 1}),
    (Mapping[Literal["a"], int], {"a": 1, "later": None}, {"a": 1}),
    (Point, {"x": 1, "later": "field"}, Point(1)),
    (Path, {"points": [{"x": 1, "y": 2.5}], "end": None}, Path([Point(1, 2.5)])),
    (Path, {"end": {"x": 1}}, Path(end=Point(1))),
    (Named, [1, None], Named(1, None)),
    (list[tuple[int, Named]], [[7, [1, "x"]]], [(7, Named(1, "x"))]),
]


@pytest.mark.parametrize(("expected", "value", "result"), VALID)
def test_json_becomes_a_value_of_the_type(expected: Any, value: Any, result: Any) -> None:
    made = from_json(expected, value)
    assert (made, type(made)) == (result, type(result))


INVALID: list[tuple[Any, Any]] = [
    (Named, [1]),
    (Named, [1, 2]),
    (Named, {"x": 1, "y": None}),
    (int, True),
    (int, 1.0),
    (int, None),
    (float, True),
    (float, "1"),
    (bool, 1),
    (Optional[int], "1"),
    (Literal["a", "b"], "c"),
    (Literal["a", "b"], {}),
    (list[int], {"0": 1}),
    (list[int], ["1"]),
    (tuple[str, int], ["x"]),
    (tuple[str, int], ["x", None]),
    (Collection[int], {}),
    (dict[str, int], [1]),
    (dict[str, int], {"x": None}),
    (Mapping[Literal["a"], int], {"a": "1"}),
    (Point, None),
    (Point, {}),
    (Point, {"x": "1"}),
    (Path, {"points": {"x": 1}}),
    (Path, {"points": [{"y": 1}]}),
]


@pytest.mark.parametrize(("expected", "value"), INVALID)
def test_any_other_json_is_a_protocol_error(expected: Any, value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        from_json(expected, value)


def test_the_error_names_the_field() -> None:
    with pytest.raises(RemoteProtocolError, match="y is not float: '1'"):
        from_json(Point, {"x": 1, "y": "1"})


def test_the_error_names_the_field_that_is_missing_and_shows_the_beginning_of_a_wrong_value() -> None:
    with pytest.raises(RemoteProtocolError, match=r"the value is no Point: .* missing .* 'x'"):
        from_json(Point, {"y": 1})
    with pytest.raises(RemoteProtocolError) as error:
        from_json(int, "x" * 10_000, "count")
    assert error.value.message.startswith("count is not int: 'xxx")
    assert len(error.value.message) < 300
