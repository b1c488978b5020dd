"""Which servers a client trusts, and the keys by which both prove their identity."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from ..errors import AccessDenied, ConfigurationError, NotRunning
from ..system.addresses import Address, own_uid

CLIENT_KEY = "FLASK_CTL_CLIENT_KEY"
SERVER_KEY = "FLASK_CTL_SERVER_KEY"
OWNER = "FLASK_CTL_OWNER"


class Trust(NamedTuple):
    """What a server has to prove to a client.

    A socket on this machine has to belong to the client's user, to root, or to the uid `owner`. A server over TCP has
    to have `server_key`; the client proves its own identity by the key pair in the file `client_key`. On this machine
    the listening process has to hold the lock of the file `entry` in the registry of instances, if one is given.
    """

    owner: int | None = None
    client_key: str | None = None
    server_key: str | None = None
    entry: str | None = None

    def check_holder(self, path: str, pid: int | None) -> None:
        """Raises NotRunning if the process `pid` that listens at `path` is another one than that of the `entry`."""
        if self.entry is None:
            return
        from ..transports.registry import holder_of

        if holder_of(self.entry) != (pid or 0):
            raise NotRunning(f"the selected instance does not listen at {path} any more", {"tried": [path]})

    def check_registered(self, address: Address) -> None:
        """Raises AccessDenied for a TCP address in an `entry`, unless it is the client's own, and on this machine.

        An entry may name any address, and over TCP the kernel does not tell who listens there.
        """
        if self.entry is not None and not (self.owner in (None, own_uid()) and _is_loopback(address.host)):
            raise AccessDenied(f"{address} is not asked; if you trust it: --socket {address}")

    def check_file(self, path: str) -> None:
        """Raises AccessDenied for a socket that another user may have put there, ConfigurationError for another file.

        Raises OSError if the path does not exist.
        """
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            raise AccessDenied(f"{path} is a symbolic link, which may lead anywhere; give the socket itself")
        if not stat.S_ISSOCK(info.st_mode):
            kinds = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory"}
            what = kinds.get(stat.S_IFMT(info.st_mode), "something else")
            raise ConfigurationError(f"{path} is {what}, and no socket; give the address of a socket")
        self._check_directory(os.path.dirname(path))
        self._check(info.st_uid, f"{path} belongs to")

    def check_owner(self, path: str, uid: int) -> None:
        """Raises AccessDenied if a file belongs to a user who is not trusted."""
        self._check(uid, f"{path} belongs to")

    def check_peer(self, path: str, uid: int | None) -> None:
        """Raises AccessDenied if the listening process belongs to a user who is not trusted."""
        if uid is None:
            raise AccessDenied(f"the kernel does not tell who listens at {path}")
        self._check(uid, f"at {path} there listens")

    def _check_directory(self, directory: str) -> None:
        info = os.stat(directory)
        by_all, by_group, sticky = (info.st_mode & bit for bit in (stat.S_IWOTH, stat.S_IWGRP, stat.S_ISVTX))
        if not sticky and (by_all or (by_group and not _is_private_group(info))):
            raise AccessDenied(
                f"others can write to {directory} (mode {stat.S_IMODE(info.st_mode):04o}), and so put a socket of their"
                f" choice there; chmod go-w {directory}, or move the socket"
            )
        self._check(info.st_uid, f"{directory} belongs to")

    def accepts(self, uid: int) -> bool:
        """Whether this user is trusted."""
        return uid in (0, own_uid(), self.owner)

    def _check(self, uid: int, who: str) -> None:
        if not self.accepts(uid):
            raise AccessDenied(
                f"{who} {_name_of(uid)}, neither you nor root; if you trust that user: --owner {_name_of(uid)}"
            )


def make_trust(
    owner: str | int | None = None,
    client_key: str | os.PathLike[str] | None = None,
    server_key: str | os.PathLike[str] | None = None,
    entry: str | None = None,
) -> Trust:
    """A `Trust` of the given values, or of the environment where they are None.

    The variables are FLASK_CTL_OWNER, a name or uid, FLASK_CTL_CLIENT_KEY and FLASK_CTL_SERVER_KEY. Raises
    ConfigurationError for a user that does not exist.
    """
    owner = owner if owner is not None else os.environ.get(OWNER) or None
    client_key = client_key or os.environ.get(CLIENT_KEY) or None
    server_key = server_key or os.environ.get(SERVER_KEY) or None
    return Trust(
        None if owner is None else uid_of(owner),
        None if client_key is None else os.fspath(client_key),
        None if server_key is None else os.fspath(server_key),
        entry,
    )


def uid_of(user: str | int) -> int:
    """The uid of a user, given by name or uid. Raises ConfigurationError for a name that does not exist."""
    if isinstance(user, int) or (user.isascii() and user.isdigit()):
        return int(user)
    try:
        import pwd

        return pwd.getpwnam(user).pw_uid
    except (ImportError, KeyError):
        raise ConfigurationError(f"there is no user {user!r}; give a name or a uid") from None


def _is_loopback(host: str) -> bool:
    """Without looking the name up."""
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private_group(info: os.stat_result) -> bool:
    """Whether only the file's owner is in its group: many systems give every user a group of the same name."""
    try:
        import grp
        import pwd

        owner, group = pwd.getpwuid(info.st_uid), grp.getgrgid(info.st_gid)
    except (ImportError, KeyError):
        return False
    return owner.pw_gid == info.st_gid and owner.pw_name == group.gr_name and set(group.gr_mem) <= {owner.pw_name}


def _name_of(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)
