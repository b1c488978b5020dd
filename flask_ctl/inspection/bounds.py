"""Answers that fit into a message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..protocol.jsonrpc import encode


def that_fit(items: Iterable[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """The first objects that take `room` bytes of JSON together; none is made after the first that does not fit."""
    found = []
    for item in items:
        room -= len(encode(item)) + 1
        if room < 0:
            break
        found.append(item)
    return found


def shortened(text: str, head: int, tail: int) -> str:
    """The text, or its first `head` and last `tail` characters, without the beginning of a line that has been cut."""
    if len(text) <= head + tail:
        return text
    end = text[-tail:].partition("\n")[2] if tail else ""
    return f"{text[:head]}\n… {len(text) - head - len(end)} characters left out …\n{end}"
