"""The instances that run on this machine: by the registry, and by the default sockets of those that it lacks.

What an instance says of itself, in the registry or in its status, is data. Which process it is comes from the kernel:
only the process that holds the lock of its file in the registry is taken for it.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import AccessDenied, ConfigurationError, ControlError, NotRunning
from ..protocol.jsonrpc import Response
from ..system.addresses import default_sockets, own_uid, parse_address, registry_directories, users_with_registry
from ..transports.registry import MAX_APPS, Entry, RegisteredApp, is_path, read_entries, read_entry, remove_dead
from .connect import connect
from .connection import Connection
from .targets import targets_of
from .trust import Trust, make_trust, uid_of

if TYPE_CHECKING:
    from .client import ControlClient

PROBE_TIMEOUT = 1.0
"""Seconds to connect to all instances, and again for their answers."""

MAX_SOCKETS = 8
"""The most addresses of one instance that are tried."""

MAX_CONNECTIONS = 200
"""The most instances that are asked at the same time."""

MAX_SHOWN, MAX_PATH = 256, 4096
"""The most characters of a name and of a path in `as_dict`."""

MAX_USERS = 1000
"""The most users whose instances are looked for."""

SILENT = "does not answer"
NO_APP = "its entry in the registry names no app"

logger = logging.getLogger("flask_ctl")

_UNKNOWN = RegisteredApp()


@dataclass(frozen=True)
class LiveInstance:
    """An app of a running instance. `socket` is the address by which it can be asked.

    `status` is its answer to that question; None without one, and `problem` tells why. `pid` is that of the process to
    signal, from the kernel; None if the kernel does not tell. `owner` is a uid. `entry` is its file in the registry,
    None without one. An entry that names no app is an instance whose `socket` is that file.
    """

    socket: str
    status: dict[str, Any] | None
    pid: int | None = None
    owner: int | None = None
    entry: str | None = None
    registered: RegisteredApp = _UNKNOWN
    cwd: str = ""
    server: str = ""
    problem: str = SILENT

    @property
    def name(self) -> str:
        """The name of the app."""
        name = (self.status or {}).get("app")
        return name if isinstance(name, str) else self.registered.name

    def client(self, **options: Any) -> ControlClient:
        """A `ControlClient` for this instance, and for no other that listens there later; `options` as for that."""
        from .client import ControlClient

        return ControlClient(self.socket, entry=self.entry, **{"owner": self.owner, **options})

    def as_dict(self) -> dict[str, Any]:
        """What ``ls --json`` shows; None for what is not known, ``age`` in seconds."""
        status = self.status or {}
        server, requests, workers = status.get("server"), status.get("requests"), status.get("workers")
        sockets = self.registered.sockets or ([] if self.socket == self.entry else [self.socket])
        return {
            "name": self.name[:MAX_SHOWN],
            "pid": self.pid,
            "state": _text(status.get("state")),
            "problem": None if self.status is not None else self.problem[:MAX_PATH],
            "generation": _number(status.get("generation")),
            "server": _text(server.get("name") if isinstance(server, dict) else None) or _text(self.server),
            "workers": len(workers) if isinstance(workers, list) else None,
            "in_flight": _number(requests.get("in_flight")) if isinstance(requests, dict) else None,
            "age": _number(status.get("uptime")),
            "socket": self.socket[:MAX_PATH] if sockets else None,
            "sockets": [socket[:MAX_PATH] for socket in sockets[:MAX_SOCKETS]],
            "directory": _text(status.get("directory"), MAX_PATH) or _text(self.cwd, MAX_PATH),
            "cwd": _text(status.get("cwd"), MAX_PATH) or _text(self.cwd, MAX_PATH),
            "root_path": _text(status.get("root_path"), MAX_PATH) or _text(self.registered.root_path, MAX_PATH),
            "owner": self.owner,
        }

    @property
    def places(self) -> set[str]:
        """The resolved directories in which it runs and its code lies, as far as they are known."""
        told = self.status or {}
        named = (told.get("cwd") or self.cwd, told.get("root_path") or self.registered.root_path)
        return {os.path.realpath(place) for place in named if isinstance(place, str) and is_path(place)}

    def belongs_to(self, directory: str, *, exactly: bool = False) -> bool:
        """Whether it runs in `directory` or below it, or its code lies there; `exactly` there, if it must."""
        return any(place == directory if exactly else is_below(place, directory) for place in self.places)

    def listens_at(self, socket: str) -> bool:
        """Whether this address leads to it."""
        return str(parse_address(socket)) in (self.socket, *self.registered.sockets, *_sockets(self.status or {}))

    def is_same(self, other: LiveInstance) -> bool:
        """Whether it is the same instance, which listens at both sockets."""
        if self.status is None or other.status is None:
            return False
        same = all(self.status.get(name) == other.status.get(name) for name in ("pid", "app", "root_path"))
        return same and self.socket in _sockets(other.status) and other.socket in _sockets(self.status)

    def describe(self) -> str:
        """One line: its socket, what it is, and where."""
        if self.status is None:
            return f"{self.socket}  ({self.problem})"
        told = self.status.get("server")
        urls = told.get("listeners") if isinstance(told, dict) else None
        where = f", on {', '.join(map(str, urls))}" if isinstance(urls, list) and urls else ""
        return f"{self.socket}  {self.name}, pid {self.pid}{where}, in {self.status.get('cwd')}"


def live_instances(
    timeout: float | None = None,
    *,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    owner: str | int | None = None,
    everyone: bool = False,
) -> list[LiveInstance]:
    """The apps of the caller's instances that run on this machine, one for each even if it has several sockets.

    `name` is a pattern of app names (``shop*``). `directory` selects the instances that run in it or below, or whose
    code lies there. `owner` selects another user's instances instead, `everyone` those of all users; only root can read
    the registries of others. It takes twice the `timeout` at most, by default two seconds, however many do not answer.
    Raises AccessDenied for a user whose registry can't be read, ConfigurationError for one that does not exist.
    """
    found = _ask_all(_candidates(owner, everyone), timeout)
    if name is not None:
        found = [instance for instance in found if fnmatch.fnmatchcase(instance.name, name)]
    if directory is not None:
        place = os.path.realpath(directory)
        found = [instance for instance in found if instance.belongs_to(place)]
    return sorted(found, key=lambda instance: (instance.name, instance.socket))


def registered_instances(*, owner: str | int | None = None, everyone: bool = False) -> list[str]:
    """The files in the registry whose instances run; none of them is asked.

    `owner` and `everyone` as for `live_instances`, which raises likewise.
    """
    places = [(directory, uid) for uid in _users(owner, everyone) for directory in registry_directories(uid)]
    return [entry.path for place in places for entry in read_entries(*place)]


def remove_dead_instances(*, owner: str | int | None = None, everyone: bool = False) -> list[str]:
    """Remove the files that killed instances have left in the registry; returns their paths.

    `owner` and `everyone` as for `live_instances`, which raises likewise.
    """
    places = [(directory, uid) for uid in _users(owner, everyone) for directory in registry_directories(uid)]
    return [path for place in places for path in remove_dead(*place)]


def instances_at(
    sockets: Iterable[str], timeout: float | None = None, *, owner: str | int | None = None
) -> list[LiveInstance]:
    """The live instances at these addresses, whether the registry has them or not; sockets of `owner` are trusted."""
    uid = None if owner is None else uid_of(owner)
    candidates = [_Candidate([str(parse_address(socket))], owner=uid) for socket in sockets]
    return sorted(_ask_all(candidates, timeout), key=lambda found: found.socket)


def is_below(place: str, directory: str) -> bool:
    """Whether a resolved path is a directory or lies below it."""
    return place == directory or place.startswith(directory.rstrip(os.sep) + os.sep)


@dataclass(frozen=True)
class _Candidate:
    """Where an instance may listen, and what the registry knows of it."""

    sockets: list[str]
    entry: Entry | None = None
    app: RegisteredApp = _UNKNOWN
    owner: int | None = None

    @property
    def address(self) -> str:
        return self.sockets[0] if self.sockets or self.entry is None else self.entry.path

    def trust(self) -> Trust:
        if self.entry is None:
            return Trust(self.owner)
        if self.entry.owner == own_uid():
            return make_trust(self.entry.owner, entry=self.entry.path)
        # The keys are for the caller's own servers.
        return Trust(self.entry.owner, entry=self.entry.path)

    def instance(self, socket: str, pid: int | None, status: dict[str, Any] | None, problem: str) -> LiveInstance:
        if self.entry is None:
            return LiveInstance(socket, status, pid, self.owner, problem=problem)
        path, owner, pid, claims = self.entry
        return LiveInstance(socket, status, pid, owner, path, self.app, claims.cwd, claims.server, problem)

    def without_status(self, problem: str) -> LiveInstance | None:
        """The instance if it runs at all."""
        try:
            if self.entry is not None and read_entry(self.entry.path, self.entry.owner) is None:
                return None
        except OSError:
            # Without a free descriptor it can't be looked at again.
            pass
        return self.instance(self.address, None, None, problem)


def _candidates(owner: str | int | None, everyone: bool) -> Iterator[_Candidate]:
    users, own = _users(owner, everyone), own_uid()
    seen: set[object] = set()
    for uid in users:
        for directory in registry_directories(uid):
            for entry in read_entries(directory, uid):
                apps = [app for app in entry.claims.apps[:MAX_APPS] if app.sockets]
                for app in apps:
                    sockets = sorted(app.sockets, key=_preference)[:MAX_SOCKETS]
                    if uid == own:
                        seen.update(map(_identity, sockets))
                    yield _Candidate(sockets, entry, app)
                if not apps:
                    yield _Candidate([], entry)
    if own in users:
        yield from (_Candidate([socket], owner=own) for socket in default_sockets() if _identity(socket) not in seen)


def _identity(socket: str) -> object:
    """The file of a socket, however the path to it is spelled; the address if it has no file."""
    try:
        info = os.stat(socket)
    except OSError:
        return socket
    return info.st_dev, info.st_ino


def _users(owner: str | int | None, everyone: bool) -> list[int]:
    own = own_uid()
    if everyone:
        users = sorted({own, *users_with_registry()})
        if len(users) > MAX_USERS:
            logger.warning("%d users may have instances; only those of %d are looked for", len(users), MAX_USERS)
        return users[:MAX_USERS]
    chosen = own if owner is None else uid_of(owner)
    if own not in (0, chosen):
        raise AccessDenied(f"only root and {owner} can see which instances of {owner} run")
    return [chosen]


def _ask_all(candidates: Iterable[_Candidate], timeout: float | None) -> list[LiveInstance]:
    limit = PROBE_TIMEOUT if timeout is None else min(timeout, PROBE_TIMEOUT)
    found: list[LiveInstance] = []
    end = time.monotonic() + 2 * limit
    ordered = sorted(candidates, key=lambda one: _preference(one.address))
    rounds = [ordered[first : first + MAX_CONNECTIONS] for first in range(0, len(ordered), MAX_CONNECTIONS)]
    for number, candidates in enumerate(rounds):
        # Silent ones leave the next rounds their share of the time.
        share = max(0.0, end - time.monotonic()) / (len(rounds) - number)
        deadline = time.monotonic() + share / 2
        # All are asked before the first answer is waited for.
        asked = [
            (one, _ask(one, _own_deadline(one, deadline, len(candidates) - i))) for i, one in enumerate(candidates)
        ]
        deadline = time.monotonic() + share / 2
        for candidate, connection in asked:
            instance = _hear(candidate, connection, deadline) if isinstance(connection, Connection) else connection
            if instance is not None and not any(map(instance.is_same, found)):
                found.append(instance)
    return found


def _own_deadline(candidate: _Candidate, deadline: float, left: int) -> float:
    """The end of one candidate's share of the time for `left` ones: a server whose hub has died is waited for."""
    if "://" in candidate.address:
        # ZeroMQ comes last, and takes its time to load.
        return deadline
    now = time.monotonic()
    return now + max(0.0, deadline - now) / left


