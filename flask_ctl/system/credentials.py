"""Users and groups, and the peer of a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys

from .platform import LINUX

_SO_PEERGROUPS = 59  # Linux 4.13; not in the socket module yet

_LOCAL_PEERCRED, _LOCAL_PEERPID = 1, 2  # macOS, sys/un.h

_NO_ID = 2**32 - 1

_MAX_OPTION = 1024
"""Bytes that Python's getsockopt can read: 256 groups."""


def peer_credentials(sock: socket.socket) -> tuple[int | None, int | None, int | None]:
    """pid, uid and gid of the other end, each None if unknown.

    For a client they describe the process that last called listen(): unix(7), SO_PEERCRED.
    """
    if LINUX:
        pid, uid, gid = struct.unpack("i2I", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return (pid if pid > 0 else None), (uid if uid != _NO_ID else None), (gid if gid != _NO_ID else None)
    if sys.platform == "darwin":
        _, uid, _, gid = struct.unpack("IIhxxI", sock.getsockopt(0, _LOCAL_PEERCRED, 76)[:16])
        return struct.unpack("i", sock.getsockopt(0, _LOCAL_PEERPID, 4))[0], uid, gid
    return None, None, None


def peer_groups(sock: socket.socket, uid: int | None, gid: int | None) -> tuple[int, ...]:
    """The supplementary groups of the other end: SO_PEERGROUPS, else what the user database says of `uid`."""
    if LINUX and not os.uname().machine.startswith(("sparc", "parisc")):  # where it has another number
        # ERANGE: more than can be read; ENOPROTOOPT: an older kernel.
        with contextlib.suppress(OSError):
            data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_OPTION)
            return struct.unpack(f"{len(data) // 4}I", data)
    return user_groups(uid, gid)


def user_groups(uid: int | None, gid: int | None) -> tuple[int, ...]:
    """The groups that the user database gives `uid`, and `gid`."""
    if uid is None or gid is None:
        return ()
    try:
        import pwd

        return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except (ImportError, KeyError, OSError):
        return ()


def user_id(name: str) -> int | None:
    """The uid of a user, None if there is none of that name."""
    try:
        import pwd

        return pwd.getpwnam(name).pw_uid
    except (ImportError, KeyError, ValueError):
        return None


def home_of(uid: int) -> str | None:
    """The home directory of a user, None if there is none."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_dir
    except (ImportError, KeyError):
        return None


def group_id(name: str) -> int | None:
    """The gid of a group, None if there is none of that name."""
    try:
        import grp

        return grp.getgrnam(name).gr_gid
    except (ImportError, KeyError, ValueError):
        return None
