"""What streams give, as lines for a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .escaping import printable


def render_message(method: str, message: Mapping[str, Any]) -> str:
    """A message of a stream as a line, or several; empty for one that says nothing to a person.

    An item stands for itself, other messages are ``{"dropped"}``, ``{"gap"}``, ``{"generation"}`` and ``{"end"}``.
    Further lines are indented, so that none of them looks like a message.
    """
    return printable(_indented(_message(method, message)))


def _message(method: str, message: Mapping[str, Any]) -> str:
    if "time" in message:
        return _ITEMS[method](message) if method in _ITEMS else json.dumps(message)
    if "dropped" in message:
        return f"— {message['dropped']} dropped: this reader is too slow —"
    if "gap" in message and "worker" in message:
        return f"— gap: pid {message['worker']} has ended, and its last items are not known —"
    if "gap" in message:
        return "— gap: what came between is not known —"
    if "unanswered" in message:
        silent = "; ".join(f"pid {each['worker']}: {each['error']}" for each in message["unanswered"])
        return f"— without an answer: {silent} —" if silent else "— all workers answer again —"
    if "generation" in message:
        return f"— generation {message['generation']} —"
    return ""


def _record(item: Mapping[str, Any]) -> str:
    worker = f" [{item['worker']}]" if "worker" in item else ""
    line = f"{item['time']}{worker} {item['level']} {item['logger']}: {item['message']}"
    return f"{line}\n{item['traceback']}" if "traceback" in item else line


_ELSEWHERE = {"time", "event", "worker", "seq"}
"""Members of an event that are not shown with their names."""


def _event(item: Mapping[str, Any]) -> str:
    worker = f" [{item['worker']}]" if "worker" in item else ""
    fields = {name: value for name, value in item.items() if name not in _ELSEWHERE}
    texts = [name for name, value in fields.items() if isinstance(value, str) and "\n" in value]
    words = [f"{name}={_word(value)}" for name, value in fields.items() if name not in texts]
    line = " ".join([f"{item['time']}{worker} {item['event']}", *words])
    return "\n".join([line, *(fields[name].rstrip() for name in texts)])


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{each}" for name, each in value.items() if each is not None)
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or " " in value else value


_ITEMS: dict[str, Callable[[Mapping[str, Any]], str]] = {"logs": _record, "events": _event}
