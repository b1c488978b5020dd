"""Record locks on a socket's lock file, by which the kernel names the processes that serve there.

A process needs the flock(2) on ``<socket>.lock`` to have the socket, but the kernel does not tell who holds a flock. It
does tell the holder of a record lock (fcntl(2), F_SETLK) to every process that can read the file (F_GETLK), as a pid in
the reader's PID namespace. The lock ends with the process, survives an exec, and is not inherited over a fork.

The listening process holds byte 0. In a server with several processes that is the hub. The hub and each worker hold one
more byte; its position encodes the pid of their master (in their own PID namespace) and a number. The holder of a byte
is known from the kernel, but the holder itself chooses which byte it takes.

The file's text names Werkzeug's reloader if it has started the process that listens, or listened last: the reloader
outlives that process. Its pid and start time are claims of that process, and are used in messages only.

A process loses all its record locks on a file when it closes *any* descriptor of that file. So this module keeps a list
of the files that this process has locked, and no other code may open them: see `is_ours`. A descriptor that another
thread had opened for reading just before is kept open as long as the lock: see `close`. Whatever else the program
closes, the locks are taken again every two seconds.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from .fork import Step, in_child
from .native import threading

# Windows has none. Not imported when it is needed: a server may have changed its user or root directory by then.
with contextlib.suppress(ImportError):
    import fcntl

SERVER = 0
"""The byte of the listening process."""

NUMBERS = 1 << 16
"""Bytes for one master: one for its hub, one for each worker."""

_END = 2**62
"""A position after all locked bytes; off_t has 63 bits."""

MAX_HOLDERS = 4096
"""The most locks that are read: a process with write access could take any number."""

_STRUCT_FLOCK = "qqihh" if sys.platform == "darwin" else "hhqqi4x"


MAX_TEXT = 64
"""The most bytes of text that are read from a file."""


class Starter(NamedTuple):
    """A process that starts serving processes: its pid, and its start time in kernel clock ticks."""

    pid: int
    started: int


class Member(NamedTuple):
    """A process that claims to belong to the server with this master.

    `pid` comes from the kernel, 0 for a process in another PID namespace. `master` is the pid that the process claims,
    in its own PID namespace. `number` is 0 for the hub.
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
    """Try to lock one byte, without waiting; whether this process holds it now. Raises OSError.

    Keep the descriptor open, and close it by `close` only. To take a byte again that is held is fine.
    """
    with _mutex:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLK, _pack(fcntl.F_WRLCK, byte, 1))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        _ours[descriptor] = _inode(descriptor)
        return True


def close(descriptor: int) -> None:
    """Close a descriptor: one with locks, which are released, or one that was opened to read.

    While this process holds locks on the file by another descriptor, this one stays open as long as that.
    """
    with _mutex:
        inode = _ours.pop(descriptor, None) or _inode(descriptor)
        for other in [other for other, its in _ours.items() if its == inode and not _is_open(other, inode)]:
            # Closed by somebody else; another file has the number of its inode by now.
            del _ours[other]
        if inode in _ours.values():
            _kept.append((descriptor, inode))
            return
        os.close(descriptor)
        for kept in [one for one in _kept if one[1] == inode]:
            _kept.remove(kept)
            os.close(kept[0])


def is_ours(path: str, directory: int | None = None) -> bool:
    """Whether this process holds record locks on the file at `path`, so that opening and closing it would lose them.

    `path` may be relative to the open `directory`.
    """
    return our_descriptor(path, directory) is not None


