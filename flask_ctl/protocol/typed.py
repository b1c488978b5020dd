"""Values with Python types made of JSON, for messages whose form a dataclass describes."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import RemoteProtocolError

SHOWN = 200
"""Characters of a wrong value in the error."""

_types_of = functools.cache(get_type_hints)
"""By the dataclasses, whose annotations are strings that would be evaluated again for each message."""


@functools.cache
def _form_of(expected: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(expected), get_args(expected)


def from_json(expected: Any, value: Any, where: str = "the value") -> Any:
    """A JSON value as the type that is `expected`; `where` stands for it in the error.

    The type may be a dataclass, or a mapping with Literal keys: what a later version may have added is left out. JSON's
    arrays become lists, tuples or a NamedTuple. Raises RemoteProtocolError for any other value.
    """
    if expected is Any or type(value) is expected:
        return value
    origin, arguments = _form_of(expected)
    if isinstance(expected, type) and is_dataclass(expected) and isinstance(value, dict):
        types = _types_of(expected)
        known = {name: from_json(types[name], item, name) for name, item in value.items() if name in types}
        try:
            return expected(**known)
        except TypeError as error:
            # Without a field that has no default.
            raise RemoteProtocolError(f"{where} is no {expected.__name__}: {error}") from None
    elif (
        isinstance(expected, type) and issubclass(expected, tuple) and expected is not tuple and isinstance(value, list)
    ):
        types = _types_of(expected)
        if len(value) == len(types):
            return expected(*(from_json(types[name], item, name) for name, item in zip(types, value)))
    elif origin is list and isinstance(value, list):
        return [from_json(arguments[0], item, where) for item in value]
    elif origin is Collection and isinstance(value, list):
        return tuple(from_json(arguments[0], item, where) for item in value)
    elif origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(from_json(kind, item, where) for kind, item in zip(arguments, value))
    elif origin in (dict, Mapping) and isinstance(value, dict):
        names = get_args(arguments[0]) if get_origin(arguments[0]) is Literal else value
        return {
            from_json(arguments[0], key, where): from_json(arguments[1], item, where)
            for key, item in value.items()
            if key in names
        }
    elif origin is Literal:
        if value in arguments:
            return value
    elif arguments and origin not in (list, tuple, Collection, dict, Mapping):
        for alternative in arguments:
            with suppress(RemoteProtocolError):
                return from_json(alternative, value, where)
    elif expected is float and type(value) is int:
        return value
    raise RemoteProtocolError(f"{where} is not {getattr(expected, '__name__', expected)}: {repr(value)[:SHOWN]}")
