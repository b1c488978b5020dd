"""The file of a listening Unix socket: who owns the path, and how it comes and goes.

The owner holds a flock(2) on ``<path>.lock``, which stays behind. Only under that lock is a dead socket replaced, and
only our own inode is ever removed. Record locks on the same descriptor tell clients who that is: see `locks`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat

from ..dispatch.policy import PRIVATE, FileAccess
from ..errors import AddressInUse, ConfigurationError, InsecureConfiguration
from ..system import locks
from ..system.credentials import peer_credentials
from ..system.files import bind_private, lock_holder, open_to, try_lock
from ..system.fork import Step, in_child
from ..system.native import socket
from ..system.platform import MAX_SOCKET_PATH
from ..system.processes import start_time
from .endpoint import Place

BACKLOG = 128
"""Connections that wait while the control thread is busy; somaxconn of older kernels."""

logger = logging.getLogger("flask_ctl")


class SocketFile(Place):
    """A path that is ours from `acquire` to `release`, and the socket that listens there.

    It is bound for the owner alone, and opened to others once it is there, if `access` says so. `lock` is the
    descriptor of a lock that has been taken already, without the record locks that name its holder. `master` is the pid
    of the master that a hub listens for.
    """

    def __init__(self, path: str, access: FileAccess = PRIVATE, lock: int = -1, master: int | None = None) -> None:
        self.path = self.file = os.path.abspath(path)
        self.access = access
        self._lock = lock
        self._bytes = [locks.SERVER, *([] if master is None else [locks.hub_byte(master)])] if lock < 0 else []
        self._starter = None if master is None else locks.Starter(master, start_time(master))
        self._inode: tuple[int, int] | None = None
        # Closing a child's copy leaves the lock with the parent.
        in_child(Step.DESCRIPTORS, self._drop_lock)

    def check(self) -> None:
        """Raises InsecureConfiguration where others may connect and the directory is everybody's."""
        if not self.access.shared:
            return
        try:
            mode = os.stat(os.path.dirname(self.path)).st_mode
        except OSError:
            return
        if mode & stat.S_IWOTH and (self.access.mode & stat.S_IWOTH or not mode & stat.S_ISVTX):
            raise InsecureConfiguration(
                f"{self.path} would be open to other users (CTL_ALLOW) in a directory that all can write to;"
                " give a path in a directory of your own by FLASK_CTL_SOCKET"
            )

    def acquire(self) -> socket.socket:
        """A listening socket. Raises ConfigurationError that says what is in the way and what to do.

        InsecureConfiguration as `check`.
        """
        if len(os.fsencode(self.path)) > MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"{self.path} is longer than {MAX_SOCKET_PATH} bytes; give a shorter path by FLASK_CTL_SOCKET"
            )
        try:
            self.check()
            if self._lock < 0:
                self._take_lock()
            self._remove_stale()
            return self._bind()
        except OSError as error:
            self.release()
            reason = error.strerror or str(error)
            raise ConfigurationError(
                f"can't listen at {self.path}: {reason}; give a path in a directory that you can write to"
                " by FLASK_CTL_SOCKET"
            ) from error
        except ConfigurationError:
            self.release()
            raise

    def set_access(self, access: FileAccess) -> None:
        """Open the file to others, or close it. Raises ConfigurationError like `acquire`; the path stays ours."""
        if access == self.access:
            return
        self.access = access
        self.check()
        if self.in_place():
            self._set_access()

    def adopt(self, descriptor: int, lock: int) -> socket.socket:
        """The socket that the previous image of this process left, listening for this one, and as open as it says.

        Raises ConfigurationError like `acquire`, and has given the path up then.
        """
        self._lock = lock
        self._inode = _inode(self.path)
        # The previous image had them too, but older kernels let go of them at an exec.
        self._take_bytes()
        listener = socket.socket(fileno=descriptor)
        try:
            if self._inode is not None:
                self.check()
                self._set_access()
        except ConfigurationError:
            listener.close()
            self.release()
            raise
        listener.setblocking(False)
        # The kernel names to clients the credentials of the last listen().
        listener.listen(BACKLOG)
        return listener

    def obstacle(self) -> str | None:
        """A parent directory that not all users with access to the file can enter, None if there is none."""
        if not self.access.shared:
            return None
        directory = os.path.dirname(os.path.realpath(self.path))
        while True:
            if not _lets_through(directory, self.access.gid):
                return directory
            if directory == os.path.dirname(directory):
                return None
            directory = os.path.dirname(directory)

    def hand_over(self) -> int:
        """The lock's descriptor, for `adopt`; the path is left as it is."""
        lock, self._lock = self._lock, -1
        return lock

    def in_place(self) -> bool:
        """Whether the path still leads to our socket."""
        return self._inode is not None and _inode(self.path) == self._inode

    def keep_lock(self) -> None:
        """Called now and then: take the lock again, and where its file was removed or replaced, lock the new one."""
        if self._lock < 0 or not self._bytes:
            return
        if _is_at(locks.lock_path(self.path), self._lock):
            # The program may have opened and closed the file, which releases the locks: fcntl(2).
            with contextlib.suppress(OSError):
                for byte in self._bytes:
                    locks.take(self._lock, byte)
            return
        before, self._lock = self._lock, -1
        try:
            self._take_lock()
        except (OSError, ConfigurationError) as error:
            logger.debug("the lock of %s can't be put back: %s", self.path, error)
            self._lock = before
        else:
            locks.close(before)

    def vacant(self) -> bool:
        """Whether nothing is at the path."""
        return _inode(self.path) is None

    def release(self) -> None:
        """Remove our socket, if it is still ours, and give up the lock; more than once is fine."""
        if self._lock >= 0 and self.in_place():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        if self._lock >= 0 and self._starter is not None:
            with contextlib.suppress(OSError):
                locks.clear_text(self._lock)
        self._inode = None
        self._drop_lock()

    def _take_lock(self) -> None:
        path = locks.lock_path(self.path)
        if locks.is_ours(path):
            # To close it here once more would release what this process has locked.
            raise _in_use(self.path, os.getpid())
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._lock_file(path, self._lock)
        except (OSError, ConfigurationError):
            # `release` would empty the file, which is another's.
            self._drop_lock()
            raise
        self._take_bytes()
        # It is only for messages, and the disk may be full.
        with contextlib.suppress(OSError):
            locks.write_text(self._lock, self._starter)

    def _lock_file(self, path: str, lock: int) -> None:
        info = os.fstat(lock)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{path} is not a file of ours; remove it or give another path by FLASK_CTL_SOCKET"
            )
        if not try_lock(lock):
            raise _in_use(self.path, _server_pid(path) or lock_holder(lock) or _listener_pid(self.path))
        # Between open() and flock() a cleaner, or the owner of the directory, may have removed the file.
        if _inode(path) != (info.st_dev, info.st_ino):
            raise ConfigurationError(f"{path} was replaced while it was being locked; try again")

    def _take_bytes(self) -> None:
        try:
            if self._lock >= 0 and not all(locks.take(self._lock, byte) for byte in self._bytes):
                logger.warning("%s.lock is locked by another process, too; --kill-after will be refused", self.path)
        except OSError as error:
            logger.debug("%s.lock can't be locked by record: %s", self.path, error)

    def _drop_lock(self) -> None:
        if self._lock >= 0:
            locks.close(self._lock)
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
            if self.access.shared:
                self._set_access()
        except (OSError, ConfigurationError):
            listener.close()
            raise
        return listener

    def _set_access(self) -> None:
        mode, gid = self.access
        try:
            open_to(self.path, self._inode or (0, 0), mode, gid)
        except PermissionError:
            raise ConfigurationError(
                f"{self.path} can't be given to the group {gid}: uid {os.geteuid()} does not belong to it;"
                " add it to the group, or name users in CTL_ALLOW"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} can't be opened to the users of CTL_ALLOW: {error.strerror or error}"
            ) from None


