"""What is wrong, or worth knowing, with the remedy."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """Something that breaks, or may surprise; `check` is what was looked at. A note is no fault."""

    check: str
    severity: Literal["problem", "note"]
    message: str
    remedy: str


def problem(check: str, message: str, remedy: str) -> Finding:
    """A fault."""
    return Finding(check, "problem", message, remedy)


def note(check: str, message: str, remedy: str) -> Finding:
    """What is no fault."""
    return Finding(check, "note", message, remedy)
