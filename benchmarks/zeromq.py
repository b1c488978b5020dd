"""What ZeroMQ costs: `status` beside a raw echo, and CURVE from a new process."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import socket
import sys
from collections.abc import Callable
from typing import Any

import zmq

from benchmarks.measuring import Row, each, medians
from benchmarks.running import PROGRAMS, Program, controlled, one_processor, process, scratch_directory
from flask_ctl import ControlClient, write_key_pair


def zeromq(quick: bool) -> list[Row]:
    """`status` over ipc on a kept connection; CURVE's handshake, and `status` with it from a new process."""
    return [*_kept(quick), *_new(quick)]


def _kept(quick: bool) -> list[Row]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_processor())
        scratch = stack.enter_context(scratch_directory())
        client, _ = controlled(stack, scratch, f"ipc://{scratch}/app")
        echo = _echo(stack, scratch)
        measured: list[Callable[[], object]] = [client.status, client.ping, echo]
        ours, pong, theirs = medians(10 if quick else 60, *(each(100, one) for one in measured))
    return [
        Row.compare("status over ipc, kept connection", ours, "raw ROUTER and DEALER, 64 bytes", theirs, 2),
        Row.compare("ping over ipc, kept connection", pong, "raw ROUTER and DEALER, 64 bytes", theirs),
    ]


def _new(quick: bool) -> list[Row]:
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        keys = _keys(scratch)
        curve, _ = controlled(stack, scratch, f"tcp://127.0.0.1:{_free_port()}", **keys)
        (scratch / "plain").mkdir()
        unix, _ = controlled(stack, scratch / "plain")
        tool = str(pathlib.Path(sys.executable).parent / "flask-ctl")
        trust = ("--client-key", keys["client_key"], "--server-key", keys["server_key"])
        measured = [
            _connection(curve.endpoint, client_key=keys["client_key"], server_key=keys["server_key"]),
            _connection(unix.endpoint),
            process(scratch, tool, "status", "--socket", curve.endpoint, *trust),
            process(scratch, tool, "status", "--socket", unix.endpoint),
        ]
        for one in measured:
            one()
        handshake, connect, ours, theirs = medians(15 if quick else 40, *(each(1, one) for one in measured))
    return [
        Row.compare("connect and status, CURVE over TCP", handshake, "Unix socket", connect),
        Row.compare("flask-ctl status, CURVE, whole process", ours, "Unix socket", theirs),
    ]


def _echo(stack: contextlib.ExitStack, scratch: pathlib.Path) -> Callable[[], None]:
    address = f"ipc://{scratch}/echo"
    server = stack.enter_context(Program(PROGRAMS, "zmq_echo", address, log=scratch / "echo.log"))
    server.wait_until_ready()
    context = stack.enter_context(zmq.Context())
    dealer = stack.enter_context(context.socket(zmq.DEALER))
    dealer.connect(address)
    payload = b"x" * 64

    def round_trip() -> None:
        dealer.send(payload)
        dealer.recv()

    return round_trip


def _connection(address: str, **keys: Any) -> Callable[[], object]:
    def connect() -> None:
        with ControlClient(address, **keys) as client:
            client.status()

    return connect


def _keys(scratch: pathlib.Path) -> dict[str, str]:
    """The settings of both sides, with keys of their own."""
    server, client, clients = scratch / "server.key", scratch / "client.key", scratch / "clients"
    public = write_key_pair(str(server), "server")
    clients.mkdir(mode=0o700)
    shutil.copy(write_key_pair(str(client), "client"), clients)
    return {
        "curve_key": str(server),
        "curve_clients": str(clients),
        "client_key": str(client),
        "server_key": public,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
