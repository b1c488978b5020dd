"""The file of a listening Unix socket: who owns the path, and how it comes and goes.

The owner holds a flock(2) on ``<path>.lock``, which stays behind. Only under that lock is a dead socket replaced, and
only our own inode is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from ..errors import ConfigurationError
from ..system import MAX_SOCKET_PATH, bind_private, lock_holder, peer_credentials, try_lock

BACKLOG = 128
"""Connections that wait while the control thread is busy; somaxconn of older kernels."""


class SocketFile:
    """A path that is ours from `acquire` to `release`, and the socket that listens there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._lock = -1
        self._inode: tuple[int, int] | None = None

    def acquire(self) -> socket.socket:
        """A listening socket. Raises ConfigurationError that says what is in the way and what to do."""
        if len(os.fsencode(self.path)) > MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"{self.path} is longer than {MAX_SOCKET_PATH} bytes; give a shorter path by FLASK_CTL_SOCKET"
            )
        try:
            self._take_lock()
            self._remove_stale()
            return self._bind()
        except OSError as error:
            self._drop_lock()
            reason = error.strerror or str(error)
            raise ConfigurationError(
                f"can't listen at {self.path}: {reason}; give a path in a directory that you can write to"
                " by FLASK_CTL_SOCKET"
            ) from error
        except ConfigurationError:
            self._drop_lock()
            raise

    def adopt(self, descriptor: int, lock: int) -> socket.socket:
        """The socket that a former image of this process left, listening for this one."""
        self._lock = lock
        self._inode = _inode(self.path)
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        # The kernel names to clients the credentials of the last listen().
        listener.listen(BACKLOG)
        return listener

    def hand_over(self) -> int:
        """The lock's descriptor, for `adopt`; the path is left as it is."""
        lock, self._lock = self._lock, -1
        return lock

    def in_place(self) -> bool:
        """Whether the path still leads to our socket."""
        return self._inode is not None and _inode(self.path) == self._inode

    def vacant(self) -> bool:
        """Whether nothing is at the path."""
        return _inode(self.path) is None

    def release(self) -> None:
        """Remove our socket, if it is still ours, and give up the lock; more than once is fine."""
        if self._lock >= 0 and self.in_place():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._inode = None
        self._drop_lock()

    def abandon(self) -> None:
        """In a forked child: close the lock's descriptor; the lock stays with the parent's."""
        self._drop_lock()

    def _take_lock(self) -> None:
        path = self.path + ".lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._lock = lock
        info = os.fstat(lock)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{path} is not a file of ours; remove it or give another path by FLASK_CTL_SOCKET"
            )
        if not try_lock(lock):
            holder = lock_holder(lock) or _listener_pid(self.path)
            raise _in_use(self.path, holder)
        # Between open() and flock() a cleaner, or the owner of the directory, may have removed the file.
        if _inode(path) != (info.st_dev, info.st_ino):
            raise ConfigurationError(f"{path} was replaced while it was being locked; try again")

    def _drop_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _remove_stale(self) -> None:
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(info.st_mode):
            raise ConfigurationError(f"{self.path} exists and is no socket; remove it or give another path")
        if info.st_uid != os.geteuid():
            raise ConfigurationError(f"{self.path} belongs to uid {info.st_uid}; give another path by FLASK_CTL_SOCKET")
        if _is_live(self.path):
            raise _in_use(self.path, _listener_pid(self.path))
        os.unlink(self.path)

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            bind_private(listener, self.path)
            self._inode = _inode(self.path)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener


def _in_use(path: str, pid: int | None) -> ConfigurationError:
    who = f"pid {pid}" if pid else "another process"
    return ConfigurationError(
        f"{path} is in use by {who}; stop it or give another path by FLASK_CTL_SOCKET", {"pid": pid}
    )


def _inode(path: str) -> tuple[int, int] | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _is_live(path: str) -> bool:
    """Whether somebody listens: only a refused connection proves that nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def _listener_pid(path: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == 0:
            return peer_credentials(probe)[0]
    return None
