"""What commonly breaks on the client's machine, and between client and server."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..errors import ConfigurationError
from ..system import locks
from ..system.addresses import (
    default_directories,
    default_lock_files,
    default_sockets,
    from_environment,
    parse_address,
    temporary_directory,
)
from ..system.files import is_owned_directory
from ..system.findings import Finding, note, problem
from ..system.mounts import NETWORK, Mount, mount_of, mounts
from ..system.native import socket
from ..system.packages import version_of
from ..system.platform import LINUX, MAX_SOCKET_PATH

MAX_SOCKETS = 1000
"""Sockets, and processes with a private /tmp, that are looked at."""

MAX_LOCK_FILES = 1000
"""Lock files in the default directories, above which a search for an instance does not read all."""

MAX_SHOWN = 5
"""Paths that a message names."""

NETWORK_FILE_SYSTEM = "network file system"
"""The check that finds directories of other machines, which may not answer."""

OTHER_PATH = "give another path by FLASK_CTL_SOCKET"
_NAME = len("/a-01234567.sock")


def machine_findings(addresses: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What breaks on this machine: in the default directories of sockets, and at some addresses.

    Without addresses it looks at that in FLASK_CTL_SOCKET. Each is ``check``, ``severity`` (``problem`` or ``note``),
    ``message`` and ``remedy``. Nothing is changed.
    """
    try:
        paths = [path for each in addresses or from_environment() if (path := parse_address(each).path)]
    except ConfigurationError as error:
        return [problem("address", error.message, "give an address by --socket")._asdict()]
    known: list[Mount] = []
    with suppress(OSError):
        known = mounts()
    found: list[Finding] = []
    # A file server that is dead would hold up every other check for ever.
    for place in (os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("TMPDIR", "") or "/tmp"):
        if os.path.isabs(place) and _is_remote(place, known):
            found += _file_system(place, known)
    if found:
        return [finding._asdict() for finding in found]
    found += _environment()
    for directory in default_directories():
        found += _directory(directory, known)
    for path in paths:
        found += _address(path, known)
    local = [path for path in paths if not _is_remote(path, known)]
    found += _sockets([*local, *default_sockets()][:MAX_SOCKETS])
    found += _lock_files(default_lock_files())
    if LINUX:
        found += _hidden_sockets()
    return [finding._asdict() for finding in found]


def version_findings(server: str) -> list[dict[str, Any]]:
    """Whether the server runs another version of this package."""
    ours = version_of("flask-ctl")
    if ours == server:
        return []
    message = f"the server runs flask-ctl {server}, this client is {ours}"
    remedy = "reload or restart the server, or run the flask-ctl of its environment"
    return [problem("version", message, remedy)._asdict()]


