"""The registry of running instances: each has a file in the runtime directory, however its sockets are named.

The file has mode 0600 and is locked as a socket's lock file is (see `locks`): the listening process, its hub and its
workers hold record locks. While a lock is held the instance runs. The locks end with the processes and survive an exec,
and the kernel tells their holders. The text of the file, its entry, holds what the instance itself says: where it
listens, and for which apps. Readers take no lock. The module `registration` writes the files.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ConfigurationError, RemoteProtocolError
from ..protocol.typed import from_json
from ..system import locks
from ..system.addresses import own_uid, parse_address
from ..system.files import try_lock
from ..system.processes import inner_pid, parent_of

SUFFIX = ".instance"

MAX_ENTRIES = 1000
"""The most running instances of one directory that are listed."""

MAX_FILES = 20_000
"""The most names of one directory that are looked at: killed instances leave files."""

MAX_APPS = 64
"""The most apps of one instance that are listed."""

MAX_TEXT = 64 * 1024
"""The most bytes of an entry; a longer one is not read."""

MAX_WORKERS_ASKED = 16
"""The most workers of one instance whose parents are looked at."""

logger = logging.getLogger("flask_ctl")


@dataclass(frozen=True)
class RegisteredApp:
    """An app as the entry of its instance names it."""

    name: str = ""
    root_path: str = ""
    sockets: list[str] = field(default_factory=list)
    """Addresses."""


@dataclass(frozen=True)
class Claims:
    """The text of an entry: what an instance says of itself."""

    apps: list[RegisteredApp] = field(default_factory=list)
    cwd: str = ""
    server: str = ""


class Entry(NamedTuple):
    """An instance that runs, as the registry shows it.

    `owner` is a uid. `pid` is that of the single process or of the master, from the kernel; None if it is in another
    PID namespace, or the master has no worker at the moment. `claims` are empty for a text that can't be read.
    """

    path: str
    owner: int
    pid: int | None
    claims: Claims


def read_entries(directory: str, owner: int) -> list[Entry]:
    """The instances that run, of the files of one directory that belong to `owner`; a warning if there are too many."""
    found = (read_entry(os.path.join(directory, name), owner) for name in _names(directory))
    running = list(itertools.islice((entry for entry in found if entry is not None), MAX_ENTRIES + 1))
    if len(running) > MAX_ENTRIES:
        logger.warning("more than %d instances run in %s; the others are not listed", MAX_ENTRIES, directory)
    return running[:MAX_ENTRIES]


def read_entry(path: str, owner: int) -> Entry | None:
    """The instance of that file, if it runs, and the file belongs to `owner`.

    Raises OSError if this process has too many open files to look.
    """
    try:
        with _open(path) as file:
            if file.owner != owner:
                return None
            held, pid = file.is_held() or locks.is_ours(path), _pid(file, path)
            if not held:
                return None
            # A second time, as a long text may just be being written.
            claims = _parse(file) or _parse(file) or Claims()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    return Entry(path, owner, pid, claims)


def remove_dead(directory: str, owner: int | None = None) -> list[str]:
    """Remove the files of instances that have ended; returns their paths.

    Directory and files have to belong to the uid `owner`, by default to this user. What that user puts in place of the
    directory meanwhile is not touched.
    """
    uid = own_uid() if owner is None else owner
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if os.fstat(place).st_uid != uid:
            return []
        return [os.path.join(directory, name) for name in _names(place) if _remove_if_dead(name, place, uid)]
    finally:
        os.close(place)


def is_path(text: str) -> bool:
    """Whether a text can be the path of a file: absolute, and with nothing in it that no path has."""
    try:
        return os.path.isabs(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def holder_of(path: str) -> int | None:
    """The pid of the process that listens for the instance of that entry; 0 in another PID namespace, None if none."""
    with contextlib.suppress(OSError), _open(path) as file:
        holder = file.server()
        return os.getpid() if holder is None and locks.is_ours(path) else holder
    return None


def _names(directory: str | int) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_FILES) if entry.name.endswith(SUFFIX)]
            if next(entries, None) is not None:
                logger.warning("only %d files of the registry of instances are looked at", MAX_FILES)
    except OSError:
        return []
    return sorted(names)


def _open(path: str) -> locks.LockFile:
    return locks.LockFile(path, locks.our_descriptor(path))


def _pid(file: locks.LockFile, path: str) -> int | None:
    """The pid of the single process, or of the parent of the workers, if that is the master which they name."""
    members = file.members(MAX_WORKERS_ASKED)
    for member in members:
        for pid in (member.pid, parent_of(member.pid)) if member.number and member.pid else ():
            if pid is not None and inner_pid(pid) == member.master:
                return pid
    if members:
        return None
    return file.server() or (os.getpid() if locks.is_ours(path) else None)


def _parse(file: locks.LockFile) -> Claims | None:
    line, end, _ = file.text(MAX_TEXT).partition(b"\n")
    if not end:
        return None
    try:
        claims: Claims = from_json(Claims, json.loads(line))
        for socket in itertools.chain.from_iterable(app.sockets for app in claims.apps):
            os.fsencode(parse_address(socket).path)
    except (ValueError, RecursionError, RemoteProtocolError, ConfigurationError):
        return None
    places = [claims.cwd, *(app.root_path for app in claims.apps)]
    return claims if all(not place or is_path(place) for place in places) else None


def _remove_if_dead(name: str, directory: int, owner: int) -> bool:
    if locks.is_ours(name, directory):
        return False
    try:
        with locks.LockFile(name, directory=directory) as file:
            if file.owner != owner or file.is_held() or not try_lock(file.fileno()):
                return False
            # Under the flock nobody begins to hold it.
            if file.is_held() or not locks.same_file(name, file.fileno(), directory):
                return False
            os.unlink(name, dir_fd=directory)
    except OSError:
        return False
    return True
