"""A control server of a few commands inside this process, and the ways to reach it: one for each transport."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import zmq
from harness import TIMEOUT, Keys, make_keys

from flask_ctl import ControlClient
from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.dispatcher import Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.limits import MAX_QUEUE
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.pool import Pool
from flask_ctl.dispatch.replies import Call
from flask_ctl.inspection.ring import Ring, RingStream
from flask_ctl.system.addresses import parse_address
from flask_ctl.transports.base import Listener
from flask_ctl.transports.control_thread import ControlServer
from flask_ctl.transports.factory import CurveFiles, make_listener
from flask_ctl.transports.memory import MemoryListener
from flask_ctl.transports.zeromq.curve import load_key_pair, load_public_key

RING = 1000
"""Items that the ring of a Peer holds."""

GUARD = Guard(Policy.from_config({"operate": ["key:*"]}))


def request(method: str, id: Any = 1, **params: Any) -> bytes:
    """A request as one message."""
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": id}).encode()


class StreamTalk:
    """A raw connection over a byte stream, for what no client would send; a message is a line."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT)
        self._received = b""
        self._unsent = b""

    def send(self, *messages: bytes) -> None:
        self.sock.sendall(b"".join(message + b"\n" for message in messages))

    def offer(self, message: bytes) -> bool:
        """Send as much as goes without waiting; whether something went."""
        self._unsent = self._unsent or message + b"\n"
        self.sock.setblocking(False)
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        finally:
            self.sock.settimeout(TIMEOUT)
        return True

    def receive(self) -> Any:
        """The next message. Raises EOFError if the server has ended the connection."""
        while b"\n" not in self._received:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def ended(self) -> bool:
        """Wait for the server to end the connection, which has nothing left to say."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


class ZmqTalk:
    """A raw connection over a DEALER that connects once; a message is a frame."""

    def __init__(self, sock: zmq.Socket[bytes], address: str) -> None:
        self.sock = sock
        sock.linger = 0
        sock.reconnect_ivl = 2**31 - 1
        sock.rcvhwm = sock.sndhwm = 1
        sock.sndtimeo = sock.rcvtimeo = int(TIMEOUT * 1000)
        self._monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._monitor.linger = 0
        sock.connect(address)

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.sock.send(message)

    def offer(self, *parts: bytes) -> bool:
        """Send one message without waiting; whether it went."""
        try:
            self.sock.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Any:
        """The next message. Raises EOFError if the server has ended the connection."""
        return json.loads(self.receive_bytes())

    def receive_bytes(self) -> bytes:
        ready = zmq.zmq_poll([(self.sock, zmq.POLLIN), (self._monitor, zmq.POLLIN)], int(TIMEOUT * 1000))
        assert ready, "not in time"
        try:
            return self.sock.recv(zmq.NOBLOCK)
        except zmq.Again:
            raise EOFError from None

    def ended(self) -> bool:
        """Wait for the server to end the connection."""
        return self._monitor.poll(int(TIMEOUT * 1000)) > 0

    def close(self) -> None:
        if not self.sock.closed:
            self.sock.disable_monitor()
            self._monitor.close(0)
            self.sock.close(0)


Talk = StreamTalk | ZmqTalk


class Wire:
    """A listener, and how to get to it; `options` are a client's."""

    def __init__(self, listener: Listener, target: Any, options: dict[str, Any], talk: Callable[[], Talk]) -> None:
        self.listener = listener
        self.target = target
        self.options = options
        self.talk = talk
        self.close: Callable[[], Any] = lambda: None


def unix_wire(directory: pathlib.Path, port: int) -> Wire:
    path = str(directory / "x.sock")

    def talk() -> StreamTalk:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return StreamTalk(sock)

    return Wire(_listener(path), path, {}, talk)


def memory_wire(directory: pathlib.Path, port: int) -> Wire:
    listener = MemoryListener(GUARD)
    return Wire(listener, listener, {}, lambda: StreamTalk(listener.connect()))


