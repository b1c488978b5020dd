"""What every HTTP server owes under control: one contract, whatever serves."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any

import psutil
import pytest
from harness import TIMEOUT, Pending, Program, Serve, Server, get, read_all, until
from manyworkers import Load, all_there, hub, hubs_of, is_alive, kill, workers
from servers import FIRSTS, REPRESENTATIVES, SERVERS, Row, all_rows, each_mechanism, reloadable, with_workers

from flask_ctl import CommandError, ReloadFailed

NO_TWICE = [name for name in REPRESENTATIVES if name != "gunicorn gevent"]
"""Each server once: its greenlets are pywsgi's, its master and workers are those of gunicorn sync."""


def begin_stop(server: Server, *arguments: str, **options: Any) -> Pending:
    """A stop under way, as it is when this returns."""
    pending = Pending.call(lambda: server.client().stop(*arguments, **options))
    until(lambda: server.status()["state"] == "stopping", "stopping")
    return pending


def ended_well(server: Server, row: Row, address: tuple[str, int]) -> bool:
    """Exit code 0; hooks and exit handlers have run, and nothing is left behind."""
    assert server.wait() == 0
    said = server.said("on_stop", "after run", "atexit")
    if row.workers:
        # A master that has loaded the app itself runs its exit handlers, too.
        assert said.count("on_stop") == row.workers
        assert not row.runs_atexit or said.count("atexit") - row.workers in (0, 1)
    else:
        assert said == [*row.says]
    return gone(server, address)


def gone(server: Server, address: tuple[str, int]) -> bool:
    assert not os.path.exists(server.socket)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return True


@all_rows(quick=FIRSTS)
def test_before_its_first_request_it_shows_itself_and_its_workers_and_when_it_is_idle_it_ends(
    start: Serve, row: Row
) -> None:
    server = start(row)
    address, status = server.address, server.status()
    assert (status["app"], status["state"]) == ("sample", "running")
    assert (status["parent"] if row.reloader else status["pid"]) == server.pid
    assert row.reloader or row.workers or status["parent"] is None
    assert status["server"]["name"] == row.name
    assert status["server"]["version"]
    assert status["server"]["listeners"] == [f"http://127.0.0.1:{address[1]}"]
    assert status["requests"] == {
        "in_flight": 0,
        "oldest": None,
        "oldest_request": None,
        "total": 0,
        "errors": 0,
    }
    shows_its_workers(server, row, status)
    assert server.get("/version") == (200, b"old")
    assert server.status()["requests"]["total"] == 1
    assert server.client().stop()["outcome"] == "drained"
    assert ended_well(server, row, address)


def shows_its_workers(server: Server, row: Row, status: dict[str, Any]) -> None:
    """And no thread of ours lives where processes are forked."""
    assert len(status["workers"]) == row.workers
    for worker in status["workers"]:
        assert psutil.Process(worker["pid"]).ppid() == server.pid
        assert (worker["state"], worker["generation"], worker["in_flight"]) == ("running", 1, 0)
        assert worker["rss"] > 0
        assert worker["last_seen"] >= 0
    assert status["process"]["rss"] >= sum(worker["rss"] for worker in status["workers"])
    if row.workers:
        master = psutil.Process(server.pid)
        if row.name != "granian":  # which forks from a master with threads of its own
            assert master.num_threads() == 1
        assert hub(server) not in {child.pid for child in master.children(recursive=True)}


