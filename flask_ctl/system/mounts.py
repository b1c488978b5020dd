"""The mounts of a process: proc_pid_mountinfo(5)."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

MAX_LINES = 10_000

MAX_LINKS = 40
"""Symbolic links that are followed in a path: path_resolution(7)."""

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs"})
"""Types of file systems of other machines, on which locks and sockets are not reliable."""


class Mount(NamedTuple):
    """Where a file system is mounted, its type, and the directory of it that is seen there."""

    point: str
    type: str
    root: str


def mounts(pid: int | str = "self") -> list[Mount]:
    """The mounts of a process, in the order of their making; none where the system does not tell. Raises OSError."""
    found = []
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for _, line in zip(range(MAX_LINES), file):
            before, _, after = line.partition(" - ")
            fields, (kind, *_rest) = before.split(" "), after.split(" ")
            found.append(Mount(_unescaped(fields[4]), kind, _unescaped(fields[3])))
    return found


def mount_of(path: str, among: list[Mount]) -> Mount | None:
    """The mount that has a path, or would have it; None if that is not known.

    Symbolic links are followed, but not those on a file system of another machine, which may not answer.
    """
    place, links = "/", 0
    left = os.path.join(os.getcwd(), path).split("/")[::-1]
    while left:
        place = os.path.normpath(os.path.join(place, left.pop()))
        mount = _mount_at(place, among)
        if links < MAX_LINKS and (mount is None or mount.type not in NETWORK):
            with contextlib.suppress(OSError):
                target = os.readlink(place)
                place, links = os.path.dirname(place), links + 1
                left += ["/", *target.split("/")[1:]][::-1] if target.startswith("/") else target.split("/")[::-1]
    return _mount_at(place, among)


def _mount_at(real: str, among: list[Mount]) -> Mount | None:
    having = [mount for mount in among if real == mount.point or real.startswith(mount.point.rstrip("/") + "/")]
    # Of two with the same point the later one hides the other.
    return max(reversed(having), key=lambda mount: len(mount.point), default=None)


def private_temporary(among: list[Mount]) -> list[str]:
    """The directories that systemd's PrivateTmp= has replaced for a process (systemd.exec(5))."""
    return [mount.point for mount in among if "/systemd-private-" in mount.root]


def _unescaped(text: str) -> str:
    for char in " \t\n\\":
        text = text.replace(f"\\{ord(char):03o}", char)
    return text
