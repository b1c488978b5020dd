"""The client's address from ``.env`` and ``.flaskenv``, which Flask reads for its own commands.

Flask takes every variable from them, and does not check who may write the file. A client takes only its address, and
only from a file that no other user may write: in a shared directory such a user could lead a stop to another server.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

VARIABLE = "FLASK_CTL_SOCKET"
NAMES = (".env", ".flaskenv")
"""The first one takes precedence, as in `flask.cli.load_dotenv`."""

MAX_SIZE = 1 << 20
"""Bytes of a file that are read."""


def socket_from_files(say: Callable[[str], object]) -> str | None:
    """The value of FLASK_CTL_SOCKET in the nearest ``.env``, else in the nearest ``.flaskenv``; None without one.

    Each is looked for in the current directory and its parents. `say` gets remarks: where the value is from, which file
    is ignored and why.
    """
    if os.environ.get("FLASK_SKIP_DOTENV", "0").lower() not in ("", "0", "false", "no"):
        return None
    for name in NAMES:
        path = _nearest(name)
        value = None if path is None else _value_in(path, say)
        if value is not None:
            if value:
                say(f"using {value}, from {path}")
            return value or None
    return None


def _nearest(name: str) -> str | None:
    try:
        directory = os.getcwd()
    except OSError:
        return None
    while not os.path.isfile(path := os.path.join(directory, name)):
        if directory == os.path.dirname(directory):
            return None
        directory = os.path.dirname(directory)
    return path


def _value_in(path: str, say: Callable[[str], object]) -> str | None:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_SIZE).decode(errors="replace")
            found = [os.fstat(file.fileno()), os.lstat(path)]
    except OSError:
        return None
    if VARIABLE not in text:
        return None
    if reason := next(filter(None, map(_distrust, found)), None):
        say(f"Warning: {path} is ignored: {reason}")
        return None
    try:
        # Only now: it is an optional package, and its import takes as long as that of click.
        from dotenv import dotenv_values
    except ImportError:
        say(f"Warning: {path} is ignored: python-dotenv is not installed")
        return None
    import io

    return dotenv_values(stream=io.StringIO(text)).get(VARIABLE)


def _distrust(found: os.stat_result) -> str | None:
    """Why a file or a symlink to it can't be trusted; None if it can."""
    if hasattr(os, "geteuid") and found.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {found.st_uid}"
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "other users may write it; chmod go-w"
    return None
