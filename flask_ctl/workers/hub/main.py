"""``python -m flask_ctl.hub PATH MASTER START``: become the hub of the process MASTER, which was started at START.

A worker starts it, with the lock on PATH at a descriptor that both know.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys

from ...system import logs

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


def detach(kept: int) -> None:
    """Become a daemon in a session of its own; keep standard error and one descriptor."""
    if os.fork():
        os._exit(0)
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    close_above(kept)
    os.set_inheritable(kept, False)


def close_above(kept: int) -> None:
    """Close every descriptor above `kept`; where the limit is huge, going through all numbers would take minutes."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        return
    for number in numbers:
        if number > kept:
            # The descriptor of the listing itself is closed already.
            with contextlib.suppress(OSError):
                os.close(number)


def show_audit() -> None:
    """What no worker writes is shown on standard error, all of it."""
    logger = logging.getLogger("flask_ctl.audit")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())


def become_hub() -> None:
    """Serve as the hub until the master has ended.

    The arguments are the path of the socket, and the pid and start time of the master.
    """
    from ..agent.spawn import LOCK

    path, pid, started = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    detach(LOCK)
    show_audit()
    from ...system.metrics import prepare
    from ...system.processes import open_process, start_time
    from .hub import Hub

    prepare()
    master = open_process(pid, init=True)
    if master is None or start_time(pid) != started:
        return
    Hub(path, LOCK, master).run()


def main() -> None:
    """Be the hub of a master until it has ended; does not return."""
    try:
        become_hub()
    except BaseException:
        logging.getLogger("flask_ctl").exception("the hub has failed; the workers start another")
    # Never 3 or 4: a gunicorn that has inherited us, as process 1 of a container, would take it for a worker's.
    logs.end()
    os._exit(0)
