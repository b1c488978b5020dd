"""Which processes a stop waits for and may kill: only those that the kernel names.

The kernel names the listener twice: as the peer of the connection (SO_PEERCRED), and as the holder of byte 0 of the
socket's lock file (F_GETLK). If the two differ, the socket only forwards to another process, as ssh does. The kernel
also names a process's parent. All of these processes have to belong to the owner of the lock file.

What a process claims itself can only narrow this choice: that Werkzeug's reloader has started it, and which master its
server has (see `locks`). The answers of a server never decide which process is killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from ..errors import AccessDenied, ConfigurationError, ControlError
from ..system.locks import LockFile, Member, is_ours, lock_path
from ..system.processes import (
    ProcessHandle,
    inner_pid,
    is_suspended,
    open_parent,
    open_process,
    open_reloader,
    owner_of,
)
from .connection import Connection
from .trust import Trust

KILL_ROUNDS = 20
"""The most rounds of looking for workers that were being started while their master was killed."""


class Targets:
    """Handles on the processes of the server at one address, for the caller to close.

    `pid` is the pid for messages, of the single process or the master; None if the kernel names none. `obstacle` is the
    reason why the server can't be killed, None if it can. `unobservable` tells whether its end cannot be seen from
    here, because the whole PID namespace ends with it. `server` are the processes that end with the server: the single
    process and Werkzeug's reloader, or the master. A master also has `workers` and a `hub`, which ends by itself after
    the master; `master` is the master's pid in the workers' PID namespace.
    """

    def __init__(
        self,
        pid: int | None = None,
        obstacle: ControlError | None = None,
        *,
        unobservable: bool = False,
        server: Sequence[ProcessHandle] = (),
        hub: ProcessHandle | None = None,
        workers: Sequence[ProcessHandle] = (),
        lock: LockFile | None = None,
        master: int = 0,
    ) -> None:
        self.pid = pid
        self.obstacle = obstacle
        self.unobservable = unobservable
        self.server = list(server)
        self.hub = hub
        self.workers = list(workers)
        self._lock = lock
        self._master = master

    @property
    def watched(self) -> list[ProcessHandle]:
        """The processes whose end is the end of the server."""
        return self.server if self.hub is None else [self.hub, *self.server]

    def kill(self) -> list[ProcessHandle]:
        """Kill the server; returns the handles of the processes that end now. Raises PermissionError."""
        # Parents first, or they would start new children.
        for process in (*reversed(self.server), *self.workers):
            process.kill()
        self._kill_late_workers()
        # A hub that is suspended (SIGSTOP) ends only once it is continued.
        hubs = [] if self.hub is None or is_suspended(self.hub.pid) else [self.hub]
        return [*self.server, *self.workers, *hubs]

    def close(self) -> None:
        """Close the handles; more than once is fine."""
        for process in (*self.watched, *self.workers):
            process.close()
        if self._lock is not None:
            self._lock.close()
        self.server, self.workers, self.hub, self._lock = [], [], None, None

    def _kill_late_workers(self) -> None:
        if self._lock is None or not self._master:
            return
        for _ in range(KILL_ROUNDS):
            known = {process.pid for process in (*self.server, *self.workers)}
            late = [member for member in _workers_of(self._lock, self._master) if member.pid not in known]
            opened = [worker for member in late if (worker := _open(self._lock, member)) is not None]
            for worker in opened:
                worker.kill()
            self.workers += opened
            if not opened:
                return


def targets_of(connection: Connection) -> Targets:
    """The processes at the other end of a connection."""
    path, pid = connection.path, connection.peer_pid()
    if pid == os.getpid():
        return Targets(pid, _ours())
    if path is None or pid is None:
        return Targets(obstacle=_unnamed(connection.endpoint))
    if pid == 1:
        return _init()
    listener = connection.peer()
    if is_ours(lock_path(path)):
        return Targets(obstacle=_ours(), server=[] if listener is None else [listener])
    try:
        lock = LockFile(lock_path(path))
    except PermissionError:
        # Only its owner and root can read it.
        return Targets(obstacle=_not_yours(path), server=[] if listener is None else [listener])
    except OSError:
        lock = None
    if lock is not None and listener is not None and lock.server() == pid:
        return _targets(lock, path, listener)
    for opened in (lock, listener):
        if opened is not None:
            opened.close()
    return Targets(obstacle=_elsewhere(path, pid))


def supervised_pid(connection: Connection) -> int | None:
    """The process whose end a supervisor of the server notices; None if the kernel does not name it.

    It is the single process, Werkzeug's reloader, or the master.
    """
    with contextlib.closing(targets_of(connection)) as targets:
        return targets.server[-1].pid if targets.server else targets.pid


def targets_at(path: str, trust: Trust) -> Targets | None:
    """The processes that hold the lock file of a socket, for a server that does not accept; None without any.

    Raises AccessDenied for the lock file of a user who is not trusted, NotRunning as `Trust.check_holder`.
    """
    if is_ours(lock_path(path)):
        return Targets(obstacle=_ours())
    try:
        lock = LockFile(lock_path(path))
    except PermissionError:
        return Targets(obstacle=_not_yours(path))
    except OSError:
        return None
    try:
        trust.check_owner(lock.path, lock.owner)
        pid = lock.server()
        if pid is not None:
            trust.check_holder(path, pid)
        if pid is None and lock.is_held():
            return _targets(lock, path, None)
        listener = _open(lock, Member(pid, 0, 0)) if pid is not None and pid > 1 else None
        if listener is not None:
            return _targets(lock, path, listener)
    except BaseException:
        lock.close()
        raise
    lock.close()
    if pid is None:
        return None
    if pid == 1:
        return _init()
    return Targets(obstacle=_foreign(path, pid) if pid else _unnamed(path))


def _targets(lock: LockFile, path: str, listener: ProcessHandle | None) -> Targets:
    """The processes of a server, by its lock file, which they then own; `listener` is None for a hub that has died."""
    hub = None
    if listener is not None:
        hub = next((m for m in lock.members() if m.pid == listener.pid and not m.number), None)
    if listener is not None and hub is None:
        reloader = open_reloader(listener)
        targets = Targets(listener.pid, server=[listener, *([] if reloader is None else [reloader])], lock=lock)
    else:
        targets = _targets_behind_hub(lock, path, listener, hub)
    if any(process.pid == 1 for process in targets.server):
        targets.close()
        return _init()
    if os.geteuid() not in (0, lock.owner):
        targets.obstacle = _not_yours(path)
    return targets


def _targets_behind_hub(lock: LockFile, path: str, hub: ProcessHandle | None, member: Member | None) -> Targets:
    named = [m for m in lock.members() if m.number and (member is None or m.master == member.master)]
    opened = [(m, handle) for m in named if (handle := _open(lock, m)) is not None]
    workers = [handle for _, handle in opened]
    masters = ((m.master, found) for m, worker in opened if (found := _open_master(worker, m)) is not None)
    number, master = next(masters, (0, None))
    if master is not None:
        return Targets(master.pid, server=[master], hub=hub, workers=workers, lock=lock, master=number)
    if hub is None and workers:
        # Without hub and master no new workers are started.
        return Targets(workers[0].pid, server=workers, lock=lock)
    return Targets(obstacle=_no_master(path, workers), hub=hub, workers=workers, lock=lock)


def _open_master(worker: ProcessHandle, member: Member) -> ProcessHandle | None:
    """A handle on the worker's parent, or on the worker itself, if that is the master which the worker has named."""
    alone = inner_pid(worker.pid) == member.master
    master = open_process(worker.pid, init=True) if alone else open_parent(worker)
    if master is not None and inner_pid(master.pid) != member.master:
        # Its master has died, and the worker has been reparented.
        master.close()
        return None
    return master


