"""Process 1 of a container: a parent of `flask-ctl run` that passes signals on, and reaps the orphans of the namespace.

The kernel gives process 1 no default action of a signal, and every process whose parent has ended. Neither is for an
HTTP server: its `subprocess` would miss the children that somebody else has reaped. Nothing but the standard library
is imported here, so that this process stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

LINGER = 1.0
"""Seconds for clients in the container (docker exec) to print their results: the kernel kills them with process 1."""

PROGRAMS = ("flask-ctl", "-m")
"""Names of this program; Flask's own imports this package, too. The second one stands for ``python -m`` meanwhile."""

FAULTS = (signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP)
"""Signals for what a process has done itself."""


def fork_as_init() -> None:
    """As process 1, stay behind as the parent of the program, which alone returns; otherwise do nothing.

    This process ends with the program's exit code, 128 and the number of the signal if that has killed it (as a shell).
    """
    if os.getpid() != 1 or "run" not in sys.argv or os.path.basename(sys.argv[0]) not in PROGRAMS:
        return
    if os.environ.get("LISTEN_PID") == "1":
        # Sockets that were passed are for this very process: sd_listen_fds(3).
        return
    # Signals that are blocked wait for sigwait; others would be dropped.
    waited_for = signal.valid_signals() - {*FAULTS, signal.SIGKILL, signal.SIGSTOP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    # Where it was ignored the kernel would tell no exit code.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while (code := _reap(child)) is None:
        signum = signal.sigwait(waited_for)
        if signum != signal.SIGCHLD:
            os.kill(child, signum)
    # Without /proc nothing is known of clients.
    with contextlib.suppress(OSError, ValueError):
        _linger()
    os._exit(code)


def _take_terminal() -> None:
    """Have Ctrl-C interrupt this process alone: process 1 passes it on. Ctrl-Z does nothing."""
    os.setpgid(0, 0)
    # No shell would have it go on.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    # SIGTTOU, which would stop this process, is still blocked.
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())


def _reap(child: int) -> int | None:
    """Reap every process that has ended; the exit code of the child, None while that runs."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
    return code if code is None or code >= 0 else 128 - code


def _linger() -> None:
    """Wait, for LINGER at most, while a process runs that was started from outside of the container."""
    deadline = time.monotonic() + LINGER
    while time.monotonic() < deadline and any(map(_is_from_outside, os.listdir("/proc"))):
        time.sleep(0.01)
        _reap(0)


def _is_from_outside(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return False
    return pid.isdecimal() and pid != "1" and parent == b"0" and state != b"Z"