def our_descriptor(path: str, directory: int | None = None) -> int | None:
    """The descriptor by which this process holds record locks on the file at `path`; None if it holds none."""
    try:
        info = os.stat(path, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    inode = info.st_dev, info.st_ino
    # A descriptor that was closed elsewhere holds no lock, and its inode number may be another file's by now.
    found = (descriptor for descriptor, ours in list(_ours.items()) if ours == inode)
    return next((descriptor for descriptor in found if _is_open(descriptor, inode)), None)


def held_by_others(socket_path: str, master: int | None = None) -> bool:
    """Whether another server has the socket: a process that listens, or workers of another master than `master`.

    Workers start a new hub when theirs has died, so another server must not take the socket meanwhile. For a socket
    that this process itself holds the answer is True, too.
    """
    path = lock_path(socket_path)
    if is_ours(path):
        return True
    try:
        with LockFile(path) as lock:
            return lock.server() is not None or any(member.master != master for member in lock.members())
    except OSError:
        # It does not exist or is unreadable; binding the socket will show the reason.
        return False


def set_reloader(reloader: Starter) -> None:
    """Remember the reloader of Werkzeug that has started this process."""
    global _reloader
    _reloader = reloader


def write_text(descriptor: int, master: Starter | None = None) -> None:
    """Write into a locked file which process starts the serving processes. Raises OSError.

    That is the `master` of a hub, or the reloader that has started this process, if any.
    """
    os.ftruncate(descriptor, 0)
    if master is not None:
        os.pwrite(descriptor, b"master %d %d\n" % master, 0)
    elif _reloader is not None:
        os.pwrite(descriptor, b"reloader %d %d\n" % _reloader, 0)


def clear_text(descriptor: int) -> None:
    """Remove the text: no process serves here any more. Raises OSError."""
    os.ftruncate(descriptor, 0)


class LockFile:
    """A lock file, opened to query the holders of its bytes.

    For a file on which this process holds locks, give the descriptor by which it does: it is not closed, and those
    locks are not found. `path` may be relative to the open `directory`. Raises OSError if it can't be opened,
    PermissionError if it may not be read, or is no regular file.
    """

    def __init__(self, path: str, descriptor: int | None = None, directory: int | None = None) -> None:
        self._is_ours = descriptor is not None
        if descriptor is None:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags, dir_fd=directory)
        self._descriptor = descriptor
        info = os.fstat(descriptor)
        self.path = path
        self.owner = info.st_uid
        """The uid of the file's owner."""
        if not stat.S_ISREG(info.st_mode):
            self.close()
            raise PermissionError(errno.EPERM, "not a regular file", path)

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def close(self) -> None:
        if not self._is_ours:
            close(self._descriptor)

    def __enter__(self) -> LockFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def server(self) -> int | None:
        """The pid of the listening process, from the kernel; 0 if it is in another PID namespace, None without one."""
        found = self._ask(SERVER, 1)
        return None if found is None else max(found[0], 0)

    def members(self, limit: int = MAX_HOLDERS) -> list[Member]:
        """The hub and the workers; of more than `limit`, some of them."""
        held = itertools.islice(self._held(SERVER + 1, _END), limit)
        found = [Member(max(pid, 0), *divmod(start, NUMBERS)) for pid, start in held if start > 0]
        return sorted(found, key=lambda member: (member.master, member.number))

    def holds(self, member: Member) -> bool:
        """Whether the kernel names that process as the holder of its byte."""
        found = self._ask(hub_byte(member.master) + member.number, 1)
        return found is not None and found[0] == member.pid

    def is_held(self) -> bool:
        """Whether any process holds a byte."""
        return self._ask(SERVER, _END) is not None

    def reloader(self) -> Starter | None:
        """Werkzeug's reloader that the last server here has named, whether it still runs or not; None without one."""
        return self._starter(b"reloader")

    def master(self) -> Starter | None:
        """The master of the last hub here, unless that has ended in order; whether it still runs or not."""
        return self._starter(b"master")

    def text(self, length: int) -> bytes:
        """At most so many bytes of the file's text. Raises OSError."""
        return os.pread(self._descriptor, length, 0)

    def _starter(self, kind: bytes) -> Starter | None:
        try:
            words = self.text(MAX_TEXT).split()
        except OSError:
            return None
        if len(words) != 3 or words[0] != kind or not (words[1] + words[2]).isdigit():
            return None
        return Starter(int(words[1]), int(words[2]))

    def _held(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Pids and first bytes of the locks in a range. Each query returns one of them, in no order."""
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


def same_file(path: str, descriptor: int, directory: int | None = None) -> bool:
    """Whether a path leads to the very file that is open. Raises FileNotFoundError if it leads nowhere."""
    info, ours = os.stat(path, dir_fd=directory, follow_symlinks=False), os.fstat(descriptor)
    return (info.st_dev, info.st_ino) == (ours.st_dev, ours.st_ino)


def _inode(descriptor: int) -> tuple[int, int]:
    info = os.fstat(descriptor)
    return info.st_dev, info.st_ino


def _is_open(descriptor: int, inode: tuple[int, int]) -> bool:
    """Whether a descriptor is one of that file still."""
    try:
        return _inode(descriptor) == inode
    except OSError:
        return False


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

_kept: list[tuple[int, tuple[int, int]]] = []
"""Descriptors, with device and inode, to close when the locks on their files are released."""

_mutex = threading.RLock()
"""Held while a lock is taken, and while a descriptor is closed, so that neither undoes the other."""


def _forget() -> None:
    global _mutex
    _mutex = threading.RLock()
    _ours.clear()
    for descriptor, _ in _kept:
        os.close(descriptor)
    _kept.clear()


# A forked child holds no record locks; closing its copies does not release the parent's.
in_child(Step.MEMORY, _forget)
