"""An app's settings and routes, as an operator sees them: without secrets, and without running the app's own code."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..dispatch.redaction import MASK, cut, is_secret, masked_text
from .settings import DEFAULTS

if TYPE_CHECKING:
    from .app import AppState

MAX_VALUE = 500
"""Characters of a text that are looked at; fewer are shown."""

MAX_ITEMS, MAX_DEPTH = 50, 3
"""Items of a list or a dict that are shown, and how deep these may be nested."""

_FLASK = {**Flask.default_config, "DEBUG": False}
_NO_SECRETS = (_FLASK.keys() | DEFAULTS.keys()) - {"SECRET_KEY", "SECRET_KEY_FALLBACKS", "CTL_FLEET_PASSWORD"}
"""Settings that are known to hold no secret, whatever their names: SESSION_COOKIE_SECURE."""

_LOGINS = {"account", "login", "mail", "smtp"}
"""Ends of names of settings whose pair of values is a user and a password."""

_PLAIN = (str, int, float, bool, type(None), list, dict, datetime.timedelta)


def described_settings(state: AppState) -> list[dict[str, Any]]:
    """The keys of ``app.config``, and the values in force, each with ``name``, ``value`` and ``origin``.

    ``environment``: a variable ``FLASK_NAME`` has that value; ``argument``: an argument of Control, or of the
    command line; ``default``: Flask's or flask-ctl's own; else ``config``. Values of other types than those of JSON are
    shown by the name of their type.
    """
    config = dict(state.app.config)
    found = []
    for name in sorted(name for name in config if isinstance(name, str)):
        value, origin = config[name], _origin(name, config[name])
        if name in _IN_FORCE:
            value, origin = _IN_FORCE[name](state, value, origin)
        found.append({"name": cut(name), "value": _shown(value, name), "origin": origin})
    return found


def described_routes(app: Flask) -> list[dict[str, Any]]:
    """The URL rules, sorted, each with ``rule``, ``methods`` (None for any), ``endpoint`` and ``host``.

    ``host`` is that of a rule that holds for one host, or one subdomain, only.
    """
    # iter_rules() would take a lock, which under gevent is none for threads.
    rules = [
        {
            "rule": str(rule.rule),
            "methods": None if rule.methods is None else sorted(rule.methods),
            "endpoint": str(rule.endpoint),
            "host": rule.host or rule.subdomain or None,
        }
        for rule in list(app.url_map._rules)
    ]
    return sorted(rules, key=lambda rule: (rule["rule"], rule["endpoint"], rule["methods"] or []))


def _addresses(state: AppState, value: Any, origin: str) -> tuple[Any, str]:
    return state.endpoints(), state.origin_of_addresses() or origin


def _directory(state: AppState, value: Any, origin: str) -> tuple[Any, str]:
    given = os.environ.get("FLASK_CTL_DIRECTORY")
    return (given, "environment") if given else (value, origin)


_IN_FORCE: dict[str, Callable[[AppState, Any, str], tuple[Any, str]]] = {
    "CTL_SOCKET": _addresses,
    "CTL_DIRECTORY": _directory,
}
"""Settings that something else than ``app.config`` has precedence over."""


def _origin(name: str, value: Any) -> str:
    defaults = DEFAULTS if name in DEFAULTS else _FLASK
    if name in defaults and _same(value, defaults[name]):
        return "default"
    prefix = f"FLASK_{name}"
    for variable, text in os.environ.items():
        # As Config.from_prefixed_env() takes them: FLASK_DB__HOST is in the dict DB.
        first, *keys = variable.split("__")
        if first == prefix and _same(_inside(value, keys), _loaded(text)):
            return "environment"
    return "config"


def _same(value: Any, other: Any) -> bool:
    """Whether they are equal, and of types whose comparison is not the app's own."""
    if type(value) not in _PLAIN or type(other) not in _PLAIN:
        return False
    if type(value) in (list, dict):
        try:
            return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
        except (TypeError, ValueError, RecursionError):
            return False
    return bool(value == other)


def _inside(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value.get(key) if type(value) is dict else None
    return value


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(value: Any, name: str = "", depth: int = 0) -> Any:
    """The value as JSON; what belongs to the name of a secret is masked, unless it only says whether there is one."""
    kind = type(value)
    if value is None or kind is bool or (kind is str and not value):
        return value
    if is_secret(name) and name not in _NO_SECRETS:
        return MASK
    if kind in (int, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if kind is str:
        return cut(masked_text(value[:MAX_VALUE]))
    if kind is datetime.timedelta or kind in (pathlib.PosixPath, pathlib.WindowsPath):
        return cut(str(value))
    if depth < MAX_DEPTH and kind in (list, tuple, set, frozenset):
        items = list(value)
        some = [_shown(item, _name_in(items, at, name), depth + 1) for at, item in enumerate(items[:MAX_ITEMS])]
        return [*some, "…"] if items[MAX_ITEMS:] else some
    if depth < MAX_DEPTH and kind is dict:
        pairs = list(value.items())
        shown = {
            cut(str(key)): _shown(item, str(key), depth + 1)
            for key, item in pairs[:MAX_ITEMS]
            if type(key) in (str, int)
        }
        return {**shown, "…": f"{len(pairs) - MAX_ITEMS} more"} if pairs[MAX_ITEMS:] else shown
    return f"<{kind.__module__}.{kind.__qualname__}>"


def _name_in(items: list[Any], at: int, name: str) -> str:
    """The name of an item, by the one before it: in a pair, in a login, after an option of a command line."""
    before = items[at - 1] if at else None
    if type(before) is not str:
        return ""
    if len(items) == 2:
        return "password" if name.lower().rpartition("_")[2] in _LOGINS else before
    return before if before.startswith("-") and "=" not in before else ""
