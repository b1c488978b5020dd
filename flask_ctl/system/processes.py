"""Handles on processes, and what the kernel knows about them: owner, parent, start time.

Linux first, then macOS. The module can be imported on every system; functions return None where a system lacks
something. /proc is read here, not by psutil: importing that takes 50 ms and may fail when descriptors are used up, its
start times move with the system clock, and its `children` reads the stat file of every process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import Any

from .credentials import peer_credentials
from .platform import LINUX
from .waiting import wait_readable

MAX_ARGUMENTS = 4096
"""Bytes that are read of a command line."""

_SO_PEERPIDFD = 77  # Linux 6.5; not in the socket module yet


def program_name(pid: int | None) -> str | None:
    """The name of a running process, None if unknown. The process itself has chosen it: proc(5), comm."""
    if not LINUX or pid is None or pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return None


def arguments_of(pid: int | None) -> list[str]:
    """The first words of a process's command line, none if unknown: proc(5), cmdline."""
    if not LINUX or pid is None or pid <= 0:
        return []
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read(MAX_ARGUMENTS)).split("\0")
    except OSError:
        return []


class ProcessHandle:
    """A handle on one process, which stays valid when the pid is reused.

    `fileno()` becomes readable when the process has ended: pidfd_open(2), kqueue(2). A closed handle takes the process
    for ended, because another one may have its number by now.
    """

    def __init__(self, pid: int, descriptor: Any) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def fileno(self) -> int:
        """As of a socket: -1 after `close`."""
        return self._descriptor if isinstance(self._descriptor, int) else int(self._descriptor.fileno())

    def ended(self) -> bool:
        """Whether the process is gone (a zombie is gone)."""
        descriptor = self.fileno()
        return descriptor < 0 or bool(wait_readable([descriptor], 0))

    def signal(self, signum: int) -> None:
        """Send a signal, if it still runs; 0 only checks. Raises PermissionError for another user's process."""
        descriptor = self._descriptor
        with contextlib.suppress(ProcessLookupError):
            if isinstance(descriptor, int):
                if descriptor >= 0:
                    signal.pidfd_send_signal(descriptor, signum)
            elif not self.ended():
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL, if it still runs. Raises PermissionError for another user's process."""
        self.signal(signal.SIGKILL)

    def suspend(self) -> None:
        """SIGSTOP, after which only SIGKILL has an effect. Raises PermissionError for another user's process."""
        self.signal(signal.SIGSTOP)

    def signal_pends(self) -> bool:
        """Whether a signal other than SIGSTOP waits for a suspended process to go on: proc(5), ShdPnd; Linux alone."""
        words = _status_field(self.pid, "ShdPnd")
        return bool(words) and int(words[0], 16) & ~(1 << signal.SIGSTOP - 1) != 0

    def duplicate(self) -> ProcessHandle | None:
        """Another handle on the same process; None if it has ended and can't be watched any more."""
        if not isinstance(self._descriptor, int):
            return open_process(self.pid)
        return ProcessHandle(self.pid, os.dup(self._descriptor)) if self._descriptor >= 0 else None

    def close(self) -> None:
        """More than once is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if not isinstance(descriptor, int):
            descriptor.close()
        elif descriptor >= 0:
            os.close(descriptor)


def open_process(pid: int | None, *, init: bool = False) -> ProcessHandle | None:
    """A handle on the running process `pid`; None if it has ended, can't be watched, or is in another PID namespace.

    None for process 1, which is most likely a mistake, unless `init` is true.
    """
    if pid is None or pid < 1 or (pid == 1 and not init):
        return None
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return ProcessHandle(pid, os.pidfd_open(pid))
    elif hasattr(select, "kqueue"):
        return _kqueue_handle(pid)
    return None


def open_peer(sock: socket.socket) -> ProcessHandle | None:
    """A handle on the process at the other end of a connected Unix socket; None if the kernel does not name it."""
    pid = peer_credentials(sock)[0]
    if pid is None or pid <= 1:
        return None
    if LINUX:
        with contextlib.suppress(OSError):
            descriptor = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
            if _is_pidfd_of(descriptor, pid):
                return ProcessHandle(pid, descriptor)
    return open_process(pid)


def open_reloader(child: ProcessHandle) -> ProcessHandle | None:
    """A handle on Werkzeug's reloader, if it has started `child` and ends with it; else None.

    The kernel confirms that it is the parent, belongs to the same user, and runs the same interpreter. That it is the
    reloader is a claim of the child (in its environment): a server can at most name its own parent.
    """
    if not LINUX:
        return None
    try:
        with open(f"/proc/{child.pid}/environ", "rb") as file:
            if b"WERKZEUG_RUN_MAIN=true" not in file.read().split(b"\0"):
                return None
    except OSError:
        return None
    parent = open_parent(child)
    if parent is not None and not _same_program(child.pid, parent.pid):
        # The reloader has died, and its child has been reparented.
        parent.close()
        return None
    return parent


def _same_program(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{one}/exe"), os.stat(f"/proc/{other}/exe"))
    except OSError:
        return False


def open_parent(child: ProcessHandle) -> ProcessHandle | None:
    """A handle on the parent of a process, if it belongs to the same user, both from the kernel.

    The parent may be process 1, which must not be killed.
    """
    parent = parent_of(child.pid)
    handle = open_process(parent, init=True)
    if handle is None:
        return None
    owner = owner_of(handle.pid)
    if owner is None or owner != owner_of(child.pid) or child.ended() or parent_of(child.pid) != parent:
        handle.close()
        return None
    return handle


def owner_of(pid: int) -> int | None:
    """The effective uid of a process in this user namespace, from the kernel; None if unknown."""
    # The owner of /proc/<pid> is root for processes that have changed their user: proc(5), dumpable.
    words = _status_field(pid, "Uid")
    return int(words[1]) if len(words) > 1 else None


def inner_pid(pid: int) -> int:
    """The pid that a process has in its own PID namespace, from the kernel: proc(5), NSpid."""
    words = _status_field(pid, "NSpid")
    return int(words[-1]) if words else pid


def parent_of(pid: int) -> int | None:
    """The pid of a process's parent, from the kernel; None if unknown or in another PID namespace."""
    words = _status_field(pid, "PPid")
    return int(words[0]) or None if words else None


