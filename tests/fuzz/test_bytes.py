"""Clients of every kind at once, against one server: whatever they send, and however it is torn, the rules hold.

A few examples by default; as many as FUZZ_EXAMPLES says, by `make fuzz` ten thousand.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import socket
import tempfile
import threading
from typing import Any

import pytest
from harness import until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from wires import STREAMS, Peer, ZmqTalk, ipc_wire, request

from flask_ctl.protocol.framing import FENCE

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
SHARES = {"memory": 0.3, "unix": 0.3, "ipc": 0.4}
WIRES = {**STREAMS, "ipc": ipc_wire}

MAX_CLIENTS = 6
ERROR = "an error that names no request"


def key_of(message: Any) -> Any:
    """What a message of the server answers; None for a progress notification."""
    if isinstance(message, list):
        return tuple(key_of(answer) for answer in message)
    return None if "method" in message else ("id", message["id"]) if message["id"] is not None else ERROR


class Client:
    """A connection, what it has still to send, and the answers that it is owed."""

    def __init__(self, talk: Any) -> None:
        self.talk = talk
        self.queue: collections.deque[tuple[bytes, Any]] = collections.deque()
        self.owed: collections.Counter[Any] = collections.Counter()
        self.last_id = 0
        self.over = False

    @property
    def over_frames(self) -> bool:
        return isinstance(self.talk, ZmqTalk)

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def add(self, message: bytes, *keys: Any) -> None:
        """Queue a message that is owed these answers."""
        if not self.over:
            self.queue.append((message if self.over_frames else message + b"\n", keys))

    def push(self, size: int) -> None:
        """Send so many bytes, or messages where these can't be torn."""
        while self.queue and size > 0:
            data, keys = self.queue.popleft()
            piece = data if self.over_frames else data[:size]
            if self.over_frames:
                self.talk.send(piece)
            else:
                self.talk.sock.sendall(piece)
            size -= 1 if self.over_frames else len(piece)
            if len(piece) < len(data):
                self.queue.appendleft((data[len(piece) :], keys))
            else:
                self.owed.update(keys)

    def push_all(self) -> None:
        self.push(sum(len(data) + 1 for data, _ in self.queue))

    def take(self, message: Any) -> None:
        """Check that a message is owed, once."""
        key = key_of(message)
        if key is not None:
            assert self.owed[key] > 0, f"nobody asked for {message}"
            self.owed[key] -= 1

    def receive(self, count: int) -> None:
        """So many of the answers that are owed."""
        while count > 0 and self.owed.total():
            before = self.owed.total()
            self.take(self.talk.receive())
            count -= before - self.owed.total()

    def finish(self) -> None:
        """Everything that is owed has come, and nothing else."""
        self.push_all()
        if self.over_frames:
            self.talk.send(FENCE)
            while (data := self.talk.receive_bytes()) != FENCE:
                self.take(json.loads(data))
        else:
            with contextlib.suppress(OSError):
                self.talk.sock.shutdown(socket.SHUT_WR)
            self._read_to_the_end()
        assert not +self.owed, f"never answered: {+self.owed}"

    def _read_to_the_end(self) -> None:
        data = self.talk._received
        while piece := self.talk.sock.recv(65536):
            data += piece
        for line in data.splitlines():
            if line.startswith((b"{", b"[")):
                self.take(json.loads(line))
            else:
                self.take({"id": line.decode()})


texts = st.text(alphabet='a"\\{[\n\r\0\u00fc\u2028\U0001f600', max_size=30) | st.text(
    alphabet="x", min_size=1000, max_size=3000
)
garbage = st.sampled_from(
    [b"{nonsense", b"{", b"[", b"[1,", b'{"jsonrpc":"2.0","method":"\xff","id":1}', b"[" * 5000, b"{" + b"x" * 5000]
) | st.binary(max_size=50).map(lambda data: b"{" + data.replace(b"\n", b"").replace(b"\r", b"") + b"\xff")
invalid = st.sampled_from(
    [b"[]", b"{}", b"[1]", b'{"jsonrpc":"1.0","method":"ping"}', b'{"jsonrpc":"2.0","method":[]}']
)
sizes = st.integers(1, 40) | st.integers(1, 5000)