def _open(lock: LockFile, member: Member) -> ProcessHandle | None:
    """A handle on the process that holds a byte, checked again once the handle is open: the pid may be reused."""
    handle = open_process(member.pid, init=True)
    if handle is None:
        return None
    if lock.holds(member) and owner_of(member.pid) == lock.owner:
        return handle
    handle.close()
    return None


def _workers_of(lock: LockFile, master: int) -> list[Member]:
    return [member for member in lock.members() if member.master == master and member.number]


def _ours() -> ControlError:
    return ConfigurationError("this process belongs to the server, which does not kill itself")


def _init() -> Targets:
    return Targets(
        1,
        ConfigurationError(
            "the server is process 1 of this PID namespace, which no process inside can kill; run it from outside, or"
            " docker stop"
        ),
        unobservable=True,
    )


def _not_yours(path: str) -> ControlError:
    return AccessDenied(f"the server at {path} belongs to another user, so you can't kill it")


def _unnamed(endpoint: str) -> ControlError:
    return ConfigurationError(
        f"the kernel does not name the process that serves at {endpoint}, so it can't be killed from here; run it on"
        " the server's machine, in its PID namespace or one around it, with the path of its Unix socket"
    )


def _foreign(path: str, pid: int) -> ControlError:
    return ConfigurationError(
        f"pid {pid} serves at {path}, but does not belong to the owner of its lock file, so it is not killed; kill it"
        " by hand"
    )


def _elsewhere(path: str, pid: int) -> ControlError:
    return ConfigurationError(
        f"pid {pid} listens at {path}, but does not hold the lock {lock_path(path)}; it may only forward a socket of"
        " another machine, so it is not killed; run it where the server runs"
    )


def _no_master(path: str, workers: Sequence[ProcessHandle]) -> ControlError:
    if not workers:
        return ConfigurationError(
            f"no worker of the server at {path} holds a lock, so the kernel does not name its master; kill that by hand"
        )
    return ConfigurationError(
        f"the parent of worker {workers[0].pid} is not the master of the server at {path}, or belongs to another user;"
        " kill the master by hand"
    )