def remove_dead(path: str) -> None:
    """Remove a socket and its lock file if no process holds them; for names that are never used again."""
    lock_path = locks.lock_path(path)
    if locks.is_ours(lock_path):
        return
    try:
        with locks.LockFile(lock_path) as file:
            if file.is_held():
                return
        lock = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if try_lock(lock) and _is_at(lock_path, lock):
            for name in (path, lock_path):
                with contextlib.suppress(OSError):
                    os.unlink(name)
    finally:
        locks.close(lock)


def _in_use(path: str, pid: int | None) -> AddressInUse:
    who = f"pid {pid}" if pid else "another process"
    return AddressInUse(f"{path} is in use by {who}; stop it or give another path by FLASK_CTL_SOCKET", {"pid": pid})


def _inode(path: str) -> tuple[int, int] | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return locks.same_file(path, descriptor)
    except OSError:
        return False


def _lets_through(directory: str, gid: int | None) -> bool:
    """Whether the members of a group can enter a directory; without one, whether other users than the owner can."""
    try:
        info = os.stat(directory)
    except OSError:
        return True
    others = stat.S_IXGRP | stat.S_IXOTH if gid is None else stat.S_IXGRP if info.st_gid == gid else stat.S_IXOTH
    return bool(info.st_mode & others)


def _is_live(path: str) -> bool:
    """Whether a process listens: only a refused connection proves that none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def _server_pid(path: str) -> int | None:
    """The process that serves by the lock at `path`: for a hub its master, by its own word, which is for messages."""
    try:
        with locks.LockFile(path) as lock:
            pid = lock.server()
            return next((m.master for m in lock.members() if m.pid == pid and not m.number), pid)
    except OSError:
        return None


def _listener_pid(path: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == 0:
            return peer_credentials(probe)[0]
    return None
