"""Who connects over ZeroMQ, as far as libzmq tells: unit tests, and two connections to a real ROUTER."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from wires import Peer, Wire, zmq_wire

from flask_ctl import AccessDenied
from flask_ctl.dispatch import peer as peer_module
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.policy import Policy
from flask_ctl.system.addresses import parse_address
from flask_ctl.transports.socketfile import SocketFile
from flask_ctl.transports.zeromq.listener import ZmqListener
from flask_ctl.transports.zeromq.zap import LocalIdentity

OPS = 4711


class UserDatabase:
    """The groups that the user database gives to anybody, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: tuple[int, ...] = (OPS,)
        self.asked = 0
        monkeypatch.setattr("flask_ctl.transports.zeromq.zap.user_groups", self._user_groups)

    def _user_groups(self, uid: int | None, gid: int | None) -> tuple[int, ...]:
        self.asked += 1
        return self.groups


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> UserDatabase:
    return UserDatabase(monkeypatch)


def test_the_groups_of_a_peer_are_those_of_the_moment_when_it_connected(database: UserDatabase) -> None:
    identity, address = LocalIdentity(), ":1000:100:42"
    before = identity.user_id(address, [])
    database.groups = ()
    after = identity.user_id(address, [])
    assert identity.peer(address, before).groups == (OPS,)
    assert identity.peer(address, after).groups == ()


def test_the_user_database_is_not_asked_for_each_message(database: UserDatabase) -> None:
    identity = LocalIdentity()
    user_id = identity.user_id(":1000:100:42", [])
    for _ in range(100):
        identity.peer(":1000:100:42", user_id)
    assert database.asked == 1


@pytest.mark.parametrize(
    ("address", "credentials"),
    [
        (":1000:100:42", (42, 1000, 100)),
        ("/tmp/x:y.sock:1000:100:42", (42, 1000, 100)),
        (":1000:100:", (None, 1000, 100)),
        ("", (None, None, None)),
        ("127.0.0.1", (None, None, None)),
    ],
)
def test_a_peer_is_read_from_the_address_that_libzmq_gives(
    database: UserDatabase, address: str, credentials: Any
) -> None:
    database.groups = ()
    identity = LocalIdentity()
    peer = identity.peer(address, identity.user_id(address, []))
    assert (peer.pid, peer.uid, peer.gid) == credentials


class _AnotherUser(LocalIdentity):
    """Takes this process for another user's, in the groups that the database says."""

    def peer(self, address: str, user_id: str) -> peer_module.Peer:
        real = super().peer(address, user_id)
        return peer_module.Peer(real.pid, 54321, 54321, real.groups)


def test_a_user_who_is_removed_from_a_group_is_refused_at_the_next_connection_from_the_same_process(
    database: UserDatabase, short_path: pathlib.Path
) -> None:
    address = parse_address(f"ipc://{short_path}/x.zmq")
    guard = Guard(Policy.from_config({"operate": [f"gid:{OPS}"]}))
    wire = zmq_wire(str(address), None, guard)
    listener = ZmqListener(address, SocketFile(address.path), _AnotherUser(), guard)
    peer = Peer(Wire(listener, str(address), {}, wire.talk), guard)
    try:
        with peer.raw() as kept:
            kept.send(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
            assert kept.receive()["result"]["pong"]
            database.groups = ()
            with peer.client() as client, pytest.raises(AccessDenied, match="does not let you in"):
                client.ping()
        database.groups = (OPS,)
        assert peer.answers()
    finally:
        peer.close()
        wire.close()