def is_suspended(pid: int) -> bool:
    """Whether a process has been stopped by a signal (SIGSTOP)."""
    return _status_field(pid, "State")[:1] == ["T"]


def _status_field(pid: int, name: str) -> list[str]:
    """The words of one line of /proc/<pid>/status; none if it can't be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = [line.decode("ascii", "replace").partition(":") for line in file]
    except OSError:
        return []
    return next((value.split() for key, _, value in lines if key == name), [])


def start_time(pid: int) -> int:
    """The start time of a process in kernel clock ticks since boot; 0 if unknown.

    Pid and start time together identify a process.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            # Fields from the third on: proc(5). The second, the name, may hold spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def process_sum(pid: int) -> str:
    """Six hexadecimal digits for a running process: the same over an exec, others in each other process.

    Also in another container, and after a reboot, where pid and host name may be the same.
    """
    # It loads OpenSSL, which clients of one machine do not need.
    import hashlib

    parts = [str(pid), str(start_time(pid))]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid", "/proc/self/ns/mnt"):
        try:
            parts.append(os.readlink(path) if path.startswith("/proc/self") else _read_text(path))
        except OSError:
            continue
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:6]


def _read_text(path: str) -> str:
    with open(path) as file:
        return file.read()


def children_of(pid: int) -> list[int]:
    """The children of a process, including zombies, from the kernel; empty if unknown."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                children += map(int, file.read().split())
    return children


def _is_pidfd_of(descriptor: int, pid: int) -> bool:
    # On some architectures this number means another option, with another result.
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as info:
            # -1: the process has ended and has been reaped.
            return any(line.split() in (["Pid:", str(pid)], ["Pid:", "-1"]) for line in info)
    except OSError:
        return False


def _kqueue_handle(pid: int) -> ProcessHandle | None:
    module: Any = select
    queue = module.kqueue()
    event = module.kevent(pid, module.KQ_FILTER_PROC, module.KQ_EV_ADD, module.KQ_NOTE_EXIT)
    try:
        queue.control([event], 0)
    except OSError:
        queue.close()
        return None
    return ProcessHandle(pid, queue)
