"""A server that serves from one process: its signals, and its replacement in place."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from harness import TIMEOUT, Pending, Program, Serve, first_quick, read_all, until
from servers import SERVERS, Row, all_rows, alone, each_mechanism

from flask_ctl import CommandError


def keeping(row: Row) -> bool:
    """Whether it serves from one process, and keeps connections."""
    return alone(row) and row.keeps_alive


@all_rows(lambda row: alone(row) and not row.reloader)
@pytest.mark.parametrize("signum", first_quick([signal.SIGTERM, signal.SIGINT]), ids=lambda signum: signum.name)
def test_a_signal_drains_like_a_stop(start: Serve, row: Row, signum: signal.Signals) -> None:
    # The tests themselves may run where it is ignored, as in a script's background job.
    server = start(row, preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL))
    held = server.begin("/hold/a")
    os.kill(server.pid, signum)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    assert server.status()["stopping"]["by"] == {"signal": signum.name}
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0
    assert server.said(*row.says) == [*row.says]


@each_mechanism(alone)
def test_a_signal_that_the_kernel_gives_to_another_thread_is_heard(start: Serve, row: Row) -> None:
    server = start(row)
    another = next(int(name) for name in os.listdir(f"/proc/{server.pid}/task") if int(name) != server.pid)
    ctypes.CDLL(None).tgkill(server.pid, another, signal.SIGTERM)
    assert server.wait() == 0


def test_a_signal_that_the_main_thread_misses_while_it_answers_a_request_is_heard(start: Serve) -> None:
    server = start(SERVERS["app.run unthreaded"])
    held = server.begin("/hold/a")
    another = next(int(name) for name in os.listdir(f"/proc/{server.pid}/task") if int(name) != server.pid)
    ctypes.CDLL(None).tgkill(server.pid, another, signal.SIGTERM)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


@each_mechanism(alone)
def test_a_reload_that_does_not_come_to_an_end_is_given_up(start: Serve, row: Row) -> None:
    server = start(row)
    held = server.begin("/hold/a")
    with server.client() as client, pytest.raises(CommandError, match="the old code still serves"):
        client.reload(grace=0.1)
    with kept(server.address) if row.keeps_alive else contextlib.nullcontext():
        """Connections are kept again."""
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.status()["generation"] == 1


@contextlib.contextmanager
def kept(address: tuple[str, int]) -> Iterator[HTTPConnection]:
    """A connection that has had an answer, and is open."""
    connection = HTTPConnection(*address, timeout=TIMEOUT)
    with contextlib.closing(connection):
        assert ask(connection, "/version") == b"old"
        assert connection.sock is not None, "the server has not kept it"
        yield connection


def ask(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200
    return response.read()


@each_mechanism(keeping)
def test_answers_during_a_reload_are_the_last_of_their_connections(start: Serve, program: Program, row: Row) -> None:
    server = start(row)
    address = server.address
    with kept(address) as connection:
        before = server.status()["requests"]["total"]
        connection.request("GET", "/hold/a")
        until(lambda: server.status()["requests"]["total"] > before, "in flight")
        seen: list[Any] = []
        reload = Pending.call(lambda: server.reload(on_progress=seen.append))
        until(lambda: any(progress["phase"] == "drain" for progress in seen), "the drain")
        server.release("a")
        response = connection.getresponse()
        assert response.getheader("Connection") == "close"
        assert response.read() == b"held a"
    assert reload.result()["generation"] == 2


@each_mechanism(keeping)
def test_idle_connections_go_on_with_the_new_code(start: Serve, program: Program, row: Row) -> None:
    server = start(row)
    address = server.address
    with kept(address) as idle, socket.create_connection(address, timeout=TIMEOUT) as silent:
        program.edit("new")
        server.reload()
        assert ask(idle, "/version") == b"new"
        silent.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(silent).endswith(b"new")
