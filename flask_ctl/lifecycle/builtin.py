"""How a class declares the commands that every server has: a method each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..dispatch.commands import Command, Impact, Role, command_from
from .results import RESULTS

Method = TypeVar("Method", bound=Callable[..., Any])


def builtin(role: Role, impact: Impact | None = None) -> Callable[[Method], Method]:
    """Declare that a method ``(self, call, **parameters)`` is the command of its name.

    The first line of its docstring is the command's summary, and RESULTS has the schema of its result, unless
    the return annotation is enough.
    """

    def declare(method: Method) -> Method:
        vars(method)["builtin"] = role, impact
        return method

    return declare


def commands_of(group: object) -> list[Command]:
    """The commands that the class of `group` declares."""
    return [
        command_from(
            getattr(group, name), role=role, scope="one", builtin=True, result=RESULTS.get(name), impact=impact
        )
        for name, method in vars(type(group)).items()
        for role, impact in [getattr(method, "builtin", (None, None))]
        if role is not None
    ]
