"""What differs from system to system: peers, proofs of death, wake-ups, files. Linux first, then macOS.

Everything here imports everywhere; what a system lacks is said by None, False or ConfigurationError.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import stat
import struct
import sys
import weakref
from typing import Any

from . import native
from .native import threading

HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX") and hasattr(os, "fork")
LINUX = sys.platform.startswith("linux")

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SO_PEERGROUPS = 59  # Linux 4.13; not in the socket module yet
_LOCAL_PEERCRED, _LOCAL_PEERPID = 1, 2  # macOS, sys/un.h
_NO_ID = 2**32 - 1
_MAX_OPTION = 1024
"""Bytes that Python's getsockopt can read: 256 groups."""

MAX_SOCKET_PATH = 107 if LINUX else 103
"""Bytes in the path of a Unix socket, without the final NUL: unix(7)."""


def peer_credentials(sock: socket.socket) -> tuple[int | None, int | None, int | None]:
    """pid, uid and gid of the other end, None for what can't be known.

    For a client they are those of the process that last called listen(): unix(7), SO_PEERCRED.
    """
    if LINUX:
        pid, uid, gid = struct.unpack("i2I", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return (pid if pid > 0 else None), (uid if uid != _NO_ID else None), (gid if gid != _NO_ID else None)
    if sys.platform == "darwin":
        _, uid, _, gid = struct.unpack("IIhxxI", sock.getsockopt(0, _LOCAL_PEERCRED, 76)[:16])
        return struct.unpack("i", sock.getsockopt(0, _LOCAL_PEERPID, 4))[0], uid, gid
    return None, None, None


def peer_groups(sock: socket.socket, uid: int | None, gid: int | None) -> tuple[int, ...]:
    """The supplementary groups of the other end: SO_PEERGROUPS, else what the user database says of `uid`."""
    if LINUX and not os.uname().machine.startswith(("sparc", "parisc")):  # where it has another number
        # ERANGE: more than can be read; ENOPROTOOPT: an older kernel.
        with contextlib.suppress(OSError):
            data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_OPTION)
            return struct.unpack(f"{len(data) // 4}I", data)
    return user_groups(uid, gid)


def user_groups(uid: int | None, gid: int | None) -> tuple[int, ...]:
    """The groups that the user database gives `uid`, and `gid`."""
    if uid is None or gid is None:
        return ()
    try:
        import pwd

        return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except (ImportError, KeyError, OSError):
        return ()


def user_id(name: str) -> int | None:
    """The uid of a user, None if there is none of that name."""
    try:
        import pwd

        return pwd.getpwnam(name).pw_uid
    except (ImportError, KeyError, ValueError):
        return None


def home_of(uid: int) -> str | None:
    """The home directory of a user, None if there is none."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_dir
    except (ImportError, KeyError):
        return None


def group_id(name: str) -> int | None:
    """The gid of a group, None if there is none of that name."""
    try:
        import grp

        return grp.getgrnam(name).gr_gid
    except (ImportError, KeyError, ValueError):
        return None


def wait_readable(descriptors: list[int], timeout: float | None) -> list[int]:
    """Those of `descriptors` that are readable or at their end, after at most `timeout` seconds (None: for ever)."""
    poll = native.select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(_milliseconds(timeout))]


def wait_writable(descriptor: int, timeout: float | None) -> bool:
    """Whether the descriptor is writable after at most `timeout` seconds."""
    poll = native.select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(_milliseconds(timeout)))


def _milliseconds(timeout: float | None) -> float | None:
    # poll(2) takes an int of whole milliseconds; 0 would not wait at all.
    if timeout is None or timeout <= 0:
        return None if timeout is None else 0
    return min(max(1.0, timeout * 1000), 2**31 - 1)


class Waker:
    """A descriptor that other threads and signal handlers make readable: eventfd(2), or a pipe."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)
        # Nobody may write when `close` has given the number away. Reentrant, because a signal handler may wake while
        # its thread does, and held only over one system call that does not wait.
        self._lock = threading.RLock()
        _wakers.add(self)

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        """Make it readable; of one that is closed, nothing."""
        # Full means that it is readable already.
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._write >= 0:
                os.write(self._write, (1).to_bytes(8, sys.byteorder))

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """More than once is fine, and others may wake meanwhile."""
        with self._lock:
            descriptors = {self._read, self._write} - {-1}
            self._read = self._write = -1
            for descriptor in descriptors:
                os.close(descriptor)

    def renew_lock(self) -> None:
        """In a forked child, where the thread that may have held it does not exist."""
        self._lock = threading.RLock()


_wakers: weakref.WeakSet[Waker] = weakref.WeakSet()


def _renew_wakers() -> None:
    for waker in tuple(_wakers):
        waker.renew_lock()