def _preference(socket: str) -> tuple[bool, int, str]:
    """Paths first, which need no ZeroMQ, and the shortest of them: users know the instance by it."""
    return "://" in socket, len(socket), socket


def _ask(candidate: _Candidate, deadline: float) -> Connection | LiveInstance | None:
    """A connection on which the status has been asked for; the instance if that is not possible, None if none runs."""
    problem = "" if candidate.sockets else NO_APP
    for socket in candidate.sockets:
        connection = None
        try:
            connection = connect(socket, max(0.0, deadline - time.monotonic()), candidate.trust())
            connection.send([("status", {})], deadline)
        except NotRunning:
            if candidate.entry is not None:
                problem = problem or "nothing listens at its socket"
        except ControlError as error:
            problem = SILENT if connection is not None else _reason(error)
        except (OSError, ValueError) as error:
            # The others are shown even if this instance can't be asked.
            problem = str(error)
        else:
            return connection
        if connection is not None:
            connection.close()
    return candidate.without_status(problem) if problem else None


def _reason(error: ControlError) -> str:
    return error.message if isinstance(error, (AccessDenied, ConfigurationError)) else SILENT


def _hear(candidate: _Candidate, connection: Connection, deadline: float) -> LiveInstance | None:
    try:
        answer = connection.receive(deadline)
        pid = _pid(connection) if candidate.entry is None else None
    except ControlError as error:
        return candidate.without_status(_reason(error))
    except (OSError, ValueError) as error:
        return candidate.without_status(str(error))
    finally:
        connection.close()
    if answer is None:
        if connection.ended and candidate.entry is None:
            return None
        return candidate.without_status(SILENT)
    if not isinstance(answer, Response) or not isinstance(answer.result, dict):
        refusal = answer.error if isinstance(answer, Response) else None
        return candidate.without_status(SILENT if refusal is None else refusal[1])
    return candidate.instance(connection.endpoint, pid, answer.result, "")


def _pid(connection: Connection) -> int | None:
    targets = targets_of(connection)
    targets.close()
    return targets.pid


def _text(value: object, length: int = MAX_SHOWN) -> str | None:
    return value[:length] or None if isinstance(value, str) else None


def _number(value: object) -> int | float | None:
    return value if isinstance(value, (int, float)) else None


def _sockets(status: dict[str, Any]) -> list[Any]:
    control = status.get("control")
    sockets = control.get("sockets") if isinstance(control, dict) else None
    return sockets if isinstance(sockets, list) else []
