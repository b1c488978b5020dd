"""Record locks on a socket's lock file: they name, by the kernel's word, the processes that serve there.

`flock(2)` on ``<socket>.lock`` decides who may have the socket, but the kernel does not tell who holds it. Of a record
lock (fcntl(2), F_SETLK) it tells that to everybody who can read the file (F_GETLK), by the holder's pid in the asker's
PID namespace. The lock goes with the process, stays over an exec, and is not inherited by a fork.

The process that listens holds byte 0. A server of several processes has its hub there; the hub and each worker
hold one more byte, whose position tells the pid of their master (in their own PID namespace) and a number. Who holds a
byte is the kernel's word; which byte it is, is the holder's own.

The file's text names Werkzeug's reloader, if that has started the process that listens, or has listened there last: it
lives on when that process has ended. Its pid and start are the process's own word, and only for messages.

A process loses all its record locks on a file when it closes *any* descriptor of that file. So what this process has
locked is noted here, and nothing else in it may open the file: see `is_ours`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from .fork import Step, in_child

# Windows has none. Not imported when it is needed: a server may have changed its user or root directory by then.
with contextlib.suppress(ImportError):
    import fcntl

SERVER = 0
"""The byte of the process that listens."""

NUMBERS = 1 << 16
"""Bytes for one master: its hub's, and one for each worker."""

_END = 2**62
"""A position behind all bytes that are locked; off_t has 63 bits."""

MAX_HOLDERS = 4096
"""The most locks that are read: a process that may write to the file could take any number."""

_STRUCT_FLOCK = "qqihh" if sys.platform == "darwin" else "hhqqi4x"


MAX_TEXT = 64
"""Bytes that are read of a file's text."""


class Starter(NamedTuple):
    """A process that starts others which serve: its pid, and its start in ticks of the kernel's clock."""

    pid: int
    started: int


class Member(NamedTuple):
    """A process that says of itself that it belongs to the server whose master is `master`.

    `pid` is the kernel's word, 0 for a process of another PID namespace. `master` is the process's own word, in its own
    PID namespace. `number` is 0 for the hub.
    """

    pid: int
    master: int
    number: int


def lock_path(socket_path: str) -> str:
    """The path of a socket's lock file."""
    return socket_path + ".lock"


def hub_byte(master: int) -> int:
    """The byte of a master's hub, before those of its workers."""
    return master * NUMBERS


def take(descriptor: int, byte: int) -> bool:
    """Whether this process holds one byte of the file now; never waits. Raises OSError.

    The descriptor has to stay open, and is closed by `close`.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLK, _pack(fcntl.F_WRLCK, byte, 1))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    info = os.fstat(descriptor)
    _ours[descriptor] = info.st_dev, info.st_ino
    return True


def close(descriptor: int) -> None:
    """Close a descriptor, and so release what this process has locked by it."""
    _ours.pop(descriptor, None)
    os.close(descriptor)


def is_ours(path: str) -> bool:
    """Whether this process holds record locks on the file at `path`, so that it must not be opened here once more."""
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) in _ours.values()


def held_by_others(socket_path: str, master: int | None = None) -> bool:
    """Whether a process serves at a socket, or belongs to a server that does, but for that of our own `master`.

    A hub that has died leaves workers that bring it back; so nobody else must take its place. A process that serves
    there itself does so under another name.
    """
    path = lock_path(socket_path)
    if is_ours(path):
        return True
    try:
        with LockFile(path) as lock:
            return lock.server() is not None or any(member.master != master for member in lock.members())
    except OSError:
        # There is none, or it may not be read: whoever wants to listen there will see.
        return False


def set_reloader(reloader: Starter) -> None:
    """This process has been started by Werkzeug's reloader."""
    global _reloader
    _reloader = reloader


def write_text(descriptor: int, master: Starter | None = None) -> None:
    """Tell in a file whose lock is ours who starts the processes that serve here. Raises OSError.

    That is the `master` for whom a hub listens, or the reloader that has started this process, if one has.
    """
    os.ftruncate(descriptor, 0)
    if master is not None:
        os.pwrite(descriptor, b"master %d %d\n" % master, 0)
    elif _reloader is not None:
        os.pwrite(descriptor, b"reloader %d %d\n" % _reloader, 0)


