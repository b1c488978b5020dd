"""Annotations of parameters: what JSON they accept, what text they read, how they describe themselves."""

from __future__ import annotations

import enum
import json
import typing
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl.dispatch.parameters import parameter_type

properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Kind(str, enum.Enum):
    A = "a"


class Empty(enum.Enum):
    pass


class Odd(enum.Enum):
    HALF = 0.5


class Unhashable(enum.Enum):
    PAIR = [1, 2]  # noqa: RUF012


Mode = Literal["fast", "slow"]
Mixed = Literal[1, True, "1x"]
TOO_BIG = 10**400
"""An integer that JSON can hold and a double can't."""

ACCEPTED: list[tuple[Any, Any, Any]] = [
    (str, "", ""),
    (str, "text", "text"),
    (str, "\ud800", "\ud800"),
    (int, 0, 0),
    (int, -5, -5),
    (int, TOO_BIG, TOO_BIG),
    (float, 1.5, 1.5),
    (float, 2, 2.0),
    (bool, True, True),
    (bool, False, False),
    (Mode, "fast", "fast"),
    (Mixed, 1, 1),
    (Mixed, True, True),
    (Mixed, "1x", "1x"),
    (Colour, "red", Colour.RED),
    (Level, 2, Level.HIGH),
    (Kind, "a", Kind.A),
    (list[int], [], []),
    (list[int], [1, 2], [1, 2]),
    (list[float], [1], [1.0]),
    (list[Colour], ["red"], [Colour.RED]),
    (list[list[str]], [["a"], []], [["a"], []]),
    (list[Optional[int]], [None, 1], [None, 1]),
    (Optional[int], None, None),
    (Optional[int], 1, 1),
    (Optional[Mode], "slow", "slow"),
    (Optional[list[int]], None, None),
    (Union[None, str], "a", "a"),
    (int | None, 1, 1),
    (None | list[str], None, None),
]

REFUSED: list[tuple[Any, Any, str]] = [
    (str, 1, "must be a string, not an integer"),
    (str, None, "must be a string, not null"),
    (int, True, "must be an integer, not a boolean"),
    (int, 1.0, "must be an integer, not a number"),
    (int, "1", "must be an integer, not a string"),
    (int, None, "must be an integer, not null"),
    (float, True, "must be a number, not a boolean"),
    (float, "1", "must be a number, not a string"),
    (float, TOO_BIG, "must be a number that a double can hold"),
    (bool, 0, "must be a boolean, not an integer"),
    (bool, "true", "must be a boolean, not a string"),
    (Mode, "slower", "must be one of fast, slow"),
    (Mode, None, "must be one of fast, slow"),
    (Mode, [], "must be one of fast, slow"),
    (Mode, {}, "must be one of fast, slow"),
    (Literal[1], True, "must be one of 1"),
    (Literal[True], 1, "must be one of True"),
    (Colour, "RED", "must be one of red, green"),
    (Level, "1", "must be one of 1, 2"),
    (Level, True, "must be one of 1, 2"),
    (Level, 1.0, "must be one of 1, 2"),
    (list[int], 1, "must be an array, not an integer"),
    (list[int], {}, "must be an array, not an object"),
    (list[int], None, "must be an array, not null"),
    (list[int], [1, "2"], "must be an integer, not a string"),
    (list[str], "abc", "must be an array, not a string"),
    (Optional[int], "1", "must be an integer, not a string"),
]

READ: list[tuple[Any, str, Any]] = [
    (str, "", ""),
    (str, "1", "1"),
    (int, "1", 1),
    (int, "-1", -1),
    (float, "1", 1.0),
    (float, "1e3", 1000.0),
    (bool, "true", True),
    (bool, "YES", True),
    (bool, "on", True),
    (bool, "1", True),
    (bool, "False", False),
    (bool, "no", False),
    (bool, "off", False),
    (bool, "0", False),
    (Mode, "slow", "slow"),
    (Mixed, "True", True),
    (Colour, "green", Colour.GREEN),
    (Level, "2", Level.HIGH),
    (list[str], "", []),
    (list[str], "a", ["a"]),
    (list[str], "a,,b", ["a", "", "b"]),
    (list[int], "1,2", [1, 2]),
    (Optional[int], "1", 1),
    (Optional[str], "null", "null"),
    (Optional[list[int]], "1,2", [1, 2]),
]