def ipc_wire(directory: pathlib.Path, port: int, guard: Guard = GUARD) -> Wire:
    return zmq_wire(f"ipc://{directory / 'x.zmq'}", None, guard)


def curve_wire(directory: pathlib.Path, port: int) -> Wire:
    return zmq_wire(f"tcp://127.0.0.1:{port}", make_keys(directory / "keys"))


WIRES = {"unix": unix_wire, "ipc": ipc_wire, "tcp with CURVE": curve_wire, "memory": memory_wire}
STREAMS = {"unix": unix_wire, "memory": memory_wire}
ZEROMQ = {"ipc": ipc_wire, "tcp with CURVE": curve_wire}


def _listener(address: str, guard: Guard = GUARD, curve: CurveFiles = CurveFiles()) -> Listener:  # noqa: B008
    return make_listener(parse_address(address), guard, curve)


def zmq_wire(address: str, keys: Keys | None, guard: Guard = GUARD) -> Wire:
    """ZeroMQ at any address, with CURVE if there are keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pair = keys and (*load_key_pair(keys.client), load_public_key(keys.server_public))

    def talk() -> ZmqTalk:
        sock = context.socket(zmq.DEALER)
        if pair:
            sock.curve_publickey, sock.curve_secretkey, sock.curve_serverkey = pair
        return ZmqTalk(sock, address)

    curve = CurveFiles(keys.server, str(keys.clients)) if keys else CurveFiles()
    wire = Wire(_listener(address, guard, curve), address, keys.options if keys else {}, talk)
    wire.close = context.term
    return wire


class Peer:
    """A control server on one wire, and ways to talk to it."""

    def __init__(self, wire: Wire, guard: Guard = GUARD) -> None:
        self.wire = wire
        self.gate = threading.Event()
        self.pool = Pool(lambda: None, MAX_QUEUE)
        self.server = ControlServer()
        self.registry = CommandRegistry(command_from(function) for function in (self.echo, self.hang, self.big))
        self.registry.add(command_from(self.ping, builtin=True))
        self.registry.add(command_from(self.steps, builtin=True))
        self.registry.add(command_from(self.numbers, builtin=True))
        self.registry.add(command_from(self.end_stream, builtin=True))
        self.ring = Ring(RING)
        submit = lambda command, arguments: self.pool.submit(lambda: command.function(**arguments))  # noqa: E731
        self.server.start([(wire.listener, Dispatcher(self.registry, submit, guard))])

    def ping(self, call: Call) -> dict[str, Any]:
        return {"protocol": 1, "pong": True, "pid": os.getpid(), "version": "0"}

    def steps(self, call: Call, count: int) -> int:
        """Tell of each step."""
        for step in range(count):
            if call.progress is not None:
                call.progress({"step": step})
        return count

    def numbers(
        self, call: Call, follow: bool = False, after: int | None = None, epoch: str = "", since: str = ""
    ) -> RingStream:
        """Stream what the test appends to `ring`."""
        head = {"epoch": "one", "generation": 1}
        return RingStream(self.ring, lambda n: {"time": "now", "n": n}, after=after, follow=follow, head=head)

    def end_stream(self, call: Call, subscription: int) -> bool:
        """End a stream of this connection."""
        return call.reply is not None and call.reply.connection.cancel(subscription)

    def echo(self, text: str) -> str:
        return text

    def hang(self) -> str:
        self.gate.wait()
        return "released"

    def big(self, size: int) -> str:
        return "x" * size

    @contextlib.contextmanager
    def raw(self) -> Iterator[Any]:
        with contextlib.closing(self.wire.talk()) as talk:
            yield talk

    def client(self) -> ControlClient:
        return ControlClient(self.wire.target, **self.wire.options)

    def answers(self) -> bool:
        """Whether a new client gets its answer."""
        with self.client() as client:
            return bool(client.ping(timeout=TIMEOUT)["pong"])

    def close(self) -> None:
        self.gate.set()
        self.server.close()
        self.pool.close()
        self.wire.close()
