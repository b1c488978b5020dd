"""Addresses that lead to something else: what is there is said at once, and how it has to be written."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import TIMEOUT, Done, Serve, Server, raw, read_all, run_cli

from flask_ctl import ConfigurationError, ControlClient, RemoteProtocolError, TimedOut, WrongScheme
from flask_ctl.system.addresses import default_path

COMMANDS = [["status"], ["ping"], ["ping", "--wait", "30"], ["stop"], ["reload"], ["look"], ["call", "look"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_zeromq_address_at_a_plain_socket_is_told_with_the_right_one(shared: Server, words: list[str]) -> None:
    done = run_cli(*words, "--socket", f"ipc://{shared.socket}")
    assert (done.returncode, done.stdout) == (8, "")
    right = f"Error: ipc://{shared.socket} is a plain Unix socket: its address is {shared.socket}\n"
    assert done.stderr.endswith(right)
    assert shared.status()["state"] == "running"


def test_a_plain_path_at_a_zeromq_socket_is_told_with_the_right_address(serve: Serve, short_path: pathlib.Path) -> None:
    path = short_path / "a.zmq"
    server = serve(socket=f"ipc://{path}")
    for words in COMMANDS:
        done = run_cli(*words, "--socket", str(path))
        assert (done.returncode, done.stdout) == (8, ""), words
        assert done.stderr.endswith(f"Error: {path} is a socket of ZeroMQ: its address is ipc://{path}\n"), words
        assert server.status()["state"] == "running", words


def test_the_right_address_is_in_the_data(shared: Server) -> None:
    with ControlClient(f"ipc://{shared.socket}") as client, pytest.raises(WrongScheme) as caught:
        client.status(timeout=TIMEOUT)
    assert isinstance(caught.value, RemoteProtocolError)
    assert caught.value.data == {"address": shared.socket}
    told = json.loads(run_cli("status", "--json", "--socket", f"ipc://{shared.socket}").stdout)
    assert told["error"]["data"] == {"address": shared.socket}
    assert told["exit"] == 8


def test_a_plain_socket_ends_the_connection_of_a_zeromq_client(shared: Server) -> None:
    with raw(shared.socket) as sock:
        sock.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f")
        assert b"does not speak ZeroMQ" in read_all(sock)
    with raw(shared.socket) as sock:
        sock.sendall(b"\xff\0\0\0\n")
        assert b"can't read the command" in read_all(sock)


@pytest.fixture
def answering(short_path: pathlib.Path) -> Iterator[Callable[[bytes], str]]:
    """A socket where somebody says the same to everybody, or nothing at all."""
    path = str(short_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        kept = []

        def serve(said: bytes) -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if said:
                    # Who has heard enough is gone already.
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(said)

        def start(said: bytes) -> str:
            thread = threading.Thread(target=serve, args=(said,), name="somebody else")
            thread.start()
            threads.append(thread)
            return path

        threads: list[threading.Thread] = []
        yield start
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(TIMEOUT)
        for connection in kept:
            connection.close()


def test_a_zeromq_server_that_has_the_question_before_it_greets_is_known_all_the_same(short_path: pathlib.Path) -> None:
    """libzmq ends such a connection without a word; only who says nothing is greeted."""
    path = str(short_path / "a.zmq")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as first:
                first.recv(65536)
            with listener.accept()[0] as second:
                second.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f")

        thread = threading.Thread(target=serve, name="a server of ZeroMQ")
        thread.start()
        with ControlClient(path) as client, pytest.raises(WrongScheme):
            client.status(timeout=TIMEOUT)
        thread.join(TIMEOUT)


def test_what_is_neither_is_not_given_an_address(answering: Callable[[bytes], str]) -> None:
    path = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with ControlClient(f"ipc://{path}") as client, pytest.raises(RemoteProtocolError, match="does not speak") as caught:
        client.status(timeout=TIMEOUT)
    assert not isinstance(caught.value, WrongScheme)


def test_who_says_nothing_may_be_a_server_that_hangs(answering: Callable[[bytes], str]) -> None:
    path = answering(b"")
    with ControlClient(f"ipc://{path}") as client, pytest.raises(TimedOut):
        client.status(timeout=0.5)


def test_a_suspended_server_of_zeromq_is_still_there(serve: Serve, short_path: pathlib.Path) -> None:
    server = serve(socket=f"ipc://{short_path / 'a.zmq'}").suspend()
    with server.client() as client, pytest.raises(TimedOut):
        client.status(timeout=1.0)


# No sockets


@pytest.mark.parametrize("scheme", ["", "unix:", "ipc://"])
@pytest.mark.parametrize("kind", ["a regular file", "a directory", "something else"])
def test_what_is_no_socket_is_a_wrong_address(short_path: pathlib.Path, scheme: str, kind: str) -> None:
    path = short_path / "app"
    make: dict[str, Callable[[], Any]] = {
        "a regular file": path.touch,
        "a directory": path.mkdir,
        "something else": lambda: os.mkfifo(path),
    }
    make[kind]()
    for words in (
        ["status"],
        ["stop"],
        ["stop", "--missing-ok"],
        ["stop", "--kill-after", "1"],
        ["ping", "--wait", "30"],
    ):
        done = run_cli(*words, "--socket", f"{scheme}{path}")
        assert (done.returncode, done.stdout) == (2, ""), words
        assert f"{path} is {kind}, and no socket" in done.stderr
    assert path.exists()


def test_a_path_below_a_file_is_no_file(short_path: pathlib.Path) -> None:
    (short_path / "file").touch()
    with ControlClient(short_path / "file" / "app.sock") as client, pytest.raises(Exception, match="no such socket"):
        client.status()
    with ControlClient(short_path / "file") as client, pytest.raises(ConfigurationError):
        client.status()


# An app that can't be loaded

APP = """
from flask import Flask
from flask_ctl import Control
app = Flask("shop")
Control(app)
if __name__ == "__main__":
    app.run(port=0)
