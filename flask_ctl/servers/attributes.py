"""Whether the installed version of a server has the attributes that its adapter uses, most of which are not documented.

Each adapter lists them in a table: what is lost without them, the classes or modules that have them, and their names.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

from ..system.packages import UNKNOWN, version_of

ADAPTER = "its apps come under control at their first request, like those of an unknown server"
CONTROL = "its apps are not under control"
RELOAD = "its apps can't be reloaded"

Attributes = Mapping[str, Mapping[Any, str]]
"""By what is lost: the names of attributes by class, module or function; those of a function are its variables.

A module that can be imported only inside of its server is given by its name.
"""

logger = logging.getLogger("flask_ctl")

_reasons: dict[tuple[str, str], str] = {}
_notes: dict[str, str] = {}


def lost_without(package: str, attributes: Attributes) -> set[str]:
    """What is lost because the installed version of a server lacks attributes; logs a warning for each of them."""
    lost = set()
    for loss, owners in attributes.items():
        for owner, name in ((owner, name) for owner, names in owners.items() for name in names.split()):
            if not has(owner, name):
                reason = f"{installed(package)} has no attribute {getattr(owner, '__name__', owner)}.{name}"
                logger.warning("%s: %s", reason, loss)
                _reasons[package, loss] = reason
                lost.add(loss)
    return lost


def reason_of_loss(package: str, loss: str) -> str | None:
    """Which attribute the installed version lacks; None if nothing is lost."""
    return _reasons.get((package, loss))


def losses() -> list[tuple[str, str]]:
    """Each missing attribute that was looked for, with what is lost without it."""
    return [(reason, loss) for (_, loss), reason in _reasons.items()]


def note(message: str, remedy: str) -> None:
    """Have `doctor` tell something of a server that is no fault, once."""
    _notes[message] = remedy


def notes() -> list[tuple[str, str]]:
    """Each `note`, with its remedy."""
    return list(_notes.items())


def has(owner: Any, name: str) -> bool:
    """Whether a module or class has an attribute, or a function a variable.

    Methods make attributes of instances: what the methods of a class mention counts as an attribute.
    """
    if isinstance(owner, str):
        owner = sys.modules[owner]
    if hasattr(owner, name):
        return True
    if isinstance(owner, type):
        functions = [function for base in owner.__mro__ for function in vars(base).values()]
        return any(name in code.co_names for code in _codes(functions))
    return any(name in code.co_varnames for code in _codes([owner]))


def installed(package: str) -> str:
    """The name of a package with the version that is installed."""
    known = version_of(package)
    return package if known == UNKNOWN else f"{package} {known}"


def _codes(values: Iterable[Any]) -> Iterator[CodeType]:
    """The code of all functions among `values`, with that of the functions inside of them."""
    for value in values:
        function = getattr(value, "fset", None) or getattr(value, "__func__", value)
        # An adapter may have wrapped it already.
        function = getattr(function, "__wrapped__", function)
        code = value if isinstance(value, CodeType) else getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code
            yield from _codes(code.co_consts)
