"""Words of a command line."""

from __future__ import annotations

import click


def assignment(word: str) -> tuple[str, str]:
    """The name and the text of a parameter: ``KEY=VALUE``. Raises UsageError."""
    key, separator, value = word.partition("=")
    key = key.replace("-", "_")
    if not separator or not key.isidentifier():
        raise click.UsageError(f"{word!r} is not of the form KEY=VALUE")
    return key, value
