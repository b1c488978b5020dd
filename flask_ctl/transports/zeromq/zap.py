"""Authentication over ZeroMQ: the answers to libzmq's requests (ZAP, RFC 27 of ZeroMQ).

libzmq asks at every handshake, and puts the user id of the answer on every message of that connection, beside the
address of the peer. Over ipc that address holds the credentials that the kernel gave when the connection was made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Protocol

import zmq
from zmq.utils import z85

from ...dispatch.peer import Peer
from ...system.credentials import user_groups
from .curve import AllowedKeys

DOMAIN = b"flask-ctl"
"""The ZAP domain: without one libzmq does not authenticate."""

TURN = 16
"""Requests that are answered before the reactor goes on: each may ask the user database."""

_CREDENTIALS = re.compile(r"(?:.*:)?(\d+):(\d+):(\d*)")


class Identity(Protocol):
    """How the peers at one address are identified."""

    def user_id(self, address: str, credentials: list[bytes]) -> str:
        """The user id that libzmq puts on each message of a connection; `peer` turns it into a Peer."""

    def peer(self, address: str, user_id: str) -> Peer:
        """The peer that has sent a message."""

    def describe(self, address: str, user_id: str) -> str:
        """A text for the log about a peer that may not connect."""


class LocalIdentity:
    """Peers over ipc, named by the kernel (unix(7), SO_PEERCRED): libzmq's address ends in ``:uid:gid:pid``.

    The user database is asked for their groups once for each connection. The user id carries them to the messages.
    """

    def user_id(self, address: str, credentials: list[bytes]) -> str:
        return ",".join(map(str, user_groups(*_credentials(address)[:2])))

    def peer(self, address: str, user_id: str) -> Peer:
        return _local_peer(address, user_id)

    def describe(self, address: str, user_id: str) -> str:
        return f"local at {address}"


@functools.lru_cache(maxsize=256)
def _local_peer(address: str, user_id: str) -> Peer:
    # Kept because every message asks; both texts together are all that it depends on.
    uid, gid, pid = _credentials(address)
    return Peer(pid, uid, gid, tuple(map(int, filter(None, user_id.split(",")))))


def _credentials(address: str) -> tuple[int | None, int | None, int | None]:
    """uid, gid and pid in such an address, None for what is not there."""
    found = _CREDENTIALS.fullmatch(address)
    if found is None:
        return None, None, None
    uid, gid, pid = (int(number or 0) for number in found.groups())
    return uid, gid, pid or None


class LoopbackIdentity:
    """Peers over plain TCP: any user of this machine."""

    def user_id(self, address: str, credentials: list[bytes]) -> str:
        return "anybody"

    def peer(self, address: str, user_id: str) -> Peer:
        return Peer(address=address)

    def describe(self, address: str, user_id: str) -> str:
        return f"anybody at {address}"


class KeyIdentity:
    """Peers with a CURVE key, named by the files in the directory of allowed keys."""

    def __init__(self, allowed: AllowedKeys) -> None:
        self._allowed = allowed

    def user_id(self, address: str, credentials: list[bytes]) -> str:
        return z85.encode(credentials[0]).decode() if credentials else ""

    def peer(self, address: str, user_id: str) -> Peer:
        # Asked again for every message, so that a key that is taken away is shut out at once.
        name = self._allowed.name_of(user_id.encode())
        return Peer() if name is None else Peer(key=name)

    def describe(self, address: str, user_id: str) -> str:
        return f"{user_id} at {address}"


class Authenticator:
    """Answers the questions of one ZeroMQ context; `may_connect` says whether a peer, also in words, may connect."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], identity: Identity, may_connect: Callable[[Peer, str], bool]
    ) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._identity = identity
        self._may_connect = may_connect

    def answer(self) -> bool:
        """Answer the questions that are there, TURN at most; whether there may be more."""
        for _ in range(TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self.socket.send_multipart(self._reply(frames))
        return True

    def _reply(self, frames: list[bytes]) -> list[bytes]:
        start = frames.index(b"") + 1
        version, request, _domain, address, _routing_id, _mechanism, *credentials = frames[start:]
        where = address.decode(errors="replace")
        user_id = self._identity.user_id(where, credentials)
        admitted = self._may_connect(self._identity.peer(where, user_id), self._identity.describe(where, user_id))
        code, text = (b"200", b"OK") if admitted else (b"400", b"not allowed")
        return [*frames[:start], version, request, code, text, user_id.encode() if admitted else b"", b""]
