"""What a client over ZeroMQ says of servers and files that are not as they should be."""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_ctl import ControlClient, RemoteProtocolError
from flask_ctl.errors import ConfigurationError
from flask_ctl.system.sockets import is_named
from flask_ctl.transports.zeromq.curve import AllowedKeys, load_public_key

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def stranger() -> Iterator[Callable[[Any], str]]:
    """Serves one answer to all who connect, and ends the connection: what to send, or RESET."""
    listener = socket.create_server(("127.0.0.1", 0))
    said: list[Any] = []

    def run() -> None:
        while True:
            try:
                sock = listener.accept()[0]
            except OSError:
                return
            with sock:
                if said[0] is RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                else:
                    sock.sendall(said[0])
                    sock.recv(1024)

    thread = threading.Thread(target=run)
    thread.start()

    def start(answer: Any) -> str:
        said.append(answer)
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RESET, "ends every connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak ZeroMQ"),
        (GREETING + b"PLAIN".ljust(20, b"\0") + bytes(32), "wants PLAIN"),
    ],
)
def test_what_listens_there_and_is_none_of_ours_is_not_said_to_be_absent(
    stranger: Callable[[Any], str], answer: bytes, reason: str
) -> None:
    with ControlClient(stranger(answer)) as client, pytest.raises(RemoteProtocolError, match=reason):
        client.ping()


def test_a_key_file_that_is_a_fifo_holds_up_nobody(short_path: pathlib.Path) -> None:
    os.mkfifo(short_path / "x.pub", 0o600)
    with pytest.raises(ConfigurationError, match="holds no CURVE key"):
        load_public_key(short_path / "x.pub")
    with pytest.raises(ConfigurationError, match="holds no CURVE key"):
        AllowedKeys(short_path)


@pytest.mark.parametrize(("kind", "host"), [(socket.SOCK_DGRAM, "127.0.0.1"), (socket.SOCK_STREAM, "127.0.0.2")])
def test_another_socket_with_the_same_port_is_not_taken_for_ours(kind: socket.SocketKind, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_INET, kind) as other:
        other.bind((host, listener.getsockname()[1]))
        assert not is_named(other, listener.getsockname())
        assert is_named(listener, listener.getsockname())
