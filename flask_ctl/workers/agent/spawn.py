"""Where a master's hub listens for its workers, and how a worker starts it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import Any

from ...errors import ConfigurationError
from ...system.addresses import default_directories, prepare_directory
from ...system.files import try_lock
from ...system.platform import LINUX
from ...system.processes import start_time

LOCK = 3
"""The number at which the hub finds the lock that was taken for it."""


def private_path(master: int) -> str:
    """The socket of a master's hub, in a directory that is ours alone. Raises ConfigurationError if there is none.

    Where workers before this one have found it comes first: a user who logs in brings a directory that is preferred.
    """
    problem = ConfigurationError("there is no directory for the hub's socket")
    name = f"{master}-{start_time(master)}.hub"
    paths = [os.path.join(directory, name) for directory in default_directories()]
    for path in sorted(paths, key=os.path.exists, reverse=True):
        try:
            prepare_directory(path)
        except ConfigurationError as error:
            problem = error
        else:
            return path
    raise problem


def start_hub(path: str, master: int) -> None:
    """Start the hub, unless another worker is doing so. The worker that gets the lock hands it to the hub."""
    lock = _take_lock(path)
    if lock is None:
        return
    try:
        command = [_interpreter(), "-m", "flask_ctl.hub", path, str(master), str(start_time(master))]
        # It forks once more and lets its first process end, so that it becomes a daemon.
        _reap(_spawn(command, _environment(), lock))
    finally:
        os.close(lock)


def _take_lock(path: str) -> int | None:
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if try_lock(lock):
        # A hub that ends removes the file.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path + ".lock").st_ino == os.fstat(lock).st_ino:
                return lock
    os.close(lock)
    return None


def _spawn(command: list[str], environment: dict[str, str], lock: int) -> int:
    """Start a program in a session of its own, with the lock at LOCK; its pid.

    posix_spawn(3), because the process has threads, and may have handlers for what happens at a fork. Of `posix`,
    because gevent changes `os`.
    """
    import posix

    options: dict[str, Any] = {"setsid": True} if LINUX else {}
    actions = [(os.POSIX_SPAWN_DUP2, lock, LOCK)]
    return posix.posix_spawn(command[0], command, environment, file_actions=actions, setsigmask=[], **options)


def _reap(pid: int) -> None:
    import posix

    # The program ignores SIGCHLD, or has waited for all of its children.
    with contextlib.suppress(ChildProcessError):
        posix.waitpid(pid, 0)


def _interpreter() -> str:
    """The interpreter of this process's packages: a server that embeds Python is itself `sys.executable`."""
    if os.path.basename(sys.executable or "").startswith("python"):
        return sys.executable
    return os.path.join(sys.prefix, "bin", f"python{sys.version_info.major}")


def _environment() -> dict[str, str]:
    """Ours, with the way to this package and its dependencies for an interpreter that would not find them."""
    origins = [importlib.util.find_spec(name).origin for name in ("flask_ctl", "psutil")]  # type: ignore[union-attr]
    packages = [os.path.dirname(os.path.dirname(os.path.abspath(origin or ""))) for origin in origins]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, [*known, *packages])))}