def _environment() -> Iterator[Finding]:
    """Whether clients and servers look in the same directory."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    uid = os.geteuid()
    if given and not os.path.isdir(given):
        yield problem(
            "runtime directory",
            f"XDG_RUNTIME_DIR is {given}, which is no directory: sockets are in {default_directories()[0]} instead",
            "create it with mode 0700, or unset the variable for servers and clients alike",
        )
    elif given and os.stat(given).st_uid != uid:
        yield note(
            "runtime directory",
            f"XDG_RUNTIME_DIR is {given}, another user's: sockets are in {default_directories()[0]} instead",
            "unset the variable after su and sudo",
        )
    usual = f"/run/user/{uid}"
    if not given:
        with suppress(OSError):
            if any(name.endswith(".sock") for name in os.listdir(os.path.join(usual, "flask-ctl"))):
                yield problem(
                    "runtime directory",
                    f"there are sockets in {usual}/flask-ctl, where this client does not look: XDG_RUNTIME_DIR is"
                    " not set",
                    f"export XDG_RUNTIME_DIR={usual}",
                )


def _directory(directory: str, known: list[Mount]) -> Iterator[Finding]:
    """A default directory; one that is missing will be made."""
    check = "runtime directory"
    if len(os.fsencode(directory)) + _NAME > MAX_SOCKET_PATH:
        yield problem(
            check,
            f"{directory} is too long: the path of a socket has at most {MAX_SOCKET_PATH} bytes",
            f"use a shorter TMPDIR, or {OTHER_PATH}",
        )
    parent = os.path.dirname(directory)
    if _is_remote(directory, known):
        yield from _file_system(directory, known)
        return
    try:
        owned = is_owned_directory(directory)
        info = os.lstat(directory)
    except FileNotFoundError:
        if not os.access(parent, os.W_OK | os.X_OK):
            yield problem(check, f"{directory} is missing, and {parent} is not writable", OTHER_PATH)
        else:
            yield from _file_system(parent, known)
        return
    except OSError as error:
        yield problem(check, f"{directory} can't be used: {error.strerror}", OTHER_PATH)
        return
    if not stat.S_ISDIR(info.st_mode):
        yield problem(check, f"{directory} is no directory", f"remove it, or {OTHER_PATH}")
    elif info.st_uid != os.geteuid():
        yield problem(check, f"{directory} belongs to uid {info.st_uid}", f"have it removed, or {OTHER_PATH}")
    elif not owned:
        mode = stat.S_IMODE(info.st_mode)
        yield problem(
            check, f"{directory} has mode {mode:04o}, so that others get in", f"chmod 700 {shlex.quote(directory)}"
        )
    yield from _file_system(directory, known)


def _is_remote(path: str, known: list[Mount]) -> bool:
    mount = mount_of(path, known)
    return mount is not None and mount.type in NETWORK


def _file_system(directory: str, known: list[Mount]) -> Iterator[Finding]:
    mount = mount_of(directory, known)
    if mount is not None and mount.type in NETWORK:
        yield problem(
            NETWORK_FILE_SYSTEM,
            f"{directory} is on {mount.type}, where locks and sockets are not those of this machine",
            f"use a local directory, such as /run: {OTHER_PATH}",
        )
        return
    with suppress(OSError):
        free = os.statvfs(directory)
        blocks = free.f_bfree if os.geteuid() == 0 else free.f_bavail
        if (free.f_blocks and not blocks) or (free.f_files and not free.f_favail):
            yield problem("file system", f"the file system of {directory} is full", f"make room, or {OTHER_PATH}")


def _address(path: str, known: list[Mount]) -> Iterator[Finding]:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        message = f"{path} has {len(os.fsencode(path))} bytes; a socket's path has at most {MAX_SOCKET_PATH}"
        yield problem("address", message, "give a shorter path")
    directory = os.path.dirname(path)
    if _is_remote(path, known):
        yield from _file_system(path, known)
        return
    if not os.path.isdir(directory):
        yield problem("address", f"{directory} is no directory", "create it, or give another path")
    else:
        yield from _file_system(directory, known)
    with suppress(OSError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            yield problem("address", f"{path} is no socket", "remove it, or give another path")


def _sockets(paths: Iterable[str]) -> Iterator[Finding]:
    stale = [path for path in dict.fromkeys(paths) if _is_stale(path)]
    if stale:
        yield note(
            "sockets",
            f"nothing listens at {_listed(stale)}: its server was killed",
            f"start it again, or: rm {shlex.join(stale[:MAX_SHOWN])}",
        )


def _is_stale(path: str) -> bool:
    """Whether a socket refuses connections, and no process has its lock."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                return False
        with locks.LockFile(locks.lock_path(path)) as file:
            return not file.is_held()
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _lock_files(paths: Sequence[str]) -> Iterator[Finding]:
    foreign = []
    for path in paths[:MAX_SOCKETS]:
        with suppress(OSError):
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                foreign.append(path)
    if foreign:
        yield problem("locks", f"{_listed(foreign)} is no file of this user's", f"rm {shlex.join(foreign[:MAX_SHOWN])}")
    if len(paths) > MAX_LOCK_FILES:
        places = sorted({os.path.dirname(path) for path in paths})
        yield note(
            "locks",
            f"there are {len(paths)} lock files in {', '.join(places)}; a search for instances reads {MAX_LOCK_FILES}",
            "remove those of servers that are gone, when nothing is running",
        )


def _hidden_sockets() -> Iterator[Finding]:
    """Servers of this user that listen in a /tmp that only their unit sees.

    A note for those of a container: that is how they are meant to be.
    """
    place = os.path.join(temporary_directory(), f"flask-ctl-{os.geteuid()}")
    seen = {_identity("/proc/self/root" + temporary_directory())}
    # The last ones first: below are the threads of the kernel, and what was started with the machine.
    pids = sorted(filter(str.isdecimal, os.listdir("/proc")), key=int, reverse=True)
    if len(pids) > MAX_SOCKETS:
        yield note(
            "sockets",
            f"of {len(pids)} processes only {MAX_SOCKETS} were looked at for a {temporary_directory()} of their own",
            "if a server can't be found, set RuntimeDirectory= in its unit",
        )
    for pid in pids[:MAX_SOCKETS]:
        root = f"/proc/{pid}/root"
        identity = _identity(root + temporary_directory())
        if identity in seen or _identity(f"/proc/{pid}") is None:
            continue
        seen.add(identity)
        with suppress(OSError):
            names = sorted(name for name in os.listdir(root + place) if name.endswith(".sock"))
            if names:
                yield (note if _is_contained(pid) else problem)(
                    "sockets",
                    f"{os.path.join(place, names[0])} is in a {temporary_directory()} of its own, that of process {pid}"
                    " (PrivateTmp=, or a container): this client does not see it",
                    "set RuntimeDirectory=, and an address below it by FLASK_CTL_SOCKET=%t/NAME/ctl.sock",
                )


def _is_contained(pid: str) -> bool:
    """Whether a process is in another PID or user namespace: namespaces(7)."""
    return any(_identity(f"/proc/{pid}/ns/{kind}") != _identity(f"/proc/self/ns/{kind}") for kind in ("pid", "user"))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _listed(paths: Sequence[str]) -> str:
    more = len(paths) - MAX_SHOWN
    return ", ".join(paths[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
