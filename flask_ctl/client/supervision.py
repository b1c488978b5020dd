"""What a client asks of a server's supervisor, on the server's machine: its policy, and to keep the server down."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import stat
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from ..errors import AccessDenied, ConfigurationError, ControlError
from ..protocol.text import supervisor_name
from ..system.findings import note, problem
from ..system.processes import arguments_of, owner_of, parent_of, program_name
from ..system.supervisor import UNKNOWN

ASK_TIMEOUT = 1.0
"""Seconds for a supervisor to answer."""

TELL_TIMEOUT = 10.0
"""Seconds for it to take an order."""

PROPERTIES = "Restart,MainPID,TriggeredBy,NotifyAccess,ActiveState"
"""What `systemctl show` is asked for."""

POLL = 0.01
"""Seconds between two looks at a file."""

WRAPPERS = frozenset({"sh", "bash", "dash", "ash", "busybox", "ksh", "zsh", "uv"})
"""Programs that start one other program, and end with it."""

USER_WRAPPERS = frozenset({"su", "sudo", "runuser"})
"""Those that start it as another user."""

SERVICE = re.compile(r"[\w:.\\@-]+\.service", re.ASCII)
"""The name of a service: systemd.unit(5); `systemctl` would also take a pattern."""

INSTEAD = {
    "container": "run outside of the container: docker stop CONTAINER",
    "kubernetes": "run: kubectl scale --replicas=0 deployment/NAME (a pod that is deleted is replaced)",
}
"""By the kind, what keeps a server down where no client can have it done."""


class Manager:
    """A supervisor, by its description in `status`, and the process `pid` of the server whose end it notices."""

    def __init__(self, supervisor: dict[str, Any], pid: int) -> None:
        self.supervisor = supervisor
        self.pid = pid

    def described(self, limit: float | None = None) -> dict[str, Any]:
        """The description with what it answers within `limit` seconds, ASK_TIMEOUT by default, for `starts_again`."""
        return {**self.supervisor, "restart": self.policy()}

    def policy(self) -> str:
        """How it restarts the process: a value of ``Restart=`` (systemd.service(5)), or ``unknown``."""
        return str(self.supervisor.get("restart", UNKNOWN))

    def keep_down(self) -> None:
        """Have it stop the process, or not start it again after its end; returns when it has taken the order.

        Raises AccessDenied without the right to that, ConfigurationError or ControlError if it can't be had. Nothing
        has been done then.
        """
        kind = self.supervisor["kind"]
        # Werkzeug's reloader ends with its child.
        if kind != "reloader":
            raise self._refusal(f"can't be told to keep it down from here; {INSTEAD.get(kind, 'stop it there')}")

    def _refusal(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"nothing was done: {supervisor_name(self.supervisor)} {why}")

    def _denied(self, why: str) -> AccessDenied:
        return AccessDenied(f"nothing was done: {supervisor_name(self.supervisor)} {why}")

    def _started(self) -> set[int]:
        """The process, and a wrapper that ends with it.

        Another process that the supervisor has started decides by itself whether it starts the server again.
        """
        parent = parent_of(self.pid)
        name = program_name(parent)
        wraps = name in USER_WRAPPERS or (name in WRAPPERS and owner_of(parent or 0) == owner_of(self.pid))
        return {self.pid, parent} if parent and wraps else {self.pid}


class Systemd(Manager):
    """A unit of the system's or a user's systemd."""

    def described(self, limit: float | None = None) -> dict[str, Any]:
        """With the sockets that start the unit, and the job that ends it at this time: ``stop`` or ``restart``."""
        began = time.monotonic()
        limit = ASK_TIMEOUT if limit is None else limit
        told = self._properties(limit)
        # A unit of the same name may be on another machine, or in another container.
        if not self._runs_it(told):
            return {**self.supervisor, "restart": UNKNOWN}
        found = {**self.supervisor, "restart": told.get("Restart") or UNKNOWN}
        if sockets := _sockets(told):
            found["sockets"] = sockets
        if told.get("ActiveState") == "deactivating":
            # Its policy is that for an end without a job.
            found["job"] = self._job(max(0.0, limit + began - time.monotonic()))
        return found

    def policy(self) -> str:
        return str(self.described()["restart"])

    def keep_down(self) -> None:
        unit, owner = str(self.supervisor["unit"]), owner_of(self.pid)
        if not SERVICE.fullmatch(unit):
            raise self._refusal("is not the name of a service")
        command = f"systemctl{' --user' if self.supervisor.get('user') else ''} stop {unit}"
        if self.supervisor.get("user") and owner not in (None, os.geteuid()):
            raise self._denied(f"belongs to the systemd of user {owner}: run as that user: {command}")
        told = self._properties()
        if not told:
            raise self._refusal(f"can't be asked by systemctl; run: {command}")
        if not self._runs_it(told):
            main = told.get("MainPID", "0")
            raise self._refusal(
                f"has another main process, pid {main}, which would be stopped, too; if that is meant, run: {command}"
            )
        # The next connection would start it again.
        units = [unit, *_sockets(told)]
        try:
            done = self._systemctl("stop", "--no-block", "--no-ask-password", "--", *units, limit=TELL_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ControlError(f"{command} has not answered within {TELL_TIMEOUT:g} s; it may still be done") from None
        except OSError as error:
            raise self._refusal(f"can't be told: systemctl: {error.strerror}") from None
        if done.returncode:
            text = done.stderr.strip()
            if done.returncode == 4 or "authentication required" in text or "ccess denied" in text:
                raise self._denied(f"refuses to stop it for this user: {text}")
            raise ControlError(f"nothing was done: {command}: {text}")

    def notify_access(self) -> str:
        """Whose messages it takes: a value of ``NotifyAccess=``, or ``unknown``."""
        told = self._properties()
        return told.get("NotifyAccess") or UNKNOWN if self._runs_it(told) else UNKNOWN

    def _properties(self, limit: float | None = None) -> dict[str, str]:
        """Properties of the unit, none if systemd does not answer in time."""
        if not SERVICE.fullmatch(str(self.supervisor["unit"])):
            return {}
        try:
            done = self._systemctl(
                "show",
                f"--property={PROPERTIES}",
                "--",
                str(self.supervisor["unit"]),
                limit=ASK_TIMEOUT if limit is None else limit,
            )
        except (OSError, subprocess.SubprocessError):
            return {}
        return {} if done.returncode else dict(line.partition("=")[::2] for line in done.stdout.splitlines())

    def _job(self, limit: float) -> str:
        """The type of the unit's job, or ``unknown``."""
        try:
            done = self._systemctl("list-jobs", "--no-legend", "--", str(self.supervisor["unit"]), limit=limit)
        except (OSError, subprocess.SubprocessError):
            return UNKNOWN
        # Its number, unit, type and state.
        return next((words[2] for line in done.stdout.splitlines() if len(words := line.split()) == 4), UNKNOWN)

    def _runs_it(self, told: dict[str, str]) -> bool:
        return told.get("MainPID", "0") in map(str, self._started())

    def _systemctl(self, *arguments: str, limit: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemctl", *(["--user"] if self.supervisor.get("user") else []), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, "LC_ALL": "C"},
        )


