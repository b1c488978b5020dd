"""Names that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable

MAX_SUGGESTIONS = 3
"""Near names that a message tells."""


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that look like `name`, the nearest first."""
    import difflib

    return difflib.get_close_matches(name, sorted(set(names)), MAX_SUGGESTIONS)


def one_edit_from(name: str, names: Iterable[str]) -> str | None:
    """The first of `names` that one edit makes of `name`, None if there is none.

    An edit adds, removes or replaces a letter, or swaps two that are neighbours.
    """
    return next((other for other in sorted(names) if _is_one_edit(name, other)), None)


def _is_one_edit(one: str, other: str) -> bool:
    start = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    swapped = one[1::-1] + one[2:]
    return bool(one or other) and (one[1:] == other[1:] or one == other[1:] or one[1:] == other or swapped == other)