UNREADABLE: list[tuple[Any, str, str]] = [
    (int, "", "must be an integer, not ''"),
    (int, "1.5", "must be an integer, not '1.5'"),
    (int, "9" * 5000, "must be an integer, not '999"),
    (float, "fast", "must be a number, not 'fast'"),
    (float, "nan", "must be a number, not 'nan'"),
    (float, "-inf", "must be a number, not '-inf'"),
    (float, "1e999", "must be a number, not '1e999'"),
    (bool, "2", "must be a boolean, not '2'"),
    (bool, "", "must be a boolean, not ''"),
    (Mode, "", "must be one of fast, slow"),
    (Level, "LOW", "must be one of 1, 2"),
    (list[int], "1,x", "must be an integer, not 'x'"),
    (list[int], "1,", "must be an integer, not ''"),
    (Optional[int], "", "must be an integer, not ''"),
]

SCHEMAS: list[tuple[Any, dict[str, Any]]] = [
    (str, {"type": "string"}),
    (int, {"type": "integer"}),
    (float, {"type": "number"}),
    (bool, {"type": "boolean"}),
    (Mode, {"enum": ["fast", "slow"]}),
    (Mixed, {"enum": [1, True, "1x"]}),
    (Literal[0, Mode], {"enum": [0, "fast", "slow"]}),
    (Colour, {"enum": ["red", "green"]}),
    (Level, {"enum": [1, 2]}),
    (list[int], {"type": "array", "items": {"type": "integer"}}),
    (typing.List[Colour], {"type": "array", "items": {"enum": ["red", "green"]}}),  # noqa: UP006
    (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    (str | None, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    (Optional[list[str]], {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
]

NOT_UNDERSTOOD: list[Any] = [
    None,
    object,
    Any,
    bytes,
    complex,
    dict,
    dict[str, int],
    list,
    typing.List,  # noqa: UP006
    list[bytes],
    tuple[int, int],
    set[int],
    Union[int, str],
    int | str | None,
    Optional[bytes],
    Literal[None],
    Literal[b"bytes"],
    Literal["a", None],
    Empty,
    Odd,
    Unhashable,
    enum.Enum,
    5,
    "int",
]


def named(table: list[Any]) -> list[Any]:
    """The rows of a table, with ids for people."""

    def text(value: Any) -> str:
        return (value.__name__ if isinstance(value, type) else str(value)).replace("typing.", "")[:40]

    rows = [row if isinstance(row, tuple) else (row,) for row in table]
    return [pytest.param(*row, id=" ".join(ascii(text(value)).strip("'") for value in row[:2])) for row in rows]


@pytest.mark.parametrize(("annotation", "value", "expected"), named(ACCEPTED))
def test_a_value_of_the_right_type_is_accepted(annotation: Any, value: Any, expected: Any) -> None:
    checked = parameter_type(annotation).check(value)
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(("annotation", "value", "message"), named(REFUSED))
def test_a_value_of_another_type_is_refused_with_a_reason(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parameter_type(annotation).check(value)
    assert str(caught.value) == message


@pytest.mark.parametrize(("annotation", "text", "expected"), named(READ))
def test_text_is_read(annotation: Any, text: str, expected: Any) -> None:
    value = parameter_type(annotation).parse(text)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("annotation", "text", "message"), named(UNREADABLE))
def test_text_that_does_not_fit_is_refused_with_a_reason(annotation: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parameter_type(annotation).parse(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("annotation", "schema"), named(SCHEMAS))
def test_a_type_describes_itself_as_json_schema(annotation: Any, schema: dict[str, Any]) -> None:
    assert json.dumps(parameter_type(annotation).schema()) == json.dumps(schema)


@pytest.mark.parametrize("annotation", named(NOT_UNDERSTOOD))
def test_any_other_annotation_is_a_type_error(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"can't be a (parameter|choice)"):
        parameter_type(annotation)


@properties
@given(
    st.sampled_from([row[0] for row in SCHEMAS]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["fast", "red", 1, True]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=6,
    ),
    st.text(),
)
def test_any_json_and_any_text_is_accepted_or_a_value_error(annotation: Any, value: Any, text: str) -> None:
    kind = parameter_type(annotation)
    for convert, given_value in ((kind.check, value), (kind.parse, text)):
        try:
            convert(given_value)
        except ValueError as error:
            assert str(error).startswith("must be ")  # noqa: PT017
