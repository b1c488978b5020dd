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

_SO_PEERPIDFD = 77  # Linux 6.5; not in the socket module yet


def program_name(pid: int | None) -> str | None:
    """The name of a running process, None if it can't be had. The process has chosen it: proc(5), comm."""
    if not LINUX or pid is None or pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return None


class ProcessHandle:
    """A running process that can't be mistaken for a later one with its pid.

    `fileno()` becomes readable when the process has ended: pidfd_open(2), kqueue(2).
    """

    def __init__(self, pid: int, descriptor: Any) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor if isinstance(self._descriptor, int) else int(self._descriptor.fileno())

    def ended(self) -> bool:
        """Whether the process is gone (a zombie is gone)."""
        return bool(wait_readable([self.fileno()], 0))

    def signal(self, signum: int) -> None:
        """Send a signal, if it still runs; 0 only checks. Raises PermissionError for another user's process."""
        with contextlib.suppress(ProcessLookupError):
            if isinstance(self._descriptor, int):
                signal.pidfd_send_signal(self._descriptor, signum)
            elif not self.ended():
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL, if it still runs. Raises PermissionError for another user's."""
        self.signal(signal.SIGKILL)

    def suspend(self) -> None:
        """SIGSTOP, so that it hears of no other signal but SIGKILL. Raises PermissionError for another user's."""
        self.signal(signal.SIGSTOP)

    def duplicate(self) -> ProcessHandle | None:
        """Another handle on the same process; None if it is gone and can't be watched any more."""
        return (
            ProcessHandle(self.pid, os.dup(self._descriptor))
            if isinstance(self._descriptor, int)
            else open_process(self.pid)
        )

    def close(self) -> None:
        if isinstance(self._descriptor, int):
            os.close(self._descriptor)
        else:
            self._descriptor.close()


def open_process(pid: int | None, *, init: bool = False) -> ProcessHandle | None:
    """A handle on the running process `pid`; None if it is gone, can't be watched, or belongs to another namespace.

    Process 1 counts as one that is named by mistake, unless `init` says that it is meant.
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
    """A handle on the process at the other end of a connected Unix socket; None if the kernel can't name it."""
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
    """A handle on the parent of a process that Werkzeug's reloader has started, and that ends with it.

    That it is the parent, of the same user, and runs the same interpreter, is the kernel's word. That the reloader has
    started it is the process's own (its environment): a server can at most name its own parent.
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
    """A handle on the parent of a process, if it is of the same user; all of it the kernel's word.

    Process 1 is given too, as a handle that is not to be killed.
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
    """The effective uid of a process, as this user namespace sees it; None if it can't be known. The kernel's word."""
    # The owner of /proc/<pid> is root for processes that have changed their user: proc(5), dumpable.
    words = _status_field(pid, "Uid")
    return int(words[1]) if len(words) > 1 else None


def inner_pid(pid: int) -> int:
    """The pid that a process has in its own PID namespace. The kernel's word: proc(5), NSpid."""
    words = _status_field(pid, "NSpid")
    return int(words[-1]) if words else pid


def parent_of(pid: int) -> int | None:
    """The pid of a process's parent; None if it can't be known, or is in another PID namespace. The kernel's word."""
    words = _status_field(pid, "PPid")
    return int(words[0]) or None if words else None


def is_suspended(pid: int) -> bool:
    """Whether a process has been stopped by a signal. The kernel's word."""
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
    """When a process was started, in ticks of the kernel's clock and by its word; 0 if it can't be known.

    With the pid it is unique.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            # Fields from the third on: proc(5). The second, the name, may hold spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started and not yet waited for; none where it is not told. The kernel's word."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                children += map(int, file.read().split())
    return children


def _is_pidfd_of(descriptor: int, pid: int) -> bool:
    # The option's number is another one on some architectures, where it yields anything but this.
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as info:
            # -1: the process is gone, and has been waited for.
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
