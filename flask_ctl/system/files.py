"""Socket files, lock files, and the directories they are in."""

from __future__ import annotations

import errno
import os
import stat

from .native import socket
from .platform import LINUX


def bind_private(sock: socket.socket, path: str) -> None:
    """Bind a Unix socket whose file has mode 0600 from the moment of its creation."""
    if LINUX:
        # The mode of the socket's inode is the file's, less the umask.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        if stat.S_IMODE(os.lstat(path).st_mode) != 0o600:
            os.chmod(path, 0o600)
        return
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def open_to(path: str, inode: tuple[int, int], mode: int, gid: int | None) -> None:
    """Set group and mode of the socket file at `path` with this inode; follows no symlink, changes no other file.

    Raises OSError; PermissionError for a group that this process does not belong to.
    """
    if not LINUX:
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
        os.chmod(path, mode, follow_symlinks=False)
        return
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(descriptor)
        if (info.st_dev, info.st_ino) != inode or info.st_uid != os.geteuid() or not stat.S_ISSOCK(info.st_mode):
            raise FileNotFoundError(errno.ENOENT, "it was replaced meanwhile")
        # chmod(2) rejects an O_PATH descriptor, but its name in proc(5) leads to the same inode.
        name = f"/proc/self/fd/{descriptor}"
        if gid is not None:
            os.chown(name, -1, gid)
        os.chmod(name, mode)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Whether the exclusive flock(2) on the open file is ours now; never waits."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def lock_holder(descriptor: int) -> int | None:
    """The pid that took the flock(2) on the open file, None if the kernel does not tell: proc_locks(5)."""
    if not LINUX:
        return None
    info = os.fstat(descriptor)
    target = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        with open("/proc/locks") as locks:
            fields = [line.split() for line in locks]
    except OSError:
        return None
    holders = [int(line[4]) for line in fields if line[1] == "FLOCK" and line[5] == target]
    return next((pid for pid in holders if pid > 0), None)


def is_owned_directory(path: str, uid: int | None = None) -> bool:
    """Whether `path` is a directory (no symlink) of that user, by default of this one, with no permission for others.

    Raises OSError.
    """
    info, owner = os.lstat(path), os.geteuid() if uid is None else uid
    return stat.S_ISDIR(info.st_mode) and info.st_uid == owner and not info.st_mode & 0o077