"""

BROKEN = {
    "def f(:": "SyntaxError: ",
    "import no_such_module_at_all": "ModuleNotFoundError: No module named 'no_such_module_at_all'",
    "1 / 0": "ZeroDivisionError: division by zero",
    "raise SystemExit(3)": "SystemExit: 3",
    'raise RuntimeError("first\\nsecond")': "RuntimeError: first",
    "raise RuntimeError": "RuntimeError",
}


def flask_ctl(*words: str, cwd: pathlib.Path) -> Done:
    command = [sys.executable, "-m", "flask", "--app", "shop", "ctl", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.mark.full
def test_the_running_instance_of_an_app_whose_source_is_broken_is_found(serve: Serve, short_path: pathlib.Path) -> None:
    directory = short_path.resolve() / "shop"
    directory.mkdir()
    (directory / "shop.py").write_text(APP)
    server = serve(command=[sys.executable, "shop.py"], cwd=directory, ready=False, env={"FLASK_CTL_SOCKET": ""})
    server.socket = default_path("shop", str(directory))
    server.ready()
    for code, error in BROKEN.items():
        (directory / "shop.py").write_text(code)
        done = flask_ctl("status", cwd=directory)
        assert done.returncode == 0, (code, done.stderr, server.process.poll())
        said, using = done.stderr.splitlines()
        assert said.startswith(f"the app can't be imported ({error}")
        assert using == f"using {server.socket}"
        assert f"pid {server.pid}" in done.stdout
    assert flask_ctl("stop", "--quiet", cwd=directory).stderr == ""
    assert server.wait() == 0
    done = flask_ctl("status", cwd=directory)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_no_app_at_all_is_wrong_usage(tmp_path: pathlib.Path) -> None:
    done = flask_ctl("status", cwd=tmp_path)
    assert done.returncode == 2
    assert "Could not import 'shop'" in done.stderr
