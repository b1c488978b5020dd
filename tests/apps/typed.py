"""Commands with every kind of parameter, for the tests; each answers with what it got."""

import enum
from typing import Any, Literal

from flask import Flask

from flask_ctl import Control

app = Flask("typed")
control = Control(app)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@control.command
def scalars(word: str = "", count: int = 1, ratio: float = 0.5, dry_run: bool = False) -> list[Any]:
    """A str, an int, a float and a bool."""
    return [word, count, ratio, dry_run]


@control.command
def choices(mode: Literal["a_b", "a-b"] = "a_b", level: Literal[1, 2] = 1, colour: Colour = Colour.RED) -> list[Any]:
    """Literals and an Enum."""
    return [mode, level, colour.name]


@control.command
def lists(
    names: list[str], numbers: list[int] | None = None, modes: list[Literal["x", "y"]] | None = None
) -> list[Any]:
    """Lists."""
    return [names, numbers, modes]


@control.command(impact="high", impact_note="it empties the cache")
def empty_cache() -> str:
    """Forget everything."""
    return "emptied"


@control.command
def optional(word: str | None = None, flag: bool | None = None, colour: Colour | None = None) -> list[Any]:
    """What may be left out."""
    return [word, flag, colour and colour.name]


@control.command
def nothing() -> None:
    """No parameters, no result."""


@control.command
def text() -> str:
    """A result that is text."""
    return "grüße"


if __name__ == "__main__":
    control.run(port=0)