@all_rows(quick=NO_TWICE)
def test_a_stop_answers_all_who_have_asked_and_closes_what_is_idle(start: Serve, row: Row) -> None:
    """In flight, streaming, slow to read, with half a request line; and silent connections hold up nobody."""
    server = start(row)
    address = server.address
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(kept(address)) if row.keeps_alive else None
        held = server.begin("/hold/a")
        stream = Pending(address, "/stream/a")
        until(lambda: server.status()["requests"]["in_flight"] == min(2, row.at_once), "as many as it can take")
        slow = stack.enter_context(slow_reader(address, "/big"))
        beginning = slow.recv(1024) if row.at_once > 2 else b""
        half = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
        half.sendall(b"GET / HT")
        silent = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
        stop = begin_stop(server)
        assert server.status()["stopping"]["by"]["pid"] == os.getpid()
        half.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
        whole = Pending.call(lambda: read_all(slow))
        server.release("a")
        assert held.result() == (200, b"held a")
        assert stream.result() == (200, b"first last")
        head, _, body = (beginning + whole.result()).partition(b"\r\n\r\n")
        assert head.split()[1] == b"200"
        assert body == b"x" * 8_000_000
        assert read_all(half).startswith(b"HTTP/1")
        result = stop.result()
        assert (result["outcome"], result["cut"]) == ("drained", 0)
        # Where the server takes an answer as a whole the big one was finished before.
        assert result["drained"] in (3, 4)
        assert row.reloader or result["pid"] == server.pid
        assert server.process.poll() == 0, "it returned before the process was gone"
        assert ends(silent)
        assert idle is None or ends(idle.sock)
    assert ended_well(server, row, address)