def _sockets(told: dict[str, str]) -> list[str]:
    """The socket units that start a unit, by its properties."""
    return [name for name in told.get("TriggeredBy", "").split() if name.endswith(".socket")]


class Runit(Manager):
    """A service of runit, in the directory in which its `runsv` works: the name that the server tells is no proof."""

    def policy(self) -> str:
        with contextlib.suppress(OSError):
            return "always" if self._is_wanted() else "no"
        return UNKNOWN

    def keep_down(self) -> None:
        """As `sv once`: the stop itself is then that of the server."""
        try:
            self._is_wanted()
            with self._open("control", os.O_WRONLY, stat.S_ISFIFO) as control:
                os.write(control, b"o")
        except PermissionError:
            raise self._denied("takes orders only from the owner of the service, and from root") from None
        except OSError as error:
            raise self._refusal(f"can't be told: supervise/control: {error.strerror}") from None
        deadline = time.monotonic() + TELL_TIMEOUT
        # The server may end meanwhile.
        with contextlib.suppress(OSError):
            while self._is_wanted():
                if time.monotonic() > deadline:
                    raise ControlError(
                        f"{supervisor_name(self.supervisor)} has not taken the order to run it only once"
                    )
                time.sleep(POLL)

    def _is_wanted(self) -> bool:
        """Whether runsv starts it again: what is wanted is "u"p, not "d"own, which it also is after `sv once`."""
        with self._open("status", os.O_RDONLY, stat.S_ISREG) as file:
            status = os.read(file, 20)
        if len(status) < 20:
            raise OSError(f"{len(status)} bytes of status")
        return status[17:18] == b"u"

    @contextlib.contextmanager
    def _open(self, name: str, flags: int, is_right: Any) -> Iterator[int]:
        """A file of runsv(8), which belongs to the user of the process of that name. Raises OSError.

        Any user's process may have that name, and lead to what is not its own: the file is opened once it is known.
        """
        runsv = parent_of(self.pid)
        if runsv is None or program_name(runsv) != "runsv":
            raise FileNotFoundError(2, "the parent is not runsv")
        found = os.open(f"/proc/{runsv}/cwd/supervise/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            info = os.fstat(found)
            if not is_right(info.st_mode) or info.st_uid != owner_of(runsv):
                raise FileNotFoundError(2, "not a file of runsv")
            descriptor = os.open(f"/proc/self/fd/{found}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(found)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class Pm2(Manager):
    """A process of pm2, whose daemon has its home in its title, and its pid in a file there."""

    def keep_down(self) -> None:
        """As `pm2 stop`, which returns when the process has ended, or has been killed after pm2's `kill_timeout`."""
        daemon = parent_of(self.pid) or 0
        command = f"pm2 stop {shlex.quote(str(self.supervisor.get('id')))}"
        if owner_of(daemon) != os.geteuid():
            raise self._denied(f"belongs to the pm2 of user {owner_of(daemon)}: run as that user: {command}")
        title = re.fullmatch(r"PM2 v\S+: God Daemon \((.+)\)", arguments_of(daemon)[0].strip())
        # Without its daemon the program `pm2` would start another one.
        if title is None or _text_of(f"{title[1]}/pm2.pid") != str(daemon):
            raise self._refusal(f"can't be found from here; run: {command}")
        deadline = time.monotonic() + TELL_TIMEOUT
        try:
            # A server could name another process, or "all".
            listed: Any = json.loads(self._pm2(title[1], TELL_TIMEOUT, "jlist").stdout)
            id = next((str(each["pm_id"]) for each in listed if each["pid"] in self._started()), None)
        except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired) as error:
            raise self._refusal(f"can't be asked: pm2 jlist: {error}; run: {command}") from None
        if id is None:
            raise self._refusal(f"does not list pid {self.pid}; if that is meant, run: {command}")
        try:
            done = self._pm2(title[1], deadline - time.monotonic(), "stop", id)
        except subprocess.TimeoutExpired:
            # The daemon goes on with it.
            return
        except OSError as error:
            raise self._refusal(f"can't be told: pm2: {error.strerror}; run: {command}") from None
        if done.returncode:
            raise ControlError(f"nothing was done: pm2 stop {id}: {done.stderr.strip() or done.stdout.strip()}")

    def _pm2(self, home: str, limit: float, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["pm2", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, "PM2_HOME": home},
        )


def _text_of(path: str) -> str:
    with contextlib.suppress(OSError, UnicodeError), open(path, encoding="ascii") as file:
        return file.read(100).strip()
    return ""


def manager_of(supervisor: dict[str, Any], pid: int) -> Manager:
    """The supervisor in a `status`, for the process `pid` of the server."""
    kind = supervisor["kind"]
    if kind == "supervisor":
        from .supervisord import Supervisord

        return Supervisord(supervisor, pid)
    return {"systemd": Systemd, "runit": Runit, "pm2": Pm2}.get(kind, Manager)(supervisor, pid)


def service_findings(status: dict[str, Any]) -> list[dict[str, Any]]:
    """What the server of a `status` tells systemd in vain, each as in `machine_findings`."""
    told, supervisor = status.get("service_manager"), status.get("supervisor") or {}
    if not told or supervisor.get("kind") != "systemd":
        return []
    access = Systemd(supervisor, status["pid"]).notify_access()
    if access == "all" or (told["is_main"] is not False and access != "none"):
        return []
    what = f"what pid {told['told_by']} tells systemd of starts, reloads and stops, and its pings,"
    remedy = f"set NotifyAccess=all in {supervisor['unit']}"
    if access == UNKNOWN:
        return [note("service manager", f"{what} is heard only with NotifyAccess=all", remedy)._asdict()]
    return [problem("service manager", f"{what} is lost: NotifyAccess={access}", remedy)._asdict()]
