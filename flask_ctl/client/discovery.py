"""Finding the instance of the current directory among those that run."""

from __future__ import annotations

import os

from ..errors import AmbiguousTarget, NotRunning
from ..system.addresses import (
    default_directories,
    default_lock_files,
    default_sockets,
    other_names,
    own_uid,
    temporary_directory,
)
from ..system.credentials import home_of
from .absence import reloader_at, with_reloaders
from .instances import LiveInstance, instances_at, is_below, live_instances
from .trust import Trust

MAX_LOCK_FILES = 1000
"""The most lock files that are read to find a reloader: they stay when a server ends."""


def find_instance(directory: str | None = None, timeout: float | None = None, *, operate: bool = False) -> str:
    """The socket of the one live instance that belongs to `directory`, by default the current one.

    With `operate`, for a command that changes something, an instance in a directory that holds more than one project
    (see `is_common`) has to have exactly that directory. Raises NotRunning if no instance is alive, AmbiguousTarget,
    with the list of instances, if it is unclear which one is meant.
    """
    directory = os.path.realpath(directory or _current_directory())
    exactly = operate and is_common(directory)
    live = live_instances(timeout)
    if not live:
        tried = default_sockets() or [os.path.join(place, "*.sock") for place in default_directories()]
        error = NotRunning(f"nothing is running; tried {', '.join(tried)}", {"tried": tried})
        raise with_reloaders(error, _reloaders(directory))
    here = [instance for instance in live if instance.belongs_to(directory, exactly=exactly)]
    # Of one that does not answer its entry tells: a stop that kills needs no answer, other commands wait for it.
    all_known = all(instance.places for instance in live)
    if len(here) == 1 and all_known:
        return here[0].socket
    if len(here) > 1:
        problem = f"{len(here)} instances run in {directory}"
    elif here:
        problem = f"an instance runs in {directory}, and another one, whose directory is not known, may run there, too"
    elif exactly:
        problem = f"no running instance is known to have {directory} itself as its directory, and others are not meant"
    else:
        problem = f"no running instance is known to belong to {directory}"
    raise _ambiguous(problem, live, len(here) if all_known else None)


def find_instance_of(path: str, timeout: float | None = None) -> str:
    """The socket of the only live instance of an app with the default socket `path`; `path` itself if none is alive.

    Any other address is returned unchanged. Raises AmbiguousTarget, with the list, if there are several.
    """
    others = other_names(path) if os.path.dirname(path) in default_directories() else []
    live = instances_at([path, *others], timeout) if others else []
    if len(live) > 1:
        raise _ambiguous(f"{len(live)} instances of this app run", live, len(live))
    return live[0].socket if live else path


def is_common(directory: str) -> bool:
    """Whether a resolved directory holds more than one project, as a rule.

    The root directory or a direct child of it, a home directory, the temporary directory, a mount point.
    """
    homes = [os.path.expanduser("~"), home_of(own_uid())]
    try:
        homes.append(home_of(os.stat(directory).st_uid))
    except OSError:
        # It has been removed, or may not be read: its owner does not matter then.
        homes.append(None)
    places = {os.path.realpath(place) for place in (*homes, temporary_directory()) if place}
    return os.path.dirname(directory) == os.path.dirname(os.sep) or directory in places or os.path.ismount(directory)


def _ambiguous(problem: str, live: list[LiveInstance], matching: int | None) -> AmbiguousTarget:
    listed = "\n".join(f"  {instance.describe()}" for instance in live)
    return AmbiguousTarget(
        f"{problem}; say which one by --socket:\n{listed}",
        {"sockets": [instance.socket for instance in live], "matching": matching},
    )


def _reloaders(directory: str) -> list[int]:
    """Werkzeug's reloaders that run in `directory` or below it, and whose program does not serve now."""
    trust = Trust()
    pids = (reloader_at(path, trust) for path in default_lock_files()[:MAX_LOCK_FILES])
    return [pid for pid in pids if pid is not None and _works_below(pid, directory)]


def _works_below(pid: int, directory: str) -> bool:
    try:
        return is_below(os.readlink(f"/proc/{pid}/cwd"), directory)
    except OSError:
        return False


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise AmbiguousTarget("the current directory is gone; say which instance is meant by --socket") from None
