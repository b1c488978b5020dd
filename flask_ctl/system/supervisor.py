"""Which program started this one, and may start it again when it ends, as far as the process itself can see.

Variables are inherited: a program that was started from a shell has those of the terminal's own service. So a variable
counts only if the process that the manager has started is this one or its parent, by the kernel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from .processes import arguments_of, parent_of, program_name

UNKNOWN = "unknown"
"""The `restart` of a supervisor whose policy the process can't see."""

CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")


STARTS_AGAIN = {
    "drained": ("always", "on-success"),
    "forced": ("always", "on-success"),
    "killed": ("always", "on-failure", "on-abnormal", "on-abort"),
}
"""By the outcome of a stop, the policies that start the server again: systemd.service(5), Restart=."""


JOBS = {"stop": False, "restart": True}
"""Whether a job of systemd that ends the unit starts it again, whatever its policy."""


def starts_again(supervisor: Mapping[str, Any] | None, outcome: str = "drained") -> bool | None:
    """Whether the supervisor starts a server again that has ended by a stop; None if that is not known."""
    if supervisor is None:
        return False
    if "job" in supervisor:
        return JOBS.get(supervisor["job"])
    policy = supervisor.get("restart", UNKNOWN)
    if policy in ("always", "no"):
        return bool(policy == "always")
    return None if policy == UNKNOWN or outcome not in STARTS_AGAIN else policy in STARTS_AGAIN[outcome]


class Supervision:
    """The supervisor of a process, found again when its parent has changed.

    `pid` is the process whose end a supervisor would notice: of a server with workers the master.
    """

    def __init__(self, pid: int, environment: Mapping[str, str], *, reloader: bool = False) -> None:
        self._pid = pid
        self._environment = environment
        self._reloader = reloader
        self._parent = self._current_parent()
        self._found = self._find()

    def describe(self) -> dict[str, Any] | None:
        """``kind``, what names it for that kind, and the ``restart`` policy; None without a supervisor."""
        parent = self._current_parent()
        if parent != self._parent:
            self._parent, self._found = parent, self._find()
        return self._found

    def _current_parent(self) -> int | None:
        return os.getppid() if self._pid == os.getpid() else parent_of(self._pid)

    def _find(self) -> dict[str, Any] | None:
        found = find_supervisor(Surroundings.of(self._pid, self._parent, self._environment))
        return found or ({"kind": "reloader", "restart": "no"} if self._reloader else None)


class Surroundings(NamedTuple):
    """What can be seen of where a process runs.

    `names` are those of its parent and of the parent's parent (``supervisord`` also if that is a script which Python
    runs), `above` is the parent's directory, None for another user's; `cgroup` is the text of ``/proc/PID/cgroup``.
    """

    pid: int
    parent: int | None
    environment: Mapping[str, str]
    names: tuple[str, ...] = ()
    above: str | None = None
    cgroup: str = ""
    in_container: bool = False

    @classmethod
    def of(cls, pid: int, parent: int | None, environment: Mapping[str, str]) -> Surroundings:
        """Those of a process, as it is found now."""
        cgroup, above = "", None
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            cgroup = file.read()
        with contextlib.suppress(OSError):
            above = os.readlink(f"/proc/{parent}/cwd")
        names = tuple(map(_name, _ancestors(parent)))
        in_container = "container" in environment or any(map(os.path.exists, CONTAINER_FILES))
        return cls(pid, parent, environment, names, above, cgroup, in_container)


def find_supervisor(seen: Surroundings) -> dict[str, Any] | None:
    """The nearest supervisor of a process, None if there is none.

    Those that are found by the parent's name come first: they may run as a unit of systemd themselves.
    """
    environment, names = seen.environment, seen.names
    if names[:1] == ("runsv",):
        return {"kind": "runit", "service": seen.above, "restart": UNKNOWN}
    # A shell may stand between.
    if "SUPERVISOR_ENABLED" in environment and "supervisord" in names:
        group, name = (environment.get(f"SUPERVISOR_{part}_NAME", "") for part in ("GROUP", "PROCESS"))
        process = name if group in ("", name) else f"{group}:{name}"
        url = environment.get("SUPERVISOR_SERVER_URL")
        return {"kind": "supervisor", "process": process, **({"url": url} if url else {}), "restart": UNKNOWN}
    if "pm_id" in environment and any(name.startswith("PM2") for name in names):
        policy = {"true": "always", "false": "no"}.get(environment.get("autorestart", ""), UNKNOWN)
        id = environment["pm_id"]
        return {"kind": "pm2", "process": environment.get("name", id), "id": id, "restart": policy}
    unit = _unit(seen.cgroup)
    if unit is not None and _is_started_by_systemd(seen):
        return {"kind": "systemd", **unit, "restart": UNKNOWN}
    if 1 not in (seen.pid, seen.parent):
        return None
    # Its end is that of the container, unless process 1 is an init or a shell that goes on.
    if "KUBERNETES_SERVICE_HOST" in environment:
        return {"kind": "kubernetes", "pod": environment.get("HOSTNAME", ""), "restart": UNKNOWN}
    return {"kind": "container", "restart": UNKNOWN} if seen.in_container else None


def supervisord_above(pid: int) -> int | None:
    """The supervisord that has started a process, itself or by a shell; None if there is none."""
    return next((each for each in _ancestors(parent_of(pid)) if _name(each) == "supervisord"), None)


def _ancestors(parent: int | None) -> list[int | None]:
    return [] if not parent else [parent, parent_of(parent)]


def _name(pid: int | None) -> str:
    name = program_name(pid) or ""
    if name.startswith("python") and any(
        os.path.basename(word) in ("supervisord", "supervisor.supervisord") for word in arguments_of(pid)
    ):
        return "supervisord"
    return name


def _is_started_by_systemd(seen: Surroundings) -> bool:
    """Whether the process or its parent is the one that systemd has started for a unit."""
    started = seen.environment.get("SYSTEMD_EXEC_PID")
    if started is None:
        # Before version 248.
        return "INVOCATION_ID" in seen.environment and "systemd" in seen.names
    return started in (str(seen.pid), str(seen.parent))


def _unit(cgroup: str) -> dict[str, Any] | None:
    """The unit of systemd's system or user manager that a process belongs to; None if it is no service."""
    for line in cgroup.splitlines():
        path = line.split(":", 2)[-1].split("/")
        units = [part for part in path if part.endswith(".service")]
        if units and not units[-1].startswith("user@"):
            user = any(part.startswith("user@") for part in units[:-1])
            return {"unit": units[-1], **({"user": True} if user else {})}
    return None
