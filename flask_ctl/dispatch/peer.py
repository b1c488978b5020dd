"""The other side of a control connection, as the kernel or CURVE names it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Union

from ..system.credentials import peer_credentials, peer_groups
from ..system.native import socket
from .commands import Role

Principal = tuple[str, Union[int, str, None]]
"""An identity, as far as it can be known: ``("uid", 1001)``, ``("gid", 100)``, ``("key", "alice")``."""


_LOOPBACK = ("127.", "::1", "::ffff:127.")


@dataclass(frozen=True)
class Peer:
    """The other end of a connection; None for what could not be known.

    A process is named by the kernel (unix(7), SO_PEERCRED). `key` is the name of the CURVE key that a peer over the
    network has proved to hold, `address` the IP address of a peer over plain TCP, about which nothing else is known.
    `role` is what a NATS server lets a peer do, which belongs to an `account` there, and calls itself `user`.
    """

    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    """Supplementary groups."""
    key: str | None = None
    address: str | None = None
    role: Role | None = None
    account: str | None = None
    user: str | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Peer:
        """What `as_dict` gave, after JSON."""
        return cls(**{**fields, "groups": tuple(fields["groups"])})

    def as_dict(self) -> dict[str, Any]:
        """Its fields, as JSON."""
        return dict(vars(self))

    @property
    def principal(self) -> Principal:
        """The user, key, host or account that refusals count against. All loopback addresses are one host."""
        if self.role is not None:
            return "account", self.account
        if self.key is not None:
            return "key", self.key
        if self.address is not None and self.uid is None:
            return "address", "loopback" if self.address.startswith(_LOOPBACK) else self.address
        return "uid", self.uid

    def describe(self) -> dict[str, Any]:
        """The `by` of `status`."""
        if self.role is not None:
            return {"via": "nats", "account": self.account, "user": self.user}
        if self.key is not None:
            return {"key": self.key}
        named = {"uid": self.uid, "gid": self.gid, "pid": self.pid}
        return named if self.address is None else {**named, "address": self.address}

    def __str__(self) -> str:
        if self.role is not None:
            return f"a user of NATS that calls itself {self.user!r}"
        if self.key is not None:
            return f"the key {self.key!r}"
        if self.uid is not None:
            return f"uid {self.uid}"
        return "a peer that the kernel can't name" if self.address is None else f"a peer at {self.address}"


def this_process() -> Peer:
    """The peer that this very process is."""
    return Peer(os.getpid(), os.geteuid(), os.getegid())


def peer_of(sock: socket.socket) -> Peer:
    """The process at the other end of a connected Unix socket, with the credentials it had when it connected."""
    pid, uid, gid = peer_credentials(sock)
    return Peer(pid, uid, gid, peer_groups(sock, uid, gid))