class Gate:
    """Like a threading.Event that any thread may set, for the thread of a loop.

    Where gevent has patched the program, greenlets go on while it waits; a real Event would hold up all of them.
    """

    def __init__(self) -> None:
        self._waker = Waker()
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        # Who has waited may be through already, and have closed it.
        with contextlib.suppress(OSError):
            self._waker.wake()

    def clear(self) -> None:
        self._is_set = False
        self._waker.clear()

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        while not self._is_set:
            poll.poll()

    def close(self) -> None:
        self._waker.close()


_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP flags
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # if it is SYN alone
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # else let pass
)


def refuse_new_connections(listener: socket.socket) -> bool:
    """Whether the kernel now ignores new callers of a listening TCP socket; who has called already is still let in.

    Closing a listener resets the connections that were made since the last accept(). With a filter that drops every SYN
    (socket(7), SO_ATTACH_FILTER) there are none of those in the end, and late callers are refused once it is closed.
    A Unix socket is shut instead, which leaves what has queued to be accepted.
    """
    if not LINUX:
        return False
    try:
        if listener.family == socket.AF_UNIX:
            listener.shutdown(socket.SHUT_RD)
            return False
        code = array.array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN))
        program = struct.pack("HP", len(_DROP_SYN), code.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True


def welcome_connections(listener: socket.socket) -> None:
    """Undo `refuse_new_connections`, which a process that shares the socket may have left behind."""
    if LINUX:
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def waiting_connections(listener: socket.socket) -> int:
    """How many connections wait to be accepted, 0 where the kernel does not tell: tcp(7), TCP_INFO, tcpi_unacked."""
    if not LINUX or listener.family == socket.AF_UNIX:
        return 0
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    except OSError:
        return 0
    return int(struct.unpack_from("I", info, 24)[0])


def received_bytes(connection: socket.socket) -> int:
    """How many bytes a TCP connection has received, read or not: tcp(7), TCP_INFO, tcpi_bytes_received (Linux 4.1)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return int(struct.unpack_from("Q", info, 128)[0]) if len(info) == 136 else 0


def unread_bytes(connection: socket.socket) -> int:
    """How many bytes have been received and not been read: ioctl_tty(2), FIONREAD."""
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
    return count[0]


def duplicate_socket(descriptor: int) -> socket.socket:
    """A socket of its own for what a descriptor leads to. Raises OSError, and leaves nothing open, if that is none."""
    duplicate = os.dup(descriptor)
    try:
        return native.socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def is_named(sock: socket.socket, listener: Any) -> bool:
    """Whether a socket is the listener with that getsockname(2), or was accepted there."""
    name = sock.getsockname()
    if sock.family == getattr(socket, "AF_UNIX", None) or not isinstance(name, tuple):
        return bool(name == listener)
    if not isinstance(listener, tuple) or sock.type != socket.SOCK_STREAM:
        return False
    # A listener at every address of the machine accepts at one of them.
    return bool(name[1] == listener[1]) and listener[0] in (name[0], "0.0.0.0", "::")


def close_copies(listener: Any) -> None:
    """In a forked child: close what is named like a listener of the parent, whoever opened it there."""
    if not LINUX:
        return
    for number in map(int, os.listdir("/proc/self/fd")):
        # Most of them are no sockets.
        with contextlib.suppress(OSError), duplicate_socket(number) as sock:
            if is_named(sock, listener):
                os.close(number)


def bind_private(sock: socket.socket, path: str) -> None:
    """Bind a Unix socket whose file has mode 0600 from its first instant."""
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
    """Give our own socket's file at `path` a group and a mode; no symlink is followed, nothing else is touched.

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
        # chmod(2) takes no descriptor that was opened by O_PATH, but its name in proc(5) leads to the very inode.
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


def is_owned_directory(path: str) -> bool:
    """Whether `path` is a directory, no symlink, of our own with nothing allowed to others."""
    info = os.lstat(path)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077


class EagerSwitching:
    """Less waiting for the GIL inside: five milliseconds a system call otherwise, while other threads compute.

    The interval is the process's, so the first of several threads sets it and the last one restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(EAGER_SWITCH_INTERVAL)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                sys.setswitchinterval(self._before)

    def abandon(self) -> None:
        """In a forked child: nobody is inside any more."""
        self._lock = threading.Lock()
        if self._depth:
            self._depth = 0
            sys.setswitchinterval(self._before)


eager_switching = EagerSwitching()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=eager_switching.abandon)
    os.register_at_fork(after_in_child=_renew_wakers)

EAGER_SWITCH_INTERVAL = 0.0001
"""Seconds after which a thread that waits for the GIL gets it, while a command is answered."""
