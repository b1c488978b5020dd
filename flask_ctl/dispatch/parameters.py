"""Types of command parameters: checked from JSON, read from text, described as JSON Schema."""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Protocol, Union

JSONSchema = dict[str, Any]


class ParameterType(Protocol):
    """What a parameter's annotation means. `check` and `parse` raise ValueError that says what is expected."""

    def check(self, value: Any) -> Any:
        """The Python value for a JSON value."""

    def parse(self, text: str) -> Any:
        """The Python value for text, as typed by a person."""

    def schema(self) -> JSONSchema:
        """JSON Schema of the values that `check` accepts."""


class _Scalar:
    """str, int, float or bool; a bool is no int, an int is a float."""

    def __init__(self, python: type, json_name: str, accepts: tuple[type, ...], parse: Callable[[str], Any]) -> None:
        self._python, self._json_name, self._accepts, self._parse = python, json_name, accepts, parse

    def check(self, value: Any) -> Any:
        if type(value) not in self._accepts:
            raise ValueError(f"must be {_article(self._json_name)}, not {_json_name(value)}")
        return self._python(value)

    def parse(self, text: str) -> Any:
        try:
            return self._parse(text)
        except ValueError:
            raise ValueError(f"must be {_article(self._json_name)}, not {text!r}") from None

    def schema(self) -> JSONSchema:
        return {"type": self._json_name}


class _Choice:
    """One of some constants: a Literal's, or an Enum's values; pairs of JSON value and Python value."""

    def __init__(self, choices: list[tuple[Any, Any]]) -> None:
        self._choices = choices

    def check(self, value: Any) -> Any:
        for choice, python in self._choices:
            if type(choice) is type(value) and choice == value:
                return python
        raise ValueError(f"must be one of {self._listed()}")

    def parse(self, text: str) -> Any:
        for choice, python in self._choices:
            if str(choice) == text:
                return python
        raise ValueError(f"must be one of {self._listed()}")

    def schema(self) -> JSONSchema:
        return {"enum": [choice for choice, _ in self._choices]}

    def _listed(self) -> str:
        return ", ".join(str(choice) for choice, _ in self._choices)


class _List:
    """A list of one type; as text, its items with commas between."""

    def __init__(self, item: ParameterType) -> None:
        self._item = item

    def check(self, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError(f"must be an array, not {_json_name(value)}")
        return [self._item.check(item) for item in value]

    def parse(self, text: str) -> Any:
        return [self._item.parse(item) for item in text.split(",")] if text else []

    def schema(self) -> JSONSchema:
        return {"type": "array", "items": self._item.schema()}


class _Optional:
    """A type, or null; text is never null, leaving the parameter out is."""

    def __init__(self, inner: ParameterType) -> None:
        self._inner = inner

    def check(self, value: Any) -> Any:
        return None if value is None else self._inner.check(value)

    def parse(self, text: str) -> Any:
        return self._inner.parse(text)

    def schema(self) -> JSONSchema:
        return {"anyOf": [self._inner.schema(), {"type": "null"}]}


_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _parse_bool(text: str) -> bool:
    try:
        return _BOOLS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError("must be a number that a double can hold") from None


_SCALARS: dict[Any, ParameterType] = {
    str: _Scalar(str, "string", (str,), str),
    int: _Scalar(int, "integer", (int,), int),
    float: _Scalar(_to_float, "number", (int, float), _finite),  # type: ignore[arg-type]
    bool: _Scalar(bool, "boolean", (bool,), _parse_bool),
}


def parameter_type(annotation: Any) -> ParameterType:
    """The type that an annotation stands for.

    str, int, float, bool, Literal, Enum, list[…] and X | None are understood; TypeError for anything else.
    """
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _choice([(value, value) for value in arguments])
    if isinstance(annotation, enum.EnumMeta):
        return _choice([(member.value, member) for member in annotation])  # type: ignore[var-annotated]
    if origin is list and arguments:
        return _List(parameter_type(arguments[0]))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return _Optional(parameter_type(next(a for a in arguments if a is not type(None))))
    raise TypeError(
        f"{annotation!r} can't be a parameter: use str, int, float, bool, Literal, Enum, list[…] or X | None"
    )


def result_schema(annotation: Any) -> JSONSchema:
    """JSON Schema of the values of a return annotation; ``{}``, which any value meets, if it says nothing."""
    if annotation is None or annotation is type(None):
        return {"type": "null"}
    container = typing.get_origin(annotation) or annotation
    try:
        return parameter_type(annotation).schema()
    except TypeError:
        return {"type": "object"} if container is dict else {"type": "array"} if container in (list, tuple) else {}


def _choice(choices: list[tuple[Any, Any]]) -> _Choice:
    if not choices:
        raise TypeError("an Enum without members can't be a parameter")
    odd = [value for value, _ in choices if type(value) not in (str, int, bool)]
    if odd:
        raise TypeError(f"{odd[0]!r} can't be a choice: use strings, integers or booleans")
    return _Choice(choices)


_JSON_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def _json_name(value: Any) -> str:
    return "null" if value is None else _article(_JSON_NAMES[type(value)])


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
