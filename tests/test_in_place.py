"""A server that serves from one process: its signals, and its replacement in place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from http.client import HTTPConnection

import pytest
from harness import TIMEOUT, Pending, get, read_all, until
from servers import ALONE, SERVERS

from flask_ctl import CommandError

KEEPING = [name for name in ALONE if SERVERS[name].keeps_alive]


@pytest.fixture(params=ALONE)
def row(request):
    return SERVERS[request.param]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_signal_drains_like_a_stop(start, row, signum):
    # The tests themselves may run where it is ignored, as in a script's background job.
    server = start(row, preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL))
    held = server.begin("/hold/a")
    os.kill(server.pid, signum)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    assert server.status()["stopping"]["by"] == {"signal": signum.name}
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0
    assert server.lines[-3:] == ["on_stop", "after run", "atexit"]


def test_a_request_in_flight_is_answered_by_the_old_code_and_holds_up_no_visitor(start, program, row):
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    program.edit("new")
    reload = Pending.call(server.reload)
    until(lambda: server.status()["state"] == "reloading", "reloading")
    assert get(address, "/version") == (200, b"old")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert reload.result()["generation"] == 2
    assert get(address, "/version") == (200, b"new")


def test_a_reload_that_does_not_come_to_an_end_is_given_up(start, row):
    server = start(row)
    held = server.begin("/hold/a")
    with server.client() as client, pytest.raises(CommandError, match="the old code serves on"):
        client.reload(grace=0.1)
    with kept(server.address) if row.keeps_alive else contextlib.nullcontext():
        """Connections are kept again."""
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.status()["generation"] == 1


@contextlib.contextmanager
def kept(address):
    """A connection that has had an answer, and is open."""
    connection = HTTPConnection(*address, timeout=TIMEOUT)
    with contextlib.closing(connection):
        assert ask(connection, "/version") == b"old"
        assert connection.sock is not None, "the server has not kept it"
        yield connection


def ask(connection, path):
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200
    return response.read()


@pytest.mark.parametrize("name", KEEPING)
def test_answers_during_a_reload_are_the_last_of_their_connections(start, program, name):
    server = start(SERVERS[name])
    address = server.address
    with kept(address) as connection:
        before = server.status()["requests"]["total"]
        connection.request("GET", "/hold/a")
        until(lambda: server.status()["requests"]["total"] > before, "in flight")
        seen = []
        reload = Pending.call(lambda: server.reload(on_progress=seen.append))
        until(lambda: any(progress["phase"] == "drain" for progress in seen), "the drain")
        server.release("a")
        response = connection.getresponse()
        assert response.getheader("Connection") == "close"
        assert response.read() == b"held a"
    assert reload.result()["generation"] == 2


@pytest.mark.parametrize("name", KEEPING)
def test_idle_connections_go_on_with_the_new_code(start, program, name):
    server = start(SERVERS[name])
    address = server.address
    with kept(address) as idle, socket.create_connection(address, timeout=TIMEOUT) as silent:
        program.edit("new")
        server.reload()
        assert ask(idle, "/version") == b"new"
        silent.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(silent).endswith(b"new")


def test_under_load_no_answer_is_older_than_one_before(start, program, row):
    server = start(row)
    address = server.address
    stop = []
    loads = [Pending.call(lambda keep=keep: ask_until(address, keep, stop)) for keep in (True, False)]
    try:
        for number in range(3):
            program.edit(f"v{number}")
            server.reload()
    finally:
        stop.append(True)
        versions = [load.result() for load in loads]
    for seen in versions:
        numbers = [int(text[1:]) for text in seen if text != "old"]
        assert numbers == sorted(numbers), "an answer by code that had been replaced"
        assert numbers[-1] >= 1


def ask_until(address, keep_alive, stop):
    """The versions that answered."""
    versions = []
    while not stop:
        with contextlib.closing(HTTPConnection(*address, timeout=TIMEOUT)) as connection:
            connection.connect()
            while connection.sock is not None and not stop:
                connection.request("GET", "/version", headers={} if keep_alive else {"Connection": "close"})
                response = connection.getresponse()
                versions.append(response.read().decode())
                assert response.status == 200
                if not keep_alive:
                    break
    return versions
