"""What an answer costs beside a raw echo of as many bytes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
from collections.abc import Callable

import zmq

from benchmarks.measuring import Figure, compare, median_time
from benchmarks.running import PROGRAMS, Program, controlled, one_processor, scratch_directory
from flask_ctl import ControlClient

ROUNDS = 15


def kept(calls: int) -> list[Figure]:
    """`status` and `ping` on a kept Unix connection."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_processor())
        scratch = stack.enter_context(scratch_directory())
        client, _ = controlled(stack, scratch)
        size = _size(client.status())
        sock = stack.enter_context(_connected(_echo(stack, scratch)))
        status, ping = median_time(calls, client.status), median_time(calls, client.ping)
        ours = compare(ROUNDS, status, median_time(calls, _round_trip(sock, size)))
        pong = compare(ROUNDS, ping, median_time(calls, _round_trip(sock, _size(client.ping()))))
    return [
        Figure.ratio(
            "`status` on a kept Unix connection",
            f"raw echo of {size} bytes",
            ours,
            4,
            "a third of the time is JSON, which both sides read and write; the rest is Python that checks a"
            " request's form, role and parameters, and gathers the answer. With orjson in its place 6.6 × was measured,"
            " and 4.5 × for `ping`: not enough to have each app depend on one more native package.",
        ),
        Figure.ratio("`ping` on a kept Unix connection", "raw echo of as many bytes", pong),
    ]


def one_shot(calls: int) -> list[Figure]:
    """Connect, ask, read the answer, close."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_processor())
        scratch = stack.enter_context(scratch_directory())
        kept_client, _ = controlled(stack, scratch)
        address, size = kept_client.endpoint, _size(kept_client.ping())
        path = _echo(stack, scratch)

        def ours() -> None:
            with ControlClient(address) as client:
                client.ping()

        def theirs() -> None:
            with _connected(path) as sock:
                _round_trip(sock, size)()

        compared = compare(ROUNDS, median_time(calls, ours), median_time(calls, theirs))
    return [
        Figure.ratio(
            "one-shot `ping`: connect, ask, close",
            f"raw echo of {size} bytes, with connect and close",
            compared,
            3,
            "the client checks who owns the socket, its directory and the listening process, the server the user and"
            " groups of the client, and both build what a longer connection needs.",
        )
    ]


def ipc(calls: int) -> list[Figure]:
    """`status` over ZeroMQ."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_processor())
        scratch = stack.enter_context(scratch_directory())
        client, _ = controlled(stack, scratch, f"ipc://{scratch}/app")
        size = _size(client.status())
        compared = compare(
            ROUNDS, median_time(calls, client.status), median_time(calls, _zmq_round_trip(stack, scratch, size))
        )
    return [
        Figure.ratio(
            "`status` over ipc, kept connection",
            f"raw ROUTER and DEALER, {size} bytes",
            compared,
            2,
            "a request costs as much as over a Unix socket, and the end of a connection has to be read from libzmq's"
            " monitor. With orjson 3.1 × was measured.",
        )
    ]


def spinning(calls: int) -> list[Figure]:
    """`status` while four threads of the same process compute, beside a thread that blocks in recv."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        path = str(scratch / "echo")
        client, server = controlled(stack, scratch, None, path, program="spinning")
        server.tell(b"\n")
        size = _size(client.status())
        sock = stack.enter_context(_connected(path))
        compared = compare(ROUNDS, median_time(calls, client.status), median_time(calls, _round_trip(sock, size)))
    return [
        Figure.ratio(
            "`status` while four threads spin",
            f"blocking echo thread in the same process, {size} bytes",
            compared,
            0.4,
            "the control thread waits once for its turn with the GIL, the echo twice, after `recv` and after `send`;"
            " less than half would need a shorter switch interval for the whole program, also while nobody asks.",
        )
    ]


def _size(answer: dict[str, object]) -> int:
    """The bytes of a response with this result."""
    return len(json.dumps({"jsonrpc": "2.0", "id": 1000, "result": answer}, separators=(",", ":"))) + 1


def _echo(stack: contextlib.ExitStack, scratch: pathlib.Path) -> str:
    """The path of a process that echoes."""
    path = str(scratch / "echo")
    stack.enter_context(Program(PROGRAMS, "echo", path, log=scratch / "echo.log")).wait_until_ready()
    return path


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    return sock


def _round_trip(sock: socket.socket, size: int) -> Callable[[], None]:
    payload = b"x" * size

    def round_trip() -> None:
        sock.sendall(payload)
        missing = size
        while missing:
            missing -= len(sock.recv(65536))

    return round_trip


def _zmq_round_trip(stack: contextlib.ExitStack, scratch: pathlib.Path, size: int) -> Callable[[], None]:
    address = f"ipc://{scratch}/echo"
    stack.enter_context(Program(PROGRAMS, "zmq_echo", address, log=scratch / "echo.log")).wait_until_ready()
    context = stack.enter_context(zmq.Context())
    dealer = stack.enter_context(context.socket(zmq.DEALER))
    dealer.connect(address)
    payload = b"x" * size

    def round_trip() -> None:
        dealer.send(payload)
        dealer.recv()

    return round_trip
