"""What a process uses of what it may use: descriptors, threads, and what its cgroups limit (cgroups(7))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .mounts import Mount, mounts
from .reserve import reserve

MAX_PROCESSES = 2000
"""Processes of a machine among which those of a user are counted."""

_NO_LIMIT = 1 << 62
"""At least so many bytes mean no limit: version 1 shows the largest number of pages."""

_FILES = {
    ("memory", "cgroup2"): ("memory.current", "memory.max"),
    ("memory", "cgroup"): ("memory.usage_in_bytes", "memory.limit_in_bytes"),
    ("pids", "cgroup2"): ("pids.current", "pids.max"),
    ("pids", "cgroup"): ("pids.current", "pids.max"),
}
"""By controller and type of the file system: the files with what is used, and what may be."""


class Limit(NamedTuple):
    """`used` and `allowed` are numbers, of memory bytes; None where that is not known, or without a limit.

    `of` says to what the limit applies: ``process``, ``user``, ``cgroup PATH``, or the address of a listener.
    """

    limit: str
    of: str
    used: int | None
    allowed: int | None


def process_limits() -> list[Limit]:
    """Descriptors, threads and memory of this process, its user and its cgroups; those that the system tells."""
    found = [Limit("descriptors", "process", _descriptors(), _resource_limit("RLIMIT_NOFILE"))]
    found.append(Limit("threads", "process", _entries("/proc/self/task"), None))
    # The superuser is exempt: setrlimit(2).
    if hasattr(os, "getuid") and os.getuid() and (allowed := _resource_limit("RLIMIT_NPROC")) is not None:
        found.append(Limit("threads", "user", _threads_of_user(os.getuid()), allowed))
    with contextlib.suppress(OSError):
        among = mounts()
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            groups = file.read()
        for name, controller in (("threads", "pids"), ("memory", "memory")):
            if (tightest := cgroup_limit(name, controller, among, groups)) is not None:
                found.append(tightest)
    return found


def cgroup_limit(name: str, controller: str, among: Sequence[Mount], groups: str) -> Limit | None:
    """Of the cgroups of a process, and those above them, the limit of which most is used; None without any.

    `groups` is the text of /proc/PID/cgroup. Of memory the file cache that can be given back does not count.
    """
    paths: dict[str, str] = {}
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), group))
    found = []
    for mount in among:
        files = _FILES.get((controller, mount.type))
        path = paths.get("" if mount.type == "cgroup2" else controller)
        if files is None or path is None:
            continue
        # In a container only a part of the tree is mounted.
        below = os.path.relpath(path, mount.root) if mount.root != "/" else path.lstrip("/")
        below = "" if below == "." or below.startswith("..") else below
        place = os.path.join(mount.point, below).rstrip("/")
        while place.startswith(mount.point):
            used, allowed = (_number(os.path.join(place, file)) for file in files)
            if used is not None and allowed is not None and 0 < allowed < _NO_LIMIT:
                used -= _reclaimable(place) if controller == "memory" else 0
                found.append(Limit(name, f"cgroup {place}", max(used, 0), allowed))
            place = os.path.dirname(place)
    return max(found, key=lambda limit: (limit.used or 0) / (limit.allowed or 1), default=None)


def memory_in_use() -> dict[str, int | None]:
    """``rss`` and ``peak`` of this process, in bytes; None where the system does not tell."""
    values: dict[str, int | None] = {"rss": None, "peak": None}
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, text = line.partition(":")
            if key := {"VmRSS": "rss", "VmHWM": "peak"}.get(name):
                values[key] = int(text.split()[0]) * 1024
    return values


def _descriptors() -> int | None:
    """Those that are open at other times: without the one of this look, and with those that are lent for it."""
    count = _entries("/proc/self/fd")
    return None if count is None else count - 1 + reserve.lent


def _entries(directory: str) -> int | None:
    return _try(lambda: len(os.listdir(directory)))


def _number(path: str) -> int | None:
    def read() -> int:
        with open(path, encoding="ascii") as file:
            return int(file.read())

    return _try(read)


def _reclaimable(place: str) -> int:
    """Bytes of the file cache that have not been used for a while: of version 1 with the groups below."""

    def read() -> int:
        with open(os.path.join(place, "memory.stat"), encoding="ascii") as file:
            values = dict(line.split() for line in file)
        return int(values.get("total_inactive_file", values.get("inactive_file", "0")))

    return _try(read) or 0


def _resource_limit(name: str) -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _threads_of_user(uid: int) -> int | None:
    """The threads of all processes of a user; None where there are too many processes to look at."""
    try:
        processes = [entry for entry in os.scandir("/proc") if entry.name.isdecimal()]
    except OSError:
        return None
    if len(processes) > MAX_PROCESSES:
        return None
    count = 0
    for entry in processes:
        # It may end meanwhile.
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == uid:
                count += len(os.listdir(f"{entry.path}/task"))
    return count


def _try(read: Callable[[], int]) -> int | None:
    try:
        return read()
    except (OSError, ValueError):
        return None
