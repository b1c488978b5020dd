"""Access policy of one app: the roles of peers, and the mode of the socket's file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import AccessDenied, ConfigurationError
from ..system.credentials import group_id, user_id
from .commands import ROLES, Role
from .peer import Peer, Principal


class FileAccess(NamedTuple):
    """The mode of a socket's file, and the group that it belongs to (None: ours)."""

    mode: int
    gid: int | None = None

    @property
    def shared(self) -> bool:
        """Whether it lets others than its owner connect."""
        return self.mode != 0o600


PRIVATE = FileAccess(0o600)
"""For the owner alone."""


@dataclass(frozen=True)
class Policy:
    """The roles of peers with one app: `allow` lists principals other than the server's own user and root.

    Operating includes inspecting, which includes observing. A peer that can't be identified has no role.
    """

    allow: Mapping[Role, Collection[Principal]] = field(default_factory=dict)
    tcp_operate: bool = False

    @classmethod
    def from_config(cls, value: Any, tcp_operate: Any = False) -> Policy:
        """The policy that CTL_ALLOW and CTL_TCP_OPERATE describe. Raises ConfigurationError that names what is wrong.

        ``{"observe": ["group:ops"], "operate": ["uid:1001", "user:ann", "gid:100", "key:alice", "key:*"]}``
        """
        if not isinstance(tcp_operate, bool):
            raise ConfigurationError(f"CTL_TCP_OPERATE has to be True or False, not {tcp_operate!r}")
        if value is None:
            return cls({}, tcp_operate)
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"CTL_ALLOW has to be a dict of roles and lists, not {value!r}")
        for role in value:
            if role not in ROLES:
                raise ConfigurationError(f"CTL_ALLOW: there is no role {role!r}; there are: {', '.join(ROLES)}")
        return cls(
            {role: tuple(dict.fromkeys(_principals(role, entries))) for role, entries in value.items()}, tcp_operate
        )

    def role_of(self, peer: Peer) -> Role | None:
        """The most that a peer may do; None for nothing at all."""
        if peer.role is not None:
            # The server's permissions have let it send to the subject of that role.
            return peer.role
        if peer.key is not None:
            # The handshake has accepted its key.
            return self._granted({("key", peer.key)}) or self._granted({("key", "*")}) or "observe"
        if peer.uid is not None:
            if peer.uid in (0, os.geteuid()):
                return "operate"
            return self._granted({("uid", peer.uid), *(("gid", gid) for gid in (peer.gid, *peer.groups))})
        if peer.address is not None:
            return "operate" if self.tcp_operate else "observe"
        return None

    def permits(self, peer: Peer, needs: Role) -> bool:
        """Whether the peer has that role, or one that includes it."""
        role = self.role_of(peer)
        return role is not None and ROLES.index(role) >= ROLES.index(needs)

    def check(self, peer: Peer, needs: Role) -> None:
        """Raises AccessDenied, with what is missing and what helps, unless the peer has the role that it `needs`."""
        if not self.permits(peer, needs):
            role = self.role_of(peer)
            what = "may not use this server" if role is None else f"may {role} this server but not {needs} it"
            raise AccessDenied(f"{peer} {what}; {_remedy(peer)}", {"role": role, "needs": needs})

    def file_access(self) -> FileAccess:
        """What the file of a Unix socket has to allow, so that the users and groups in the policy can connect."""
        named = {name for names in self.allow.values() for name in names if name[0] in ("uid", "gid")}
        others = named - {("uid", 0), ("uid", os.geteuid())}
        if not others:
            return PRIVATE
        kind, number = next(iter(others))
        if len(others) == 1 and kind == "gid" and isinstance(number, int):
            return FileAccess(0o660, number)
        return FileAccess(0o666)

    def _granted(self, principals: set[Principal]) -> Role | None:
        return next((role for role in reversed(ROLES) if not principals.isdisjoint(self.allow.get(role, ()))), None)


def _remedy(peer: Peer) -> str:
    if peer.role is not None:
        return "it needs the permission to publish to the subject of that role, and the app has to take it"
    if peer.uid is None and peer.key is None and peer.address is not None:
        return "plain TCP does not tell who it is: use a Unix socket or CURVE, or set CTL_TCP_OPERATE"
    return "CTL_ALLOW of the app gives more"


def _principals(role: str, entries: Any) -> Iterable[Principal]:
    if isinstance(entries, (str, bytes)) or not isinstance(entries, Iterable):
        raise ConfigurationError(f"CTL_ALLOW: {role} has to be a list as ['group:ops', 'uid:1001'], not {entries!r}")
    return [_party(entry) for entry in entries]


def _party(entry: Any) -> Principal:
    kind, colon, name = entry.partition(":") if isinstance(entry, str) else ("", "", "")
    if kind not in _READERS or not colon or not name:
        raise ConfigurationError(
            f"CTL_ALLOW: {entry!r} names nobody; write uid:1001, user:ann, gid:100, group:ops, key:alice or key:*"
        )
    return _READERS[kind](entry, name)


def _numbered(entry: str, name: str) -> Principal:
    if not (name.isascii() and name.isdigit()):
        raise ConfigurationError(f"CTL_ALLOW: {entry!r} needs a number; for names there are user: and group:")
    return entry.partition(":")[0], int(name)


def _user(entry: str, name: str) -> Principal:
    return "uid", _found(entry, user_id(name), "user")


def _group(entry: str, name: str) -> Principal:
    return "gid", _found(entry, group_id(name), "group")


def _found(entry: str, number: int | None, kind: str) -> int:
    if number is None:
        raise ConfigurationError(f"CTL_ALLOW: this machine knows no {kind} for {entry!r}; create it, or correct it")
    return number


def _key(entry: str, name: str) -> Principal:
    return "key", name


_READERS = {"uid": _numbered, "gid": _numbered, "user": _user, "group": _group, "key": _key}
