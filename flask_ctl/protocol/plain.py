"""Plain-text commands: ``stop grace=5``, for `nc` and shell scripts."""

from __future__ import annotations

import shlex

from ..errors import INVALID_REQUEST, PARSE_ERROR, CommandError

MAX_PLAIN = 16 * 1024
"""The most bytes in one command: the time of `shlex` grows with the square of the length."""


def is_plain(line: bytes) -> bool:
    """Whether a line is a plain-text command: it does not begin with a JSON object or array."""
    return not line.startswith((b"{", b"["))


def parse_plain(line: bytes) -> tuple[str, dict[str, str]]:
    """The command's name, and its parameters as text. Quotes work as in a POSIX shell.

    Raises CommandError: -32700 for bytes that are not UTF-8 or an open quote, -32600 for a word without ``=`` and for
    more than MAX_PLAIN bytes.
    """
    if len(line) > MAX_PLAIN:
        raise CommandError(f"a command is longer than {MAX_PLAIN} bytes; use JSON-RPC", code=INVALID_REQUEST)
    try:
        words = shlex.split(line.decode())
    except ValueError as error:
        raise CommandError(f"can't read the command: {error}", code=PARSE_ERROR) from None
    if not words:
        raise CommandError("an empty command; try: commands", code=INVALID_REQUEST)
    return words[0].replace("-", "_"), dict(map(parse_assignment, words[1:]))


def parse_assignment(word: str) -> tuple[str, str]:
    """Name and text of ``key=value``. Raises CommandError (-32600) without ``=`` or with an empty key."""
    key, separator, value = word.partition("=")
    if not separator or not key:
        raise CommandError(f"{word!r} is not of the form key=value", code=INVALID_REQUEST)
    return key.replace("-", "_"), value
