"""What a refused connection means: that no server runs, or that its hub is about to be replaced.

The hub of a server with several workers may be killed. The workers start another one within about a second; until then
nothing listens at the socket, and the lock file shows that they live.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from ..errors import NotRunning, TimedOut
from ..system.locks import LockFile, Starter, is_ours, lock_path
from ..system.processes import open_process, start_time
from .trust import Trust

RETRY_INTERVAL, MAX_RETRY_INTERVAL = 0.01, 0.1
"""Seconds between two tries: the first pause, and the longest."""

BLIND_TIME = 2.0
"""Seconds that a client which may not read the lock file waits for a server to listen again."""

MAX_NAMED = 3
"""The most processes that a message names."""


class Absence:
    """The wait of a client for a socket at which nothing listens at the moment."""

    def __init__(self, path: str, deadline: float | None, trust: Trust) -> None:
        self._path = path
        self._deadline = deadline
        self._trust = trust
        self._began = time.monotonic()
        self._interval = RETRY_INTERVAL
        self._tells = "is held by"

    def left(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause(self, error: NotRunning) -> None:
        """Wait a moment before the next try.

        Raises `error` if no process of the server is left, TimedOut if there is one but the deadline has passed.
        """
        holders = self._holders()
        if holders is None:
            if time.monotonic() >= min(self._began + BLIND_TIME, self._deadline or float("inf")):
                raise error
        elif not holders:
            raise with_reloaders(error, [reloader_at(lock_path(self._path), self._trust)])
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimedOut(
                f"nothing listens at {self._path}, but the server is still there: its lock {lock_path(self._path)}"
                f" {self._tells} {_processes(holders)}",
                {"pids": [pid for pid in holders if pid]},
            )
        left = self.left()
        time.sleep(self._interval if left is None else min(self._interval, left))
        self._interval = min(2 * self._interval, MAX_RETRY_INTERVAL)

    def _holders(self) -> list[int] | None:
        """The pids of the lock file's holders, 0 for an unnamed process; None if the file may not be read."""
        path = lock_path(self._path)
        if is_ours(path):
            return [os.getpid()]
        try:
            with LockFile(path) as lock:
                if not self._trust.accepts(lock.owner):
                    return []
                server = lock.server()
                holders = {*(member.pid for member in lock.members()), *([] if server is None else [server])}
                self._tells = "is held by" if holders else "is that of the workers of"
                if holders:
                    return sorted(holders)
                # Workers that are still loading hold no byte yet.
                master = lock.master()
                return [master.pid] if master is not None and runs(master) else []
        except PermissionError:
            return None
        except OSError:
            return []


def reloader_at(lock: str, trust: Trust) -> int | None:
    """The pid of Werkzeug's reloader that has started the last server at a lock file, None if it has ended."""
    if is_ours(lock):
        return None
    try:
        with LockFile(lock) as file:
            reloader = file.reloader() if trust.accepts(file.owner) else None
    except OSError:
        return None
    return reloader.pid if reloader is not None and runs(reloader) else None


def workers_live(path: str, trust: Trust) -> bool:
    """Whether a server at that socket has workers, or a master that will start some, as far as this user may know."""
    if is_ours(lock_path(path)):
        return True
    try:
        with LockFile(lock_path(path)) as lock:
            if not trust.accepts(lock.owner):
                return False
            master = lock.master()
            return any(member.number for member in lock.members()) or (master is not None and runs(master))
    except OSError:
        return False


def runs(process: Starter) -> bool:
    """Whether this very process still runs; False for a later process of the same pid, or an unknown start time."""
    handle = open_process(process.pid, init=True)
    if handle is None:
        return False
    try:
        return process.started > 0 and start_time(process.pid) == process.started and not handle.ended()
    finally:
        handle.close()


def with_reloaders(error: NotRunning, pids: Iterable[int | None]) -> NotRunning:
    """The error, with the reloaders that will start the program again added to its message and data."""
    found = [pid for pid in pids if pid is not None]
    if not found:
        return error
    waiting = "; ".join(f"the reloader, pid {pid}, waits for a change of the program" for pid in found[:MAX_NAMED])
    return NotRunning(f"{error.message}; {waiting}", {**(error.data or {}), "reloaders": found})


def _processes(pids: list[int]) -> str:
    named = [f"pid {pid}" for pid in pids if pid][:MAX_NAMED]
    return " and ".join(named) or "a process of another PID namespace"
