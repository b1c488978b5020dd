"""Where instances listen, and where clients look for them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Union

from .errors import ConfigurationError
from .system import is_owned_directory

OFF = "off"
ENVIRONMENT = "FLASK_CTL_SOCKET"
Sockets = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]


def parse_address(text: str | os.PathLike[str]) -> str:
    """The path of a Unix socket, from ``/path`` or ``unix:/path``. Raises ConfigurationError for anything else."""
    address = os.fspath(text)
    path = address.removeprefix("unix:")
    scheme, colon, _ = path.partition(":")
    if colon and "/" not in scheme:
        raise ConfigurationError(f"{address}: {scheme} is no transport; write /path/to.sock or unix:/path/to.sock")
    if not path or "\0" in path:
        raise ConfigurationError(f"{address!r} is no address; write /path/to.sock or unix:/path/to.sock")
    return os.path.abspath(path)


def as_list(value: Sockets | None) -> list[str]:
    """The addresses in a setting: none, one, or several."""
    if not value:
        return []
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    return [os.fspath(item) for item in value]


def from_environment() -> list[str]:
    """The addresses in FLASK_CTL_SOCKET: one, or a JSON array as Flask's `from_prefixed_env` reads it."""
    text = os.environ.get(ENVIRONMENT, "")
    if not text.startswith("["):
        return as_list(text)
    try:
        return as_list(json.loads(text))
    except (ValueError, TypeError):
        # Whoever parses it as an address says what is wrong.
        return [text]


def default_directories() -> list[str]:
    """The directories of default sockets, the preferred one first; they need not exist."""
    import tempfile

    uid = os.geteuid() if hasattr(os, "geteuid") else 0
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    directories = [os.path.join(runtime, "flask-ctl")] if os.path.isabs(runtime) and _belongs_to(runtime, uid) else []
    directories.append(os.path.join(tempfile.gettempdir(), f"flask-ctl-{uid}"))
    return [os.path.abspath(directory) for directory in directories]


def _belongs_to(directory: str, uid: int) -> bool:
    # After su or sudo the variable may still name another user's directory, in a container one that is not there.
    try:
        return os.stat(directory).st_uid == uid
    except OSError:
        return False


def default_path(name: str, root_path: str) -> str:
    """The socket of an app that was given no address; the same for the same name and root path."""
    import hashlib
    import re

    digest = hashlib.sha256(os.fsencode(root_path)).hexdigest()[:8]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return os.path.join(default_directories()[0], f"{safe}-{digest}.sock")


def prepare_directory(path: str) -> None:
    """Make a default directory if `path` is in one, 0700, and check it; other directories are the user's.

    Raises ConfigurationError if somebody else made it, or may write to it.
    """
    directory = os.path.dirname(path)
    if directory not in default_directories():
        return
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, mode=0o700)
        trusted = is_owned_directory(directory)
    except OSError as error:
        raise ConfigurationError(f"can't use {directory}: {error.strerror}; give a path by {ENVIRONMENT}") from None
    if not trusted:
        raise ConfigurationError(f"{directory} is not a 0700 directory of ours; give a path by {ENVIRONMENT}")


def default_sockets() -> list[str]:
    """The sockets in the default directories that are ours, dead or alive."""
    found = []
    for directory in default_directories():
        try:
            if is_owned_directory(directory):
                found += [entry.path for entry in os.scandir(directory) if entry.name.endswith(".sock")]
        except OSError:
            continue
    return sorted(found)