class Fuzz(RuleBasedStateMachine):
    """The server's bytes; a subclass says over which wire."""

    make = staticmethod(ipc_wire)

    def __init__(self) -> None:
        super().__init__()
        self.before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
        self.directory = tempfile.TemporaryDirectory(prefix="ctl-")
        self.peer = Peer(self.make(pathlib.Path(self.directory.name), 0))
        self.clients: list[Client] = []
        self.number = 0

    def pick(self, index: int) -> Client:
        return self.clients[index % len(self.clients)]

    @initialize()
    def first(self) -> None:
        self.connect()

    @precondition(lambda self: len(self.clients) < MAX_CLIENTS)
    @rule()
    def connect(self) -> None:
        self.clients.append(Client(self.peer.wire.talk()))

    @rule(index=st.integers(0), text=texts)
    def ask(self, index: int, text: str) -> None:
        client = self.pick(index)
        id = client.next_id()
        client.add(request("echo", id, text=text), ("id", id))

    @rule(index=st.integers(0), count=st.integers(0, 3))
    def ask_for_progress(self, index: int, count: int) -> None:
        client = self.pick(index)
        id = client.next_id()
        client.add(request("steps", id, count=count, _progress=True), ("id", id))

    @rule(index=st.integers(0))
    def ask_for_much(self, index: int) -> None:
        client = self.pick(index)
        id = client.next_id()
        client.add(request("big", id, size=100_000), ("id", id))

    @rule(index=st.integers(0), method=st.sampled_from(["nope", "echo", "big", "", "ping "]))
    def ask_what_is_refused(self, index: int, method: str) -> None:
        client = self.pick(index)
        id = client.next_id()
        client.add(request(method, id, wrong=1), ("id", id))

    @rule(index=st.integers(0), text=texts)
    def notify(self, index: int, text: str) -> None:
        message = json.loads(request("echo", text=text))
        del message["id"]
        self.pick(index).add(json.dumps(message).encode())

    @rule(index=st.integers(0), text=texts, count=st.integers(1, 5))
    def ask_a_batch(self, index: int, text: str, count: int) -> None:
        client = self.pick(index)
        ids = [client.next_id() for _ in range(count)]
        messages = [request("ping" if id % 2 else "echo", id, **({} if id % 2 else {"text": text})) for id in ids]
        client.add(b"[" + b",".join(messages) + b"]", tuple(("id", id) for id in ids))

    @rule(index=st.integers(0), message=garbage)
    def send_garbage(self, index: int, message: bytes) -> None:
        self.pick(index).add(message, ERROR)

    @rule(index=st.integers(0), message=invalid)
    def send_what_is_no_request(self, index: int, message: bytes) -> None:
        self.pick(index).add(message, (ERROR,) if message == b"[1]" else ERROR)

    @rule(index=st.integers(0), blank=st.sampled_from([b"", b" ", b"\r", b"\t "]))
    def send_nothing(self, index: int, blank: bytes) -> None:
        client = self.pick(index)
        if not client.over_frames:
            client.add(blank.strip(b" \t"))

    @rule(index=st.integers(0))
    def send_two_frames(self, index: int) -> None:
        client = self.pick(index)
        if client.over_frames:
            client.push_all()
            client.talk.sock.send_multipart([request("ping", client.next_id()), b"more"])
            client.owed[ERROR] += 1

    @rule(index=st.integers(0))
    def send_plain_text(self, index: int) -> None:
        """One command, and the end: what comes behind it is not looked at."""
        client = self.pick(index)
        if not client.over_frames:
            self.number += 1
            client.add(f"echo text=plain-{self.number}".encode(), ("id", f"plain-{self.number}"))
            client.over = True

    @rule(index=st.integers(0), size=sizes)
    def push(self, index: int, size: int) -> None:
        self.pick(index).push(size)

    @rule(index=st.integers(0), count=st.integers(1, 3))
    def read(self, index: int, count: int) -> None:
        client = self.pick(index)
        if not client.over:
            client.receive(count)

    @rule(index=st.integers(0), whole=st.booleans())
    def half_close(self, index: int, whole: bool) -> None:
        """The last line needs no end."""
        client = self.pick(index)
        if not client.over_frames:
            if client.queue and not whole:
                data, keys = client.queue.pop()
                client.queue.append((data.removesuffix(b"\n"), keys))
            client.push_all()
            with contextlib.suppress(OSError):
                client.talk.sock.shutdown(socket.SHUT_WR)
            client.over = True

    @precondition(lambda self: len(self.clients) > 1)
    @rule(index=st.integers(0))
    def vanish(self, index: int) -> None:
        client = self.pick(index)
        self.clients.remove(client)
        client.talk.close()

    @rule()
    def somebody_new_is_answered(self) -> None:
        assert self.peer.answers()

    def teardown(self) -> None:
        try:
            for client in self.clients:
                client.finish()
            assert self.peer.answers()
            assert self.peer.server.restarts == 0
        finally:
            for client in self.clients:
                client.talk.close()
            self.peer.close()
            self.directory.cleanup()
        until(lambda: threading.active_count() <= self.before[0], "the threads end")
        until(lambda: len(os.listdir("/proc/self/fd")) <= self.before[1], "the descriptors are closed")


@pytest.mark.parametrize("wire", WIRES)
def test_every_request_gets_its_answer_and_nothing_is_left(wire: str) -> None:
    machine = type("Fuzz", (Fuzz,), {"make": staticmethod(WIRES[wire])})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, int(EXAMPLES * SHARES[wire])),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
