"""Who is at the other end, and whether they may."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .errors import AccessDenied


@dataclass(frozen=True)
class Peer:
    """Another process, as the kernel names it; None where it could not be known (unix(7), SO_PEERCRED)."""

    pid: int | None = None
    uid: int | None = None
    gid: int | None = None

    def describe(self) -> dict[str, Any]:
        """The `by` of `status`."""
        return {"uid": self.uid, "gid": self.gid, "pid": self.pid}


def this_process() -> Peer:
    """The peer that this very process is."""
    return Peer(os.getpid(), os.geteuid(), os.getegid())


def check_same_user(peer: Peer) -> None:
    """Raises AccessDenied unless the peer has our effective uid, or is root; unknown peers are refused."""
    if peer.uid is None or peer.uid not in (0, os.geteuid()):
        who = "a peer that the kernel can't name" if peer.uid is None else f"uid {peer.uid}"
        raise AccessDenied(f"{who} may not control this server; it belongs to uid {os.geteuid()}")