def clear_text(descriptor: int) -> None:
    """Nobody serves here any more. Raises OSError."""
    os.ftruncate(descriptor, 0)


class LockFile:
    """A lock file, opened to ask who holds its bytes.

    Raises OSError if it can't be opened, PermissionError if it may not be read, or is no regular file.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        info = os.fstat(self._descriptor)
        self.path = path
        self.owner = info.st_uid
        """The uid of the file's owner."""
        if not stat.S_ISREG(info.st_mode):
            self.close()
            raise PermissionError(errno.EPERM, "not a regular file", path)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> LockFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def server(self) -> int | None:
        """The pid of the process that listens, by the kernel's word; 0 if it can't be told, None if there is none."""
        found = self._ask(SERVER, 1)
        return None if found is None else max(found[0], 0)

    def members(self) -> list[Member]:
        """The hub and the workers."""
        found = [
            Member(max(pid, 0), *divmod(start, NUMBERS)) for pid, start in self._held(SERVER + 1, _END) if start > 0
        ]
        return sorted(found, key=lambda member: (member.master, member.number))

    def holds(self, member: Member) -> bool:
        """Whether the kernel names that process as the holder of its byte."""
        found = self._ask(hub_byte(member.master) + member.number, 1)
        return found is not None and found[0] == member.pid

    def is_held(self) -> bool:
        """Whether any process holds a byte."""
        return self._ask(SERVER, _END) is not None

    def reloader(self) -> Starter | None:
        """Werkzeug's reloader that the last server here has named, whether it still runs or not."""
        return self._starter(b"reloader")

    def master(self) -> Starter | None:
        """The master of the last hub here, unless that has ended in order; whether it still runs or not."""
        return self._starter(b"master")

    def _starter(self, kind: bytes) -> Starter | None:
        try:
            words = os.pread(self._descriptor, MAX_TEXT, 0).split()
        except OSError:
            return None
        if len(words) != 3 or words[0] != kind or not (words[1] + words[2]).isdigit():
            return None
        return Starter(int(words[1]), int(words[2]))

    def _held(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Pids and first bytes of the locks in a range. The kernel tells one of them at each question, in no order."""
        ranges = [(start, end)]
        for _ in range(MAX_HOLDERS):
            if not ranges:
                return
            low, high = ranges.pop()
            found = self._ask(low, high - low)
            if found is None:
                continue
            pid, first, last = found
            yield pid, first
            # A length of 0 reaches to the end of the file, however long it gets.
            ranges += [(a, b) for a, b in ((low, first), (last, high)) if a < b]

    def _ask(self, start: int, length: int) -> tuple[int, int, int] | None:
        """Pid, first byte and end of one lock in a range; None if there is none, or the file system knows no locks."""
        try:
            answer = fcntl.fcntl(self._descriptor, fcntl.F_GETLK, _pack(fcntl.F_WRLCK, start, length))
        except OSError:
            return None
        kind, first, size, pid = _unpack(answer)
        if kind == fcntl.F_UNLCK:
            return None
        return pid, first, first + size if size else _END


def same_file(path: str, descriptor: int) -> bool:
    """Whether a path leads to the very file that is open. Raises FileNotFoundError if it leads nowhere."""
    info, ours = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    return (info.st_dev, info.st_ino) == (ours.st_dev, ours.st_ino)


def _pack(kind: int, start: int, length: int) -> bytes:
    if sys.platform == "darwin":
        return struct.pack(_STRUCT_FLOCK, start, length, 0, kind, os.SEEK_SET)
    return struct.pack(_STRUCT_FLOCK, kind, os.SEEK_SET, start, length, 0)


def _unpack(data: bytes) -> tuple[int, int, int, int]:
    """Kind, first byte, length and pid."""
    if sys.platform == "darwin":
        start, length, pid, kind, _ = struct.unpack(_STRUCT_FLOCK, data)
    else:
        kind, _, start, length, pid = struct.unpack(_STRUCT_FLOCK, data)
    return kind, start, length, pid


_reloader: Starter | None = None

_ours: dict[int, tuple[int, int]] = {}
"""Device and inode of each file on which this process holds record locks, by descriptor."""

# A forked child holds no record locks; closing its copies does not release the parent's.
in_child(Step.MEMORY, _ours.clear)
