"""What is owed over byte streams alone, where messages are lines: half ones, plain text, ends of one direction."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
from collections.abc import Iterator

import pytest
from harness import read_all
from wires import STREAMS, Peer, request

from flask_ctl import ServerReloaded
from flask_ctl.dispatch.limits import MAX_CONNECTIONS
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.system.handover import Handover


@pytest.fixture(params=STREAMS)
def peer(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Iterator[Peer]:
    peer = Peer(STREAMS[request.param](short_path, free_port))
    yield peer
    peer.close()


def test_a_line_that_is_too_long_is_refused(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.sock.sendall(b"{" + b"x" * MAX_FRAME)
        assert json.loads(read_all(talk.sock))["error"]["code"] == -32600


def test_a_message_may_be_torn_anywhere(peer: Peer) -> None:
    message = request("echo", text="grüße") + b"\n"
    with peer.raw() as talk:
        for cut in range(1, len(message)):
            talk.sock.sendall(message[:cut])
            talk.sock.sendall(message[cut:])
            assert talk.receive()["result"] == "grüße"


def test_half_a_line_and_then_silence_holds_up_nobody(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.sock.sendall(request("echo", text="x")[:10])
        assert peer.answers()


def test_half_a_line_that_never_ends_is_refused_in_time(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at every TICK."""
    monkeypatch.setattr("flask_ctl.transports.connection.LINE_TIMEOUT", 0.0)
    with peer.raw() as talk:
        talk.sock.sendall(b"{")
        assert json.loads(read_all(talk.sock))["error"]["code"] == -32600


def test_a_half_closed_client_gets_its_pending_answers(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(request("hang"))
        talk.sock.shutdown(socket.SHUT_WR)
        peer.gate.set()
        assert json.loads(read_all(talk.sock))["result"] == "released"


def test_the_last_line_needs_no_end(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.sock.sendall(request("echo", text="x"))
        talk.sock.shutdown(socket.SHUT_WR)
        assert json.loads(read_all(talk.sock))["result"] == "x"


def test_what_a_reload_leaves_unread_is_an_error_and_nothing_more_can_be_sent(peer: Peer) -> None:
    with peer.raw() as talk, peer.raw() as plain:
        talk.send(request("echo", 1, text="x"))
        assert talk.receive()["result"] == "x"
        peer.server.end_thread()
        talk.send(request("echo", 2, text="x"), request("ping", 3))
        talk.sock.sendall(b'{"half a')
        plain.send(b"ping")
        Handover({"controls": peer.server.export_state()}).close_rest()
        with pytest.raises(BrokenPipeError):
            talk.send(b" line")
        assert [talk.receive()["error"]["message"] for _ in range(2)] == [
            ServerReloaded.before(name).message for name in ("echo", "ping")
        ]
        assert talk.ended()
        assert read_all(plain.sock).decode() == f"error: {ServerReloaded.before('ping').message}\n"


def test_a_plain_command_is_answered_in_text_and_closed(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.sock.sendall(b"echo text='a b'\r\n")
        assert read_all(talk.sock) == b"a b\n"


def test_an_http_request_gets_an_error_and_is_closed(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(talk.sock).startswith(b"error: ")


def test_a_client_that_never_reads_is_not_read_from_without_end(peer: Peer) -> None:
    with peer.raw() as talk:
        sent = 0
        while sent < 64 * MAX_FRAME and talk.offer(request("nope")):
            sent += 10
        assert sent < 64 * MAX_FRAME
        assert peer.answers()


def test_over_the_limit_the_one_idle_longest_makes_room(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(peer.raw())
        first.send(request("echo", text="x"))
        first.receive()
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(peer.raw())
        assert peer.answers()
        assert first.ended()