@contextlib.contextmanager
def slow_reader(address: tuple[str, int], path: str) -> Iterator[socket.socket]:
    """A connection that has asked, and whose answer does not fit into the buffers of the kernel."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        yield sock


@pytest.mark.parametrize("row", [SERVERS[name] for name in FIRSTS], ids=FIRSTS)
def test_under_constant_load_a_reload_and_a_stop_lose_nothing(start: Serve, program: Program, row: Row) -> None:
    server = start(row)
    address = server.address
    with Load(address, clients=1) as load, Load(address, clients=1, keep=True) as keeping:
        program.edit("new")
        assert server.reload()["generation"] == 2
        assert (load.refused, keeping.refused) == (0, 0)
        assert get(address, "/version") == (200, b"new")
        stop_under_load(server, load, keeping)
    assert row.workers or all(in_order(client.bodies) for client in (load, keeping))


def stop_under_load(server: Server, load: Load, keeping: Load) -> None:
    """Stop it while these ask it."""
    address, served = server.address, len(load.bodies)
    until(lambda: len(load.bodies) > served + 50, "load")
    assert server.client().stop()["cut"] == 0
    load.stop()
    keeping.stop()
    assert (load.lost, keeping.lost) == ([], [])
    assert server.wait() == 0
    assert gone(server, address)


def in_order(versions: list[str]) -> bool:
    """Whether no answer to a client, who asks one question at a time, is by code that had been replaced."""
    return versions == sorted(versions, key=lambda version: (version != "old", version))


@each_mechanism(quick=["gunicorn sync"])
def test_past_the_grace_the_rest_is_cut_and_said_so(start: Serve, row: Row) -> None:
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    result = server.client().stop(grace=0.1)
    assert (result["outcome"], result["cut"]) == ("forced", 1)
    with pytest.raises((OSError, HTTPException)):
        held.result()
    assert ended_well(server, row, address)


@each_mechanism(quick=["werkzeug"])
def test_fast_cuts_at_once_but_runs_hooks_and_atexit(start: Serve, row: Row) -> None:
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    assert server.client().stop("fast")["cut"] == 1
    with pytest.raises((OSError, HTTPException)):
        held.result()
    assert ended_well(server, row, address)


@each_mechanism(quick=["werkzeug"])
def test_immediate_runs_neither_hooks_nor_atexit(start: Serve, row: Row) -> None:
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    result = server.client().stop("immediate")
    assert (result["outcome"], result["cut"]) == ("forced", 1)
    assert server.wait() == 0
    assert "on_stop" not in server.lines
    # But for a master's, which is not ours to end in any other way.
    assert server.lines.count("atexit") <= bool(row.workers)
    assert gone(server, address)
    with pytest.raises((OSError, HTTPException)):
        held.result()


@each_mechanism(lambda row: row.hears_term is not None)
def test_a_master_that_hears_sigterm_lets_requests_end(start: Serve, row: Row) -> None:
    server = start(row, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    address = server.address
    held = server.begin("/hold/a")
    os.kill(server.pid, signal.SIGTERM)
    until(lambda: str(row.hears_term) in server.output, "the master has heard it")
    server.release("a")
    assert held.result() == (200, b"held a")
    until(lambda: not os.path.exists(server.socket), "a hub ends a moment after its master")
    assert ended_well(server, row, address)


@each_mechanism()
def test_a_view_can_stop_its_server(start: Serve, row: Row) -> None:
    server = start(row)
    address = server.address
    assert server.get("/stop") == (200, b"stopping")
    until(lambda: not os.path.exists(server.socket), "a hub ends a moment after its master")
    assert ended_well(server, row, address)


def ends(sock: socket.socket) -> bool:
    """Whether nobody is at the other end; with TCP_DEFER_ACCEPT that is told to who sends only."""
    try:
        sock.send(b"G")
        return sock.recv(1) == b""
    except ConnectionError:
        return True


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


@all_rows(reloadable, quick=NO_TWICE)
def test_a_reload_answers_by_the_old_code_who_has_asked_and_then_serves_the_new(
    start: Serve, program: Program, row: Row
) -> None:
    server = start(row)
    address, before, old = server.address, server.status(), workers(server)
    assert server.get("/version") == (200, b"old")
    assert server.get("/boom")[0] == 500
    held = server.begin("/hold/a")
    program.edit("new")
    with server.client() as client:
        reload = Pending.call(client.reload)
        until(lambda: server.status()["state"] == "reloading", "reloading")
        if not row.workers and row.at_once > 1:
            assert get(address, "/version") == (200, b"old"), "nobody is held up by the slow request"
            before["requests"]["total"] += 1
        server.release("a")
        assert held.result() == (200, b"held a")
        result = reload.result()
        assert (result["generation"], result["pid"], result["cut"]) == (2, before["pid"], 0)
        assert client.ping()["pong"], "the connection that asked goes on"
    assert get(address, "/version") == (200, b"new")
    status = server.status()
    assert (status["pid"], status["started_at"]) == (before["pid"], before["started_at"])
    assert status["server"]["listeners"] == [f"http://127.0.0.1:{address[1]}"]
    assert (status["requests"]["total"], status["requests"]["errors"]) == (before["requests"]["total"] + 4, 1)
    assert status["generation"] == 2
    assert status["reloaded_at"] is not None
    assert status["last_reload"]["ok"]
    assert status["last_reload"]["by"]["pid"] == os.getpid()
    assert not set(workers(server)) & set(old)
    assert [worker["generation"] for worker in status["workers"]] == [2] * row.workers
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


@each_mechanism(quick=["gunicorn sync"])
def test_broken_code_is_refused_and_the_service_untouched(start: Serve, program: Program, row: Row) -> None:
    server = start(row)
    before = workers(server)
    held = server.begin("/hold/a")
    program.edit("new", "1 / 0")
    with server.client() as client, pytest.raises(ReloadFailed) as refusal:
        client.reload()
    assert "ZeroDivisionError" in refusal.value.data["traceback"]
    status = server.status()
    assert (status["generation"], status["state"], status["last_reload"]["ok"]) == (1, "running", False)
    assert workers(server) == before
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.get("/version") == (200, b"old")


@all_rows(lambda row: row.preloaded)
def test_preloaded_code_is_not_said_to_be_reloaded(start: Serve, row: Row) -> None:
    server = start(row)
    before = workers(server)
    with pytest.raises(CommandError, match=f"kill -USR2 {server.pid}") as refusal:
        server.reload()
    assert refusal.value.code == -32001
    assert workers(server) == before


@pytest.mark.full
@each_mechanism()
def test_reloads_and_a_stop_under_load_lose_nothing_and_leave_nothing(start: Serve, program: Program, row: Row) -> None:
    """What is left by each shows after two already, as it is counted; `make hammer` does 200."""
    server, times = start(row), 2
    address = server.address
    server.reload()
    before = counts(answered_by_all(server))
    with Load(address, clients=1) as load, Load(address, clients=1, keep=True) as keeping:
        for number in range(times):
            program.edit(f"v{number}")
            assert server.reload()["generation"] == number + 3
            assert get(address, "/version") == (200, f"v{number}".encode())
    assert (load.lost, keeping.lost, load.refused, keeping.refused) == ([], [], 0, 0)
    assert row.workers or all(in_order(client.bodies) for client in (load, keeping))
    # Their replacement ends what the load has begun; pools of threads are filled anew as they are needed.
    server.reload()
    answered_by_all(server)

    def grown() -> list[int]:
        return [now - then for now, then in zip(counts(server), before)]

    # What an answer needs for a moment goes by itself.
    until(lambda: max(grown()) < times, lambda: f"something is left at every reload: {grown()}")
    with Load(address, clients=1) as load, Load(address, clients=1, keep=True) as keeping:
        stop_under_load(server, load, keeping)


def answered_by_all(server: Server) -> Server:
    """Each worker has answered once, so that it has all that it needs for that."""
    until(lambda: server.get("/version") and all(item["total"] for item in server.status()["workers"]), "all answer")
    return server


def counts(server: Server) -> tuple[int, int, int]:
    """Descriptors and threads of the server, its workers and its hub, and the number of its children."""
    pids = [server.pid, *workers(server), *([hub(server)] if workers(server) else [])]
    processes = [psutil.Process(pid) for pid in pids]
    threads, descriptors = sum(p.num_threads() for p in processes), sum(p.num_fds() for p in processes)
    return descriptors, threads, len(processes[0].children())


@each_mechanism(quick=["werkzeug"])
def test_after_a_kill_a_new_one_starts_on_the_same_socket(start: Serve, row: Row, short_path: pathlib.Path) -> None:
    path = short_path / "same.sock"
    killed = start(row, socket=path)
    left = workers(killed)
    kill(killed.pid)
    killed.process.wait()
    until(lambda: not hubs_of(short_path), "the end of the hub")
    for pid in filter(is_alive, left):
        kill(pid)
    assert os.path.exists(path) is not bool(row.workers), "a hub outlives its master for long enough to clean up"
    server = start(row, socket=path)
    assert server.pid != killed.pid
    assert server.get("/version") == (200, b"old")
    assert server.client().stop()["outcome"] == "drained"


@each_mechanism(with_workers)
def test_workers_and_hubs_that_are_killed_come_back_and_the_totals_stay(start: Serve, row: Row) -> None:
    server = start(row)
    address = server.address
    for _ in range(5):
        server.get("/boom")
    before = workers(server)
    for pid in before:
        kill(pid)
    until(lambda: len(workers(server)) == row.workers and not set(workers(server)) & set(before), "new workers")
    requests = server.status()["requests"]
    assert (requests["total"], requests["errors"]) == (5, 5)
    with Load(address) as load:
        held = server.begin("/hold/a")
        kill(hub(server))
        server.ready()
        all_there(server, row.workers)
        server.release("a")
        assert held.result() == (200, b"held a")
    assert load.lost == []
    status = server.status()
    assert (status["requests"]["errors"], status["generation"]) == (5, 1)
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


@each_mechanism(with_workers, quick=[])
def test_commands_run_in_each_worker_one_or_a_certain_one(start: Serve, row: Row) -> None:
    server = start(row)
    pids = workers(server)
    answers = server.call("greet", name="ann")
    assert sorted(answer["pid"] for answer in answers) == sorted(pids)
    assert all(answer["result"] == {"greeting": "hello ann"} for answer in answers)
    assert server.call("greet", name="ann", _pid=pids[-1]) == [{"pid": pids[-1], "result": {"greeting": "hello ann"}}]
    [one] = server.call("whoami")
    assert one["result"] == one["pid"]
    assert one["pid"] in pids
