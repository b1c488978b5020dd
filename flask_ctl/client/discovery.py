"""Finding the instance of the current directory among the sockets in the default directories."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from ..errors import AmbiguousTarget, ControlError, NotRunning
from ..protocol.jsonrpc import Response
from ..system.addresses import (
    default_directories,
    default_lock_files,
    default_sockets,
    other_names,
    temporary_directory,
)
from ..system.credentials import home_of
from .absence import reloader_at, with_reloaders
from .connect import connect
from .trust import Trust

PROBE_TIMEOUT = 1.0
"""Seconds for each socket to answer. An instance that takes longer counts as alive, in an unknown directory."""

MAX_LOCK_FILES = 1000
"""The most lock files that are read to find a reloader: they stay when a server ends."""


class Found(NamedTuple):
    """A live instance: its socket, and its status if it gave one."""

    socket: str
    status: dict[str, Any] | None

    def belongs_to(self, directory: str, *, exactly: bool = False) -> bool:
        """Whether it runs in `directory` or below it, or its code lies there; `exactly` there, if it must."""
        return any(place == directory if exactly else _is_below(place, directory) for place in self._places())

    def is_same(self, other: Found) -> bool:
        """Whether it is the same instance, which listens at both sockets."""
        if self.status is None or other.status is None:
            return False
        same = all(self.status.get(name) == other.status.get(name) for name in ("pid", "app", "root_path"))
        return same and self.socket in _sockets(other.status) and other.socket in _sockets(self.status)

    def describe(self) -> str:
        if self.status is None:
            return f"{self.socket}  (does not answer)"
        told = self.status.get("server")
        urls = told.get("listeners") if isinstance(told, dict) else None
        where = f", on {', '.join(map(str, urls))}" if isinstance(urls, list) and urls else ""
        return (
            f"{self.socket}  {self.status.get('app')}, pid {self.status.get('pid')}{where}, in {self.status.get('cwd')}"
        )

    def _places(self) -> list[str]:
        places = [] if self.status is None else [self.status.get("cwd"), self.status.get("root_path")]
        return [os.path.realpath(place) for place in places if isinstance(place, str) and place]


def live_instances(timeout: float | None = None) -> list[Found]:
    """A `Found` for each live instance at the default sockets, one even for an instance with several sockets."""
    return _live(default_sockets(), timeout)


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
    if len(here) == 1 and all(instance.status is not None for instance in live):
        return here[0].socket
    if len(here) > 1:
        problem = f"{len(here)} instances run in {directory}"
    elif exactly:
        problem = f"no running instance is known to have {directory} itself as its directory, and others are not meant"
    else:
        problem = f"no running instance is known to belong to {directory}"
    raise _ambiguous(problem, live)


def find_instance_of(path: str, timeout: float | None = None) -> str:
    """The socket of the only live instance of an app with the default socket `path`; `path` itself if none is alive.

    Any other address is returned unchanged. Raises AmbiguousTarget, with the list, if there are several.
    """
    others = other_names(path) if os.path.dirname(path) in default_directories() else []
    live = _live([path, *others], timeout) if others else []
    if len(live) > 1:
        raise _ambiguous(f"{len(live)} instances of this app run", live)
    return live[0].socket if live else path


def is_common(directory: str) -> bool:
    """Whether a resolved directory holds more than one project, as a rule.

    The root directory or a direct child of it, a home directory, the temporary directory, a mount point.
    """
    homes = [os.path.expanduser("~"), home_of(os.geteuid() if hasattr(os, "geteuid") else 0)]
    try:
        homes.append(home_of(os.stat(directory).st_uid))
    except OSError:
        # It has been removed, or may not be read: its owner does not matter then.
        homes.append(None)
    places = {os.path.realpath(place) for place in (*homes, temporary_directory()) if place}
    return os.path.dirname(directory) == os.path.dirname(os.sep) or directory in places or os.path.ismount(directory)


def _live(sockets: list[str], timeout: float | None) -> list[Found]:
    limit = PROBE_TIMEOUT if timeout is None else min(timeout, PROBE_TIMEOUT)
    found: list[Found] = []
    # The shortest name first: users know the instance by it.
    for socket in sorted(sockets, key=lambda socket: (len(socket), socket)):
        instance = _probe(socket, limit)
        if instance is not None and not any(map(instance.is_same, found)):
            found.append(instance)
    return sorted(found, key=lambda instance: instance.socket)


def _ambiguous(problem: str, live: list[Found]) -> AmbiguousTarget:
    listed = "\n".join(f"  {instance.describe()}" for instance in live)
    return AmbiguousTarget(
        f"{problem}; say which one by --socket:\n{listed}", {"sockets": [instance.socket for instance in live]}
    )


def _probe(socket: str, timeout: float) -> Found | None:
    deadline = time.monotonic() + timeout
    try:
        connection = connect(socket, timeout)
    except NotRunning:
        return None
    except ControlError:
        return Found(socket, None)
    try:
        connection.send([("status", {})], deadline)
        answer = connection.receive(deadline)
    except ControlError:
        return Found(socket, None)
    finally:
        connection.close()
    if answer is None and connection.ended:
        return None
    status = answer.result if isinstance(answer, Response) else None
    return Found(socket, status if isinstance(status, dict) else None)


def _sockets(status: dict[str, Any]) -> list[Any]:
    control = status.get("control")
    sockets = control.get("sockets") if isinstance(control, dict) else None
    return sockets if isinstance(sockets, list) else []


def _reloaders(directory: str) -> list[int]:
    """Werkzeug's reloaders that run in `directory` or below it, and whose program does not serve now."""
    trust = Trust()
    pids = (reloader_at(path, trust) for path in default_lock_files()[:MAX_LOCK_FILES])
    return [pid for pid in pids if pid is not None and _works_below(pid, directory)]


def _works_below(pid: int, directory: str) -> bool:
    try:
        return _is_below(os.readlink(f"/proc/{pid}/cwd"), directory)
    except OSError:
        return False


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise AmbiguousTarget("the current directory is gone; say which instance is meant by --socket") from None


def _is_below(place: str, directory: str) -> bool:
    return place == directory or place.startswith(directory.rstrip(os.sep) + os.sep)
