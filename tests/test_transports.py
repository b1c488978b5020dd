"""One contract for every transport: what a control server owes its clients, well-behaved or not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest
from harness import TIMEOUT, read_all, until

from flask_ctl import ControlClient
from flask_ctl.commands import CommandRegistry, command_from
from flask_ctl.dispatcher import Call, Dispatcher
from flask_ctl.guard import Guard
from flask_ctl.limits import MAX_CONNECTIONS, MAX_PENDING, MAX_QUEUE
from flask_ctl.pool import Pool
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.server import ControlServer
from flask_ctl.transports.memory import MemoryListener
from flask_ctl.transports.unix import UnixListener


class Peer:
    """A control server on one transport, and ways to talk to it."""

    def __init__(self, listener, connect, target, guard):
        self.gate = threading.Event()
        self.pool = Pool(lambda: None, MAX_QUEUE)
        self.server = ControlServer()
        self.connect, self.target = connect, target
        registry = CommandRegistry(map(command_from, (self.echo, self.hang, self.big)))
        registry.add(command_from(self.ping, builtin=True))
        submit = lambda command, arguments: self.pool.submit(lambda: command.function(**arguments))  # noqa: E731
        self.server.start([(listener, Dispatcher(registry, submit, guard))])

    def ping(self, call: Call) -> dict:
        return {"protocol": 1, "pong": True}

    def echo(self, text: str) -> str:
        return text

    def hang(self) -> str:
        self.gate.wait()
        return "released"

    def big(self, size: int) -> str:
        return "x" * size

    @contextlib.contextmanager
    def raw(self):
        with contextlib.closing(self.connect()) as sock:
            sock.settimeout(TIMEOUT)
            yield sock

    def client(self):
        return ControlClient(self.target)

    def answers(self):
        with self.client() as client:
            return client.ping()["pong"]

    def close(self):
        self.gate.set()
        self.server.close()
        self.pool.close()


def _unix(path):
    def connect():
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return sock

    guard = Guard()
    return Peer(UnixListener(str(path), guard), connect, path, guard)


def _memory(_path):
    guard = Guard()
    listener = MemoryListener(guard)
    return Peer(listener, listener.connect, listener, guard)


@pytest.fixture(params=[_unix, _memory], ids=["unix", "memory"])
def peer(request, short_path):
    peer = request.param(short_path / "x.sock")
    yield peer
    peer.close()


def request(method, id=1, **params):
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": id}).encode() + b"\n"


def lines(sock, count):
    """The next so many messages."""
    received = b""
    while received.count(b"\n") < count:
        data = sock.recv(65536)
        assert data, f"closed after {received!r}"
        received += data
    return [json.loads(line) for line in received.splitlines()]


def error_of(sock):
    return lines(sock, 1)[0]["error"]["code"]


def test_a_command_is_answered(peer):
    with peer.client() as client:
        assert client.call("echo", text="hello") == "hello"


def test_a_connection_is_kept_for_any_number_of_commands(peer):
    with peer.client() as client:
        assert [client.call("echo", text=str(n)) for n in range(100)] == [str(n) for n in range(100)]


def test_commands_sent_at_once_are_all_answered(peer):
    with peer.raw() as sock:
        sock.sendall(b"".join(request("echo", n, text=str(n)) for n in range(500)))
        assert {answer["id"] for answer in lines(sock, 500)} == set(range(500))


def test_a_batch_is_answered_as_one(peer):
    with peer.raw() as sock:
        sock.sendall(b"[" + request("ping", 1).strip() + b"," + request("echo", 2, text="x").strip() + b"]\n")
        assert [answer["id"] for answer in lines(sock, 1)[0]] == [1, 2]


def test_a_notification_is_not_answered(peer):
    with peer.raw() as sock:
        sock.sendall(b'{"jsonrpc":"2.0","method":"ping"}\n' + request("echo", 7, text="x"))
        assert lines(sock, 1)[0]["id"] == 7


@pytest.mark.parametrize("size", [1, 65536, MAX_FRAME - 100])
def test_big_results_arrive_whole(peer, size):
    with peer.client() as client:
        assert client.call("big", size=size) == "x" * size


def test_a_result_over_the_limit_is_an_error(peer):
    with peer.raw() as sock:
        sock.sendall(request("big", size=MAX_FRAME))
        assert error_of(sock) == -32603


@pytest.mark.parametrize(
    ("garbage", "code"),
    [
        (b"{nonsense\n", -32700),
        (b'{"jsonrpc":"2.0","method":"\xff"}\n', -32700),
        (b"[" * 100_000 + b"\n", -32700),
        (b"[]\n", -32600),
        (b'{"jsonrpc":"1.0","method":"ping","id":1}\n', -32600),
        (b'{"jsonrpc":"2.0","method":5,"id":1}\n', -32600),
        (b'{"jsonrpc":"2.0","method":"nope","id":1}\n', -32601),
        (b'{"jsonrpc":"2.0","method":"echo","id":1}\n', -32602),
        (b'{"jsonrpc":"2.0","method":"echo","params":{"text":5},"id":1}\n', -32602),
    ],
    ids=["not JSON", "not UTF-8", "deep", "empty batch", "version", "method", "unknown", "missing", "wrong type"],
)
def test_garbage_gets_its_error_and_the_connection_lives(peer, garbage, code):
    with peer.raw() as sock:
        sock.sendall(garbage)
        assert error_of(sock) == code
        sock.sendall(request("echo", 2, text="still here"))
        assert lines(sock, 1)[0]["result"] == "still here"


def test_a_message_that_is_too_long_is_refused_and_dropped(peer):
    with peer.raw() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"{" + b"x" * (2 * MAX_FRAME))
    with peer.raw() as sock:
        sock.sendall(b"{" + b"x" * MAX_FRAME)
        assert json.loads(read_all(sock))["error"]["code"] == -32600
    assert peer.answers()


def test_half_a_line_and_then_silence_holds_up_nobody(peer):
    with peer.raw() as sock:
        sock.sendall(request("echo", text="x")[:10])
        assert peer.answers()


def test_half_a_line_that_never_ends_is_refused_in_time(peer, monkeypatch):
    """Looked at every TICK."""
    monkeypatch.setattr("flask_ctl.transports.connection.LINE_TIMEOUT", 0.0)
    with peer.raw() as sock:
        sock.sendall(b"{")
        assert json.loads(read_all(sock))["error"]["code"] == -32600


def test_a_half_closed_client_gets_its_pending_answers(peer):
    with peer.raw() as sock:
        sock.sendall(request("hang"))
        sock.shutdown(socket.SHUT_WR)
        peer.gate.set()
        assert json.loads(read_all(sock))["result"] == "released"


def test_the_last_line_needs_no_end(peer):
    with peer.raw() as sock:
        sock.sendall(request("echo", text="x").strip())
        sock.shutdown(socket.SHUT_WR)
        assert json.loads(read_all(sock))["result"] == "x"


def test_a_plain_command_is_answered_in_text_and_closed(peer):
    with peer.raw() as sock:
        sock.sendall(b"echo text='a b'\r\n")
        assert read_all(sock) == b"a b\n"


def test_an_http_request_gets_an_error_and_is_closed(peer):
    with peer.raw() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(sock).startswith(b"error: ")


def test_commands_that_hang_lock_out_nobody(peer):
    with peer.raw() as sock:
        sock.sendall(b"".join(request("hang", n) for n in range(8)))
        assert peer.answers()
        peer.gate.set()
        assert {answer["result"] for answer in lines(sock, 8)} == {"released"}


def test_more_commands_than_may_be_pending_are_read_later(peer):
    with peer.raw() as sock:
        sock.sendall(b"".join(request("hang", n) for n in range(2 * MAX_PENDING)))
        assert peer.answers()
        assert peer.pool.unfinished <= MAX_PENDING
        peer.gate.set()
        assert len(lines(sock, 2 * MAX_PENDING)) == 2 * MAX_PENDING


def test_commands_over_the_pools_limit_are_refused(peer):
    with peer.raw() as one, peer.raw() as other:
        one.sendall(b"".join(request("hang", n) for n in range(MAX_PENDING)))
        until(lambda: peer.pool.unfinished == MAX_PENDING, "all are waiting")
        other.sendall(b"".join(request("hang", n) for n in range(8)))
        refused = [answer["error"]["code"] for answer in lines(other, 4)]
        assert refused == [-32002] * 4
        peer.gate.set()


def test_a_client_that_never_reads_holds_up_nobody_and_fills_nothing(peer):
    with peer.raw() as sock:
        sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 * MAX_FRAME:
                sent += sock.send(request("nope"))
        assert sent < 64 * MAX_FRAME, "it reads without end what it can't answer"
        assert peer.answers()


def test_two_hundred_idle_clients_lock_out_nobody(peer):
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(peer.raw())
        assert peer.answers()


def test_over_the_limit_the_one_idle_longest_makes_room(peer):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(peer.raw())
        first.sendall(request("echo", text="x"))
        lines(first, 1)
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(peer.raw())
        assert peer.answers()
        assert read_all(first) == b""


def test_a_client_that_is_gone_before_its_answer_is_forgotten(peer):
    with peer.raw() as sock:
        sock.sendall(request("hang"))
        until(lambda: peer.pool.unfinished == 1, "it hangs")
    peer.gate.set()
    assert peer.answers()


def test_a_failure_of_the_control_thread_is_logged_counted_and_mended(peer, caplog):
    class Broken(Exception):
        pass

    def fail():
        raise Broken

    peer.server.call_soon(fail)
    until(lambda: peer.server.restarts == 1, "a restart")
    assert peer.answers()
    assert "the control thread failed" in caplog.text


def test_closing_twice_is_fine(peer):
    peer.server.close()
    peer.server.close()
