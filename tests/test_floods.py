"""Peers who send as much as they can: the others have their turn all the same, and memory stays bounded."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from harness import TIMEOUT, until
from wires import WIRES, Wire, unix_wire, zmq_wire
from wires import request as encoded

from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.dispatcher import Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.peer import Peer
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.replies import Call
from flask_ctl.dispatch.streams import PIECE, LongResult
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.system.addresses import parse_address
from flask_ctl.transports.control_thread import ControlServer
from flask_ctl.transports.factory import CurveFiles, make_listener
from flask_ctl.transports.reactor import Reactor
from flask_ctl.transports.zeromq.router import HELD
from flask_ctl.transports.zeromq.session import Sent, ZmqClient

CONNECTIONS = 100
EACH = 400
"""Messages of each connection: more together than a control thread that serves nobody else would be done with soon."""

FEW = 200
"""Messages of a flood that may be handled before somebody else is: a turn or two."""

FIRST = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
)  # fmt: skip
"""What a DEALER says before its first message (ZMTP 3.0)."""

OBSERVERS = Guard(Policy())


class Counting:
    """A control server on several wires. Its `flood` is a command; at the first one `then` is called, on its thread."""

    def __init__(self, *wires: Wire) -> None:
        self.count = 0
        self.count_at_ping = -1
        self.pinged = threading.Event()
        self.then: Callable[[], Any] = lambda: None
        registry = CommandRegistry()
        for builtin in (self.flood, self.ping):
            registry.add(command_from(builtin, builtin=True, role="observe"))
        self.server = ControlServer()
        self.server.start([(wire.listener, Dispatcher(registry, self._no_pool, OBSERVERS)) for wire in wires])

    def flood(self, call: Call) -> str:
        self.count += 1
        if self.count == 1:
            self.then()
        return "x" * 1000

    def ping(self, call: Call) -> str:
        self.count_at_ping = self.count
        self.pinged.set()
        return "pong"

    def _no_pool(self, command: Any, arguments: Any) -> Any:
        raise NotImplementedError


@contextlib.contextmanager
def counting(*wires: Wire) -> Iterator[Counting]:
    server = Counting(*wires)
    try:
        yield server
    finally:
        server.server.close()
        for wire in wires:
            wire.close()


def dealer(port: int) -> socket.socket:
    """A plain connection to a ROUTER, ready for messages."""
    sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    sock.sendall(FIRST)
    said = b""
    while b"READY" not in said:
        said += sock.recv(256)
    return sock


def frame(message: bytes) -> bytes:
    return b"\0" + bytes([len(message)]) + message


@pytest.fixture
def plain_tcp(free_port: int) -> Wire:
    """The wire that any user of the machine may observe at."""
    address = f"tcp://127.0.0.1:{free_port}"
    wire = zmq_wire(address, None, OBSERVERS)
    wire.listener = make_listener(parse_address(address), OBSERVERS, CurveFiles())
    return wire


def test_a_flood_over_plain_tcp_lets_the_owner_at_the_unix_socket_have_its_turn(
    short_path: pathlib.Path, plain_tcp: Wire, free_port: int
) -> None:
    unix = unix_wire(short_path, 0)
    with counting(unix, plain_tcp) as server, contextlib.ExitStack() as stack:
        owner = stack.enter_context(contextlib.closing(unix.talk()))
        server.then = lambda: owner.send(encoded("ping"))
        for sock in [stack.enter_context(dealer(free_port)) for _ in range(CONNECTIONS)]:
            sock.sendall(EACH * frame(b'{"jsonrpc":"2.0","method":"flood"}'))
        assert server.pinged.wait(TIMEOUT)
        assert server.count_at_ping <= FEW
        assert owner.receive()["result"] == "pong"


@pytest.mark.parametrize("flooding", [name for name in WIRES if name != "memory"])
def test_who_sends_a_thousand_messages_at_once_lets_others_have_their_turn(
    short_path: pathlib.Path, free_port: int, flooding: str
) -> None:
    (short_path / "other").mkdir()
    wire, unix = WIRES[flooding](short_path, free_port), unix_wire(short_path / "other", 0)
    with counting(wire, unix) as server, contextlib.ExitStack() as stack:
        owner = stack.enter_context(contextlib.closing(unix.talk()))
        talk = stack.enter_context(contextlib.closing(wire.talk()))
        server.then = lambda: owner.send(encoded("ping"))
        notification = b'{"jsonrpc":"2.0","method":"flood"}'
        talk.send(*[notification] * 1000)
        assert server.pinged.wait(TIMEOUT)
        assert server.count_at_ping <= FEW
        until(lambda: server.count == 1000, "all of them are handled in the end")


class _Answering:
    """A handler that answers everything at once, with as many bytes."""

    def __init__(self, size: int) -> None:
        self.answer = b"x" * size

    def handle(self, message: bytes, peer: Peer, notify: Any, connection: Any = None) -> bytes:
        return self.answer

    def handle_plain(self, line: bytes, peer: Peer, connection: Any = None) -> bytes:
        return self.answer


@pytest.mark.parametrize("others", [0, 9, 99])
@pytest.mark.parametrize("size", [10, 1000, 100_000], ids="answers of {} bytes".format)
@pytest.mark.parametrize("asked", [10, 1000, 10_000], ids="messages of {} bytes".format)
def test_a_client_that_reads_no_answer_makes_us_hold_no_more_than_its_share(others: int, size: int, asked: int) -> None:
    share = HELD // (1 + others)
    with contextlib.closing(Reactor()) as reactor:
        client = ZmqClient(b"id", Peer(), reactor, _Answering(size), 64, lambda *_: "blocked", lambda: share)
        for _ in range(3000):
            client.take(b"x" * asked)
    assert sum(map(len, client._out)) <= share + size
    assert sum(map(len, client._waiting)) <= share


def test_a_client_that_reads_its_answers_is_never_refused() -> None:
    answers: list[bytes] = []

    def send(_client: ZmqClient, message: bytes) -> Sent:
        answers.append(message)
        return "sent"

    with contextlib.closing(Reactor()) as reactor:
        client = ZmqClient(b"id", Peer(), reactor, _Answering(10), 64, send, lambda: 1)
        for _ in range(3000):
            client.take(b"x" * 1_000_000)
    assert answers == 3000 * [b"x" * 10]


class _Asked:
    """A handler whose answers come when the test says so."""

    def __init__(self) -> None:
        self.asked: dict[int, Future[Any]] = {}

    def handle(self, message: bytes, peer: Peer, notify: Any, connection: Any = None) -> Future[Any]:
        future: Future[Any] = Future()
        self.asked[json.loads(message)["id"]] = future
        return future

    def handle_plain(self, line: bytes, peer: Peer, connection: Any = None) -> bytes:
        raise NotImplementedError


LONG, SHORT = b'{"method": "m", "params": {"_chunks": true}, "id": %d}', b'{"method": "m", "id": %d}'
ESCAPED = b'{"method": "m", "params": {"\\u005fchunks": true}, "id": %d}'


@pytest.mark.parametrize("long", [LONG, ESCAPED])
def test_who_asks_for_many_long_results_at_once_makes_us_hold_one(long: bytes) -> None:
    handler = _Asked()
    written: list[bytes] = []

    def send(_client: ZmqClient, message: bytes) -> Sent:
        written.append(message)
        return "sent"

    with contextlib.closing(Reactor()) as reactor:
        client = ZmqClient(b"id", Peer(), reactor, handler, 64, send, lambda: HELD)
        for n, message in enumerate([SHORT, long, SHORT, long, SHORT, long]):
            client.take(message % n)
        # One long result is asked for; what does not ask for any goes on beside it, but not past another that does.
        assert [*handler.asked] == [0, 1, 2]
        handler.asked[0].set_result(b"short")
        reactor.finish_calls()
        assert [*handler.asked] == [0, 1, 2]
        handler.asked[1].set_result(LongResult(1, "x" * PIECE))
        reactor.finish_calls()
        assert [*handler.asked] == [0, 1, 2, 3, 4]
        handler.asked[3].set_result(b"it was not that long")
        reactor.finish_calls()
        assert [*handler.asked] == [0, 1, 2, 3, 4, 5]
    assert b"complete" in written[3]


def test_while_answers_wait_to_be_read_nothing_more_is_handled() -> None:
    """This holds for requests with late answers, too."""
    handler = _Asked()
    with contextlib.closing(Reactor()) as reactor:
        client = ZmqClient(b"id", Peer(), reactor, handler, 64, lambda *_: "blocked", lambda: HELD)
        client.take(SHORT % 0)
        handler.asked[0].set_result(b"x" * MAX_FRAME)
        reactor.finish_calls()
        client.take(SHORT % 1)
    assert [*handler.asked] == [0]
