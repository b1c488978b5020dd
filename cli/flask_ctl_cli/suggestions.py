"""Suggestions for a command name with a typing error."""

from __future__ import annotations

from collections.abc import Iterable

MAX_SUGGESTIONS = 3
"""Names in one message."""


def similar_names(name: str, names: Iterable[str]) -> list[str]:
    """At most MAX_SUGGESTIONS of `names` that resemble `name`, the most similar first."""
    import difflib

    return difflib.get_close_matches(name, sorted(set(names)), MAX_SUGGESTIONS)


def one_edit_from(name: str, names: Iterable[str]) -> str | None:
    """The first of the sorted `names` that differs from `name` by one edit; None if all differ by none or by more.

    An edit adds, removes or replaces a letter, or swaps two adjacent letters.
    """
    return next((other for other in sorted(names) if _is_one_edit(name, other)), None)


def _is_one_edit(one: str, other: str) -> bool:
    start = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    swapped = one[1::-1] + one[2:]
    return bool(one or other) and (one[1:] == other[1:] or one == other[1:] or one[1:] == other or swapped == other)
