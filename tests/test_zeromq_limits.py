"""What peers over ZeroMQ can grow, or hold up: nothing without bound."""

from __future__ import annotations

import contextlib
import pathlib
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator

import pytest
import zmq
from harness import Pending, Program, Serve, first_quick, get, until
from wires import ZEROMQ, Peer, request

from flask_ctl import ServerReloaded, TimedOut
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.system.addresses import parse_address
from flask_ctl.system.handover import Handover
from flask_ctl.transports.socketfile import BACKLOG
from flask_ctl.transports.zeromq.listener import ZmqListener
from flask_ctl.transports.zeromq.router import Router
from flask_ctl.transports.zeromq.session import MAX_WAITING


@pytest.fixture(params=ZEROMQ)
def peer(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Iterator[Peer]:
    peer = Peer(ZEROMQ[request.param](short_path, free_port))
    yield peer
    peer.close()


HANDSHAKE = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
)  # fmt: skip
"""What a DEALER without a key says first (ZMTP 3.0)."""


def is_ended(sock: socket.socket) -> bool:
    """Whether the server has ended a connection, of which nothing is read."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def router_of(peer: Peer) -> Router:
    listener = peer.wire.listener
    assert isinstance(listener, ZmqListener)
    assert listener._router is not None
    return listener._router


def knock(endpoint: str) -> socket.socket:
    """A connection to an address of ZeroMQ, without a word."""
    address = parse_address(endpoint)
    sock = socket.socket(socket.AF_UNIX if address.transport == "ipc" else socket.AF_INET)
    sock.connect(address.path or (address.host, address.port))
    return sock


@pytest.mark.full
def test_many_who_come_and_go_while_the_control_thread_is_busy_do_not_keep_it_from_ending(peer: Peer) -> None:
    peer.server.call_soon(peer.gate.wait)
    for _ in range(3000):
        knock(peer.wire.target).close()
    closing = Pending.call(peer.server.close)
    peer.gate.set()
    closing.result()


def test_more_connections_than_there_are_descriptors_are_ended_down_to_the_limit(serve: Serve, free_port: int) -> None:
    server = serve(socket=f"tcp://127.0.0.1:{free_port}", env={"FLASK_CTL_MAX_CONNECTIONS": "20"})
    address = server.address
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (100, 100))
    held = [knock(server.socket) for _ in range(100)]
    for sock in held:
        with contextlib.suppress(OSError):
            sock.sendall(HANDSHAKE)
    until(lambda: sum(map(is_ended, held)) >= 80, "those over the limit are ended")
    assert get(address, "/")[0] == 200
    assert server.status()["state"] == "running"
    for sock in held:
        sock.close()


@pytest.mark.parametrize("peer", first_quick(["tcp with CURVE", "ipc"]), indirect=True)
def test_who_never_reads_is_told_no_more_of_what_is_wrong_with_its_messages(peer: Peer) -> None:
    with peer.raw() as talk:
        for _ in range(10 * MAX_WAITING):
            talk.sock.send_multipart([b"one", b"two"])
            talk.send(b"")
        assert peer.answers()
        assert max(len(client._out) for client in router_of(peer).clients.values()) <= MAX_WAITING + 1


def test_a_server_that_accepts_nobody_is_there_all_the_same(serve: Serve, short_path: pathlib.Path) -> None:
    server = serve(socket=f"ipc://{short_path / 'x.zmq'}").suspend()
    waiting = [knock(server.socket) for _ in range(BACKLOG)]
    with server.client(timeout=0.05) as client:
        for _ in range(3):
            with pytest.raises(TimedOut):
                client.ping()
    for sock in waiting:
        sock.close()


def test_a_server_that_is_suspended_can_be_killed_over_ipc(serve: Serve, short_path: pathlib.Path) -> None:
    server = serve(socket=f"ipc://{short_path / 'x.zmq'}").suspend()
    with server.client(timeout=0.05) as client:
        assert client.stop(kill_after=0.05)["outcome"] == "killed"
    assert server.wait() == -signal.SIGKILL


def test_a_client_that_never_reads_does_not_keep_a_reload_from_its_end(
    serve: Serve, short_path: pathlib.Path, program: Program
) -> None:
    site = f"ipc://{short_path / 'x.zmq'}"
    server = serve(socket=site, cwd=program.directory)
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger, sock.rcvhwm = 0, 1
        sock.connect(site)
        for number in range(40):
            sock.send(request("greet", number, name="x" * 900, times=1000))
        until(lambda: server.status()["requests"]["in_flight"] == 0, "answered")
        assert server.reload()["generation"] == 2
        assert server.status()["pid"] == server.pid


def test_a_message_that_comes_while_the_socket_is_handed_over_is_rejected_and_not_handled(peer: Peer) -> None:
    """What is flushed to a slow client then takes turns in which messages are received, too."""
    with peer.raw() as slow, peer.raw() as late:
        late.send(request("echo", 1, text="x"))
        assert late.receive()["result"] == "x"
        slow.send(*(request("big", n, size=MAX_FRAME - 100) for n in range(64)))
        router = router_of(peer)
        stalled = lambda: any(time.monotonic() - client._moved > 0.3 for client in tuple(router._blocked))  # noqa: E731
        until(stalled, "no buffer has room for the slow client")
        peer.server.end_thread()
        late.send(request("hang", 2))
        until(lambda: int(router._router.get(zmq.EVENTS)) & zmq.POLLIN, "the message is there")
        Handover({"controls": peer.server.export_state()}).close_rest()
        assert late.receive()["error"]["message"] == ServerReloaded.before("hang").message
    until(lambda: peer.pool.unfinished == 0, "nothing hangs")
