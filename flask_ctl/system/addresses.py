"""Addresses of control sockets: their forms, and the default paths."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Union

from ..errors import ConfigurationError
from .files import is_owned_directory
from .platform import MAX_SOCKET_PATH

OFF = "off"
ENVIRONMENT = "FLASK_CTL_SOCKET"
Sockets = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]


class Address(NamedTuple):
    """Where a server listens: a path for ``unix`` and ``ipc``, a host and a port for ``tcp``."""

    transport: Literal["unix", "ipc", "tcp"]
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.transport == "unix":
            return self.path
        if self.transport == "ipc":
            return f"ipc://{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse_address(text: str | os.PathLike[str]) -> Address:
    """The address in a text: ``/path``, ``unix:/path``, ``ipc:///path``, ``tcp://host:port``.

    Raises ConfigurationError, which lists these forms, for anything else.
    """
    address = os.fspath(text)
    if address.startswith("ipc://"):
        return Address("ipc", _parse_path(address, address.removeprefix("ipc://")))
    if address.startswith("tcp://"):
        return _parse_tcp(address)
    path = address.removeprefix("unix:")
    scheme, colon, _ = path.partition(":")
    if colon and "/" not in scheme:
        raise ConfigurationError(f"{address}: {scheme} is no transport; write {_FORMS}")
    return Address("unix", _parse_path(address, path))


_FORMS = "/path/to.sock, unix:/path/to.sock, ipc:///path/to.zmq or tcp://host:port"


def _parse_path(address: str, path: str) -> str:
    # In an address of ZeroMQ @ stands for a name without a file, so without an owner and a mode.
    if not path or "\0" in path or path.startswith("@"):
        raise ConfigurationError(f"{address!r} is no address; write {_FORMS}")
    return os.path.abspath(path)


def _parse_tcp(address: str) -> Address:
    import re

    found = re.fullmatch(r"tcp://(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+|\*)):([0-9]{1,5})", address, re.ASCII)
    if found is None or not 0 < int(found[3]) < 65536:
        raise ConfigurationError(
            f"{address!r} is no address; write tcp://host:port, with a port from 1 to 65535, and [] around IPv6"
        )
    return Address("tcp", host=found[1] or found[2], port=int(found[3]))


def resolve(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    """Address families and socket addresses of a ``tcp`` address; ``*`` is every address of this machine.

    Raises ConfigurationError for an unknown host.
    """
    from .native import socket

    host = None if address.host == "*" else address.host
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"{address}: {error.strerror or error}") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def is_loopback(address: Address) -> bool:
    """Whether only this machine reaches a ``tcp`` address."""
    import ipaddress

    return all(ipaddress.ip_address(sockaddr[0]).is_loopback for _, sockaddr in resolve(address))


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
        # `parse_address` reports what is wrong with it.
        return [text]


def own_uid() -> int:
    """The uid of this process; 0 on a system without uids."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def default_directories() -> list[str]:
    """The directories of default sockets, preferred one first; they may not exist."""
    uid = own_uid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    directories = [os.path.join(runtime, "flask-ctl")] if os.path.isabs(runtime) and _belongs_to(runtime, uid) else []
    directories.append(os.path.join(temporary_directory(), f"flask-ctl-{uid}"))
    return [os.path.abspath(directory) for directory in directories]


def temporary_directory() -> str:
    """TMPDIR, else /tmp. Whether it is writable at the moment must not change where clients look for a server."""
    given = os.environ.get("TMPDIR", "")
    return given if os.path.isabs(given) and os.path.isdir(given) else "/tmp"


def _belongs_to(directory: str, uid: int) -> bool:
    # After su or sudo the variable may still name another user's directory; in a container it may not exist.
    try:
        return os.stat(directory).st_uid == uid
    except OSError:
        return False


_SUFFIX = ".sock"
_DIGITS = len("-01234567")
"""The hash of the root path, which every default name has before the suffix."""


def default_path(name: str, root_path: str) -> str:
    """The socket of an app without an address; it depends on the app's name and root path only."""
    import hashlib
    import re

    digest = hashlib.sha256(os.fsencode(root_path)).hexdigest()[:8]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return os.path.join(default_directories()[0], f"{safe}-{digest}{_SUFFIX}")


def own_path(path: str, pid: int) -> str:
    """The socket of an instance, with its pid in the name, while another one has the app's default `path`.

    The app's name is cut if it would be too long for a socket.
    """
    directory, name = os.path.split(path)
    stem = name.removesuffix(_SUFFIX)
    name, end = stem[:-_DIGITS], f"{stem[-_DIGITS:]}-{pid}{_SUFFIX}"
    room = MAX_SOCKET_PATH - len(os.fsencode(os.path.join(directory, end)))
    return os.path.join(directory, name[: max(0, room)] + end)


def other_names(path: str) -> list[str]:
    """The sockets of an app's further instances (`own_path`), dead or alive, by its default `path`."""
    directory = os.path.dirname(path)
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            pid = name.removesuffix(_SUFFIX).rpartition("-")[2]
            other = os.path.join(directory, name)
            if name.endswith(_SUFFIX) and pid.isdecimal() and other != path and other == own_path(path, int(pid)):
                found.append(other)
    return sorted(found)


def prepare_directory(path: str) -> None:
    """Create the directory of `path` with mode 0700, and check it, if it is a default directory; else do nothing.

    Raises ConfigurationError if it belongs to another user, or others may write to it.
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
    """The sockets in this user's default directories, dead or alive."""
    return _in_default_directories(".sock")


def default_lock_files() -> list[str]:
    """The lock files in this user's default directories, of running and of former servers."""
    return _in_default_directories(".sock.lock")


RUNTIME = "/run/user"
"""The directory of the users' runtime directories, where XDG_RUNTIME_DIR does not tell: pam_systemd(8)."""


def registry_directories(uid: int) -> list[str]:
    """The directories that may hold a user's running instances, which belong to that user alone."""
    places = [os.path.join(RUNTIME, str(uid), "flask-ctl"), os.path.join(temporary_directory(), f"flask-ctl-{uid}")]
    if uid == own_uid():
        default = default_directories()
        # In a cron job, and after su, XDG_RUNTIME_DIR does not name the directory that the user's servers may have.
        places = default if len(default) > 1 else [*default, places[0]]
    return [place for place in dict.fromkeys(map(os.path.abspath, places)) if _is_owned(place, uid)]


def users_with_registry() -> list[int]:
    """The uids of the users who have a directory for running instances."""
    found = set()
    for directory, prefix, below in ((RUNTIME, "", "flask-ctl"), (temporary_directory(), "flask-ctl-", "")):
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for name in (entry.name for entry in entries):
                uid = _as_uid(name.removeprefix(prefix))
                # In a temporary directory anybody can make any name: the directory has to belong to that user.
                place = os.path.join(directory, name, below).rstrip(os.sep)
                if uid is not None and name == f"{prefix}{uid}" and _is_owned(place, uid):
                    found.add(uid)
    return sorted(found)


def _as_uid(name: str) -> int | None:
    return int(name) if name.isdecimal() and len(name) < 11 else None


def _is_owned(directory: str, uid: int) -> bool:
    try:
        return is_owned_directory(directory, uid)
    except OSError:
        return False


def _in_default_directories(end: str) -> list[str]:
    found = []
    for directory in default_directories():
        try:
            if is_owned_directory(directory, own_uid()):
                found += [entry.path for entry in os.scandir(directory) if entry.name.endswith(end)]
        except OSError:
            continue
    return sorted(found)
