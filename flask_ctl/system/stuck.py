"""Why a process does not answer, as far as the kernel tells: proc(5), sched(7), ptrace(2).

A C call that does not release the interpreter's lock (the GIL) stops all Python threads of its process, control
threads included. What the kernel knows of each thread names the one that may hold the lock. No debugger is needed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from .platform import LINUX
from .processes import owner_of

INTERVAL = 0.2
"""Seconds between the two looks at each thread."""

MAX_THREADS = 500
MAX_SUSPECTS = 5

LEAST_WAKEUPS = 5
"""A thread that waits for the GIL wakes up every 5 ms (`sys.getswitchinterval`), so up to 40 times in INTERVAL."""

_SYSTEM_CALLS = {
    "x86_64": {
        0: "read", 1: "write", 7: "poll", 17: "pread64", 18: "pwrite64", 23: "select", 35: "nanosleep", 42: "connect",
        43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 72: "fcntl", 73: "flock",
        74: "fsync", 75: "fdatasync", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid",
        257: "openat", 270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 288: "accept4", 426: "io_uring_enter",
    },
    "aarch64": {
        22: "epoll_pwait", 25: "fcntl", 32: "flock", 56: "openat", 63: "read", 64: "write", 67: "pread64",
        68: "pwrite64", 72: "pselect6", 73: "ppoll", 82: "fsync", 83: "fdatasync", 95: "waitid", 98: "futex",
        101: "nanosleep", 115: "clock_nanosleep", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom",
        211: "sendmsg", 212: "recvmsg", 242: "accept4", 260: "wait4", 426: "io_uring_enter",
    },
}  # fmt: skip

_IDLE = {"accept", "accept4", "epoll_pwait", "epoll_wait", "poll", "ppoll", "pselect6", "select", "futex"}
"""Where the threads of a server wait for work, without the GIL."""

_IDLE_FUNCTIONS = {"do_epoll_wait", "do_poll", "do_select", "ep_poll", "inet_csk_accept", "poll_schedule_timeout"}
"""The same as kernel functions."""


class ThreadSample(NamedTuple):
    """One look at a thread: state (R, S, D, T, …), kernel function, system call, processor time, times it has slept."""

    thread_id: int
    name: str
    state: str
    waits_in: str
    system_call: str
    ticks: int
    sleeps: int

    @property
    def in_futex(self) -> bool:
        """Whether it waits for a lock, perhaps the GIL."""
        return self.system_call == "futex" or self.waits_in.startswith("futex")

    @property
    def idle(self) -> bool:
        """Whether it waits for work."""
        return self.system_call in _IDLE or (not self.system_call and self.waits_in in _IDLE_FUNCTIONS)


def why_silent(pids: Collection[int]) -> dict[int, dict[str, Any]]:
    """What keeps processes from answering, by pid, without those that have ended. Takes INTERVAL.

    ``text`` says it in a sentence. ``state`` is ``stopped`` (by a signal, or by the process that traces it), ``held``
    (threads wait for the GIL), ``free`` (none was seen to) or ``unknown`` (the caller may not see where its threads
    wait). ``waiting`` is the number of threads that wait for the GIL, and ``threads`` are those that may hold it, each
    ``{"thread_id", "name", "computes", "system_call", "waits_in"}``. ``command`` shows the stacks, and ``run_as`` says
    who may run it. Empty on other systems than Linux.
    """
    before = {pid: _look(pid) for pid in pids}
    time.sleep(INTERVAL)
    pairs = {pid: [(then[id], now) for id, now in _look(pid).items() if id in then] for pid, then in before.items()}
    return {pid: _found(pid, threads) for pid, threads in pairs.items() if threads}


def _found(pid: int, threads: list[tuple[ThreadSample, ThreadSample]]) -> dict[str, Any]:
    computing: list[dict[str, Any]] = []
    sleeping: list[dict[str, Any]] = []
    waiting, told = 0, False
    for then, now in threads:
        computes = now.state == "R" and now.ticks > then.ticks
        # A thread that is about to go on is at no place.
        at = then if now.state == "R" else now
        told = told or bool(at.system_call or at.waits_in)
        if not computes and at.in_futex and now.sleeps - then.sleeps >= LEAST_WAKEUPS:
            waiting += 1
        elif computes or not (at.state == "R" or at.in_futex or at.idle):
            known = {"thread_id": now.thread_id, "name": now.name, "computes": computes}
            suspect = {**known, "system_call": at.system_call, "waits_in": at.waits_in}
            (computing if computes else sleeping).append(suspect)
    if not told:
        # The process is another user's, or has changed its user.
        sleeping = []
    stopped = all(now.state in "Tt" for _, now in threads)
    found = {
        "pid": pid,
        "state": "stopped" if stopped else "held" if waiting else "free" if told else "unknown",
        "waiting": waiting,
        "threads": [] if stopped else [*computing, *sleeping][:MAX_SUSPECTS],
        "command": f"py-spy dump --pid {pid}",
        "run_as": _run_as(pid),
    }
    # ptrace(2): the state "t" is that of a thread that its tracer has stopped, where SIGCONT does nothing.
    tracer = _tracer(pid) if stopped and any(now.state == "t" for _, now in threads) else ""
    return {"text": tracer or _text(found), **found}


def _tracer(pid: int) -> str:
    fields: list[str] = []
    with contextlib.suppress(OSError):
        fields = _read(f"/proc/{pid}/status").partition("\nTracerPid:")[2].split()
    by = f"pid {fields[0]}" if fields and fields[0] != "0" else "another process"
    return f"pid {pid} was stopped by {by}, which traces it, such as a debugger; it goes on when that lets it"


def _text(found: dict[str, Any]) -> str:
    pid, threads = found["pid"], "; ".join(map(_thread_text, found["threads"]))
    if found["state"] == "stopped":
        return f"pid {pid} was stopped by a signal; SIGCONT lets it go on"
    stacks = f"its stacks, as {found['run_as']}: {found['command']}"
    if found["state"] == "held":
        number = "a thread waits" if found["waiting"] == 1 else f"{found['waiting']} threads wait"
        return (
            f"pid {pid} is stuck: {number} for the interpreter's lock (the GIL), which a C call seems to hold,"
            f" perhaps that of {threads or 'a thread that waits for another lock'}; {stacks}"
        )
    busy = threads and f"; perhaps it is {threads}"
    if found["state"] == "unknown":
        return f"uid {os.geteuid()} may not see where the threads of pid {pid} wait{busy}; {stacks}"
    return f"pid {pid}: no thread was seen to wait for the interpreter's lock (the GIL){busy}; {stacks}"


def _thread_text(thread: dict[str, Any]) -> str:
    name = f"thread {thread['thread_id']} ({thread['name']})"
    if thread["computes"]:
        return f"{name}, which computes"
    call, function = thread["system_call"], thread["waits_in"]
    return f"{name}, which sleeps in {call or 'an unknown system call'}{function and f' ({function})'}"


def _look(pid: int) -> dict[int, ThreadSample]:
    samples = {}
    with contextlib.suppress(OSError):
        for thread in sorted(map(int, os.listdir(f"/proc/{pid}/task")))[:MAX_THREADS] if LINUX else []:
            with contextlib.suppress(OSError, ValueError, IndexError):
                samples[thread] = _sample(f"/proc/{pid}/task/{thread}", thread)
    return samples


def _sample(directory: str, thread: int) -> ThreadSample:
    name, _, rest = _read(f"{directory}/stat").partition("(")[2].rpartition(")")
    fields = rest.split()
    waits_in = _read(f"{directory}/wchan").strip()
    number = _read(f"{directory}/syscall").partition(" ")[0]
    known = _SYSTEM_CALLS.get(os.uname().machine, {})
    # The numbers are those of one architecture: without its table, only the kernel function is known.
    call = known.get(int(number), f"system call {number}") if number.isdecimal() and known else ""
    sleeps = _read(f"{directory}/status").partition("\nvoluntary_ctxt_switches:")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ThreadSample(
        thread, name, fields[0], "" if waits_in == "0" else waits_in, call, ticks, int(sleeps[0]) if sleeps else 0
    )


def _read(path: str) -> str:
    """The text of a file; "" if it must not be read, as for a process of another user."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except PermissionError:
        return ""


def _run_as(pid: int) -> str:
    """Who may trace the process: ptrace(2), "Ptrace access mode checking"."""
    uid = owner_of(pid)
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            scope = int(file.read())
        if scope == 3:
            return "nobody: kernel.yama.ptrace_scope is 3"
        if scope:
            return f"root (kernel.yama.ptrace_scope is {scope})"
    if not uid:
        return "root"
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}/environ").st_uid != uid:
            # Its user was changed without an exec, so it is not dumpable: prctl(2).
            return "root (the process has changed its user, so its own can't trace it)"
    return f"root or uid {uid}"
