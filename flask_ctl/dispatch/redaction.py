"""Parameters of a command, fit to be logged: bounded, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Union

from .commands import Command

Params = Union[list[Any], Mapping[str, Any]]

MAX_TEXT = 200
"""Characters of one value, of a name, of an error: a peer may send a megabyte."""

MAX_PARAMETERS = 20
"""Parameters of one command, for the same reason."""

MASK = "***"
"""What stands for a secret."""

_PARTS = "auth cookie credential key passphrase passwd password private pwd secret session signature token"
_SECRET_PARTS = frozenset(_PARTS.split())
_SECRET_WORDS = {"otp", "pass", "pin"}


def masked(command: Command | None, params: Params) -> dict[str, Any]:
    """The parameters by name. A value is masked if its name is that of a secret, or none that the command has."""
    known = [] if command is None else command.parameter_names
    named = _named(known, params)
    shown = {
        cut(name): MASK if is_secret(name) or name not in known else _shown(value)
        for name, value in list(named.items())[:MAX_PARAMETERS]
    }
    return shown if len(named) <= MAX_PARAMETERS else {**shown, "…": f"{len(named) - MAX_PARAMETERS} more"}


def secrets_of(command: Command, params: Params) -> list[str]:
    """The texts that are masked, as they are and as Python quotes them: an error's message may repeat them."""
    named = _named(command.parameter_names, params)
    values = [value for name, value in list(named.items())[:MAX_PARAMETERS] if is_secret(name)]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    texts = [str(item) for item in flat if isinstance(item, (str, int, float)) and str(item)]
    return [*texts, *(repr(text)[1:-1] for text in texts)]


def is_secret(name: str) -> bool:
    """Whether a parameter of that name is likely to hold a secret."""
    name = name.lower()
    return any(part in name for part in _SECRET_PARTS) or not _SECRET_WORDS.isdisjoint(name.split("_"))


def cut(text: str) -> str:
    """The text, or its first MAX_TEXT characters and ``…``."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _named(names: list[str], params: Params) -> Mapping[str, Any]:
    if isinstance(params, Mapping):
        return params
    return {names[n] if n < len(names) else str(n + 1): value for n, value in enumerate(params)}


def _shown(value: Any) -> Any:
    """A JSON value, or the beginning of its text."""
    if isinstance(value, list):
        value = [_flat(item) for item in value[:MAX_TEXT]]
    value = _flat(value) if isinstance(value, Mapping) else value
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= MAX_TEXT else cut(text)


def _flat(item: Any) -> Any:
    # No command takes objects, or arrays of arrays; what they hold could be secret, and go deep.
    if isinstance(item, (list, Mapping)):
        return "…"
    return cut(item) if isinstance(item, str) else item
