"""What every HTTP server owes under control: one contract, whatever serves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from http.client import HTTPConnection, HTTPException

import psutil
import pytest
from harness import TIMEOUT, Pending, get, read_all, until
from manyworkers import Load, all_there, hub, hubs_of, is_alive, kill, workers
from servers import KEEPING_ALIVE, PRELOADED, RELOADABLE, SERVERS, WITH_WORKERS

from flask_ctl import CommandError, ReloadFailed

END = ["on_stop", "after run", "atexit"]
"""What `sample` prints at its end, in this order, where it serves by itself."""


@pytest.fixture(params=SERVERS)
def row(request):
    return SERVERS[request.param]


reloadable = pytest.mark.parametrize("row", [SERVERS[name] for name in RELOADABLE], ids=RELOADABLE)
preloaded = pytest.mark.parametrize("row", [SERVERS[name] for name in PRELOADED], ids=PRELOADED)
keeping_alive = pytest.mark.parametrize("row", [SERVERS[name] for name in KEEPING_ALIVE], ids=KEEPING_ALIVE)
DRAINING_AT_TERM = [name for name, row in SERVERS.items() if row.hears_term or not row.workers]
with_workers = pytest.mark.parametrize("row", [SERVERS[name] for name in WITH_WORKERS], ids=WITH_WORKERS)


def begin_stop(server, *arguments, **options):
    """A stop under way, as it is when this returns."""
    pending = Pending.call(lambda: server.client().stop(*arguments, **options))
    until(lambda: server.status()["state"] == "stopping", "stopping")
    return pending


def ended_well(server, row, address):
    """Exit code 0; hooks and exit handlers have run, and nothing is left behind."""
    assert server.wait() == 0
    said = [line for line in server.lines if line in END]
    if row.workers:
        # A master that has loaded the app itself runs its exit handlers, too.
        assert said.count("on_stop") == row.workers
        assert not row.runs_atexit or said.count("atexit") - row.workers in (0, 1)
    else:
        assert said == END
    return gone(server, address)


def gone(server, address):
    assert not os.path.exists(server.socket)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return True


def test_status_answers_before_the_first_request(start, row):
    server = start(row)
    status = server.status()
    assert (status["app"], status["state"], status["pid"]) == (row.app, "running", server.pid)
    assert status["server"]["name"] == row.name
    assert status["server"]["version"]
    assert status["server"]["listeners"] == [f"http://127.0.0.1:{server.address[1]}"]
    assert status["requests"] == {"in_flight": 0, "oldest": None, "total": 0, "errors": 0}
    assert server.get("/version") == (200, b"old")
    assert server.status()["requests"]["total"] == 1


@with_workers
def test_status_shows_each_worker(start, row):
    server = start(row)
    status = server.status()
    for worker in status["workers"]:
        assert psutil.Process(worker["pid"]).ppid() == server.pid
        assert (worker["state"], worker["generation"], worker["in_flight"]) == ("running", 1, 0)
        assert worker["rss"] > 0
        assert worker["last_seen"] >= 0
    assert status["process"]["rss"] >= sum(worker["rss"] for worker in status["workers"])


@with_workers
def test_no_thread_of_ours_lives_where_processes_are_forked(start, row):
    server = start(row)
    master = psutil.Process(server.pid)
    if row.name != "granian":  # which forks from a master with threads of its own
        assert master.num_threads() == 1
    assert hub(server) not in {child.pid for child in master.children(recursive=True)}


def test_a_request_in_flight_is_answered_and_then_the_process_is_gone(start, row):
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    stop = begin_stop(server)
    assert server.status()["stopping"]["by"]["pid"] == os.getpid()
    server.release("a")
    assert held.result() == (200, b"held a")
    result = stop.result()
    assert (result["outcome"], result["drained"], result["cut"], result["pid"]) == ("drained", 1, 0, server.pid)
    assert server.process.poll() == 0, "it returned before the process was gone"
    assert ended_well(server, row, address)


def test_an_idle_server_ends(start, row):
    server = start(row)
    address = server.address
    assert server.client().stop()["outcome"] == "drained"
    assert ended_well(server, row, address)


def test_a_streaming_body_is_sent_to_its_end(start, row):
    server = start(row)
    address = server.address
    stream = server.begin("/stream/a")
    stop = begin_stop(server)
    server.release("a")
    assert stream.result() == (200, b"first last")
    assert stop.result()["outcome"] == "drained"
    assert ended_well(server, row, address)


def test_who_has_sent_half_a_request_line_is_answered(start, row):
    server = start(row)
    address = server.address
    with socket.create_connection(address, timeout=TIMEOUT) as sock:
        sock.sendall(b"GET / HT")
        stop = begin_stop(server)
        sock.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1")
    assert stop.result()["outcome"] == "drained"
    assert ended_well(server, row, address)


def test_an_8_mb_response_to_a_slow_reader_arrives_whole(start, row):
    server = start(row)
    address = server.address
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        beginning = sock.recv(1024)
        stop = begin_stop(server)
        head, _, body = (beginning + read_all(sock)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b"x" * 8_000_000
    assert stop.result()["outcome"] == "drained"
    assert ended_well(server, row, address)


@pytest.mark.parametrize("keep", [False, True], ids=["", "keep-alive"])
def test_under_constant_load_nothing_is_lost(start, row, keep):
    server = start(row)
    address = server.address
    with Load(address, keep=keep) as load:
        until(lambda: len(load.bodies) > 100, "load")
        assert server.client().stop()["cut"] == 0
    assert load.lost == []
    assert ended_well(server, row, address)


def test_past_the_grace_the_rest_is_cut_and_said_so(start, row):
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    result = server.client().stop(grace=0.1)
    assert (result["outcome"], result["cut"]) == ("forced", 1)
    with pytest.raises((OSError, HTTPException)):
        held.result()
    assert ended_well(server, row, address)


def test_fast_cuts_at_once_but_runs_hooks_and_atexit(start, row):
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    assert server.client().stop("fast")["cut"] == 1
    with pytest.raises((OSError, HTTPException)):
        held.result()
    assert ended_well(server, row, address)


def test_immediate_runs_neither_hooks_nor_atexit(start, row):
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


@pytest.mark.parametrize("row", [SERVERS[name] for name in DRAINING_AT_TERM], ids=DRAINING_AT_TERM)
def test_sigterm_drains_like_a_stop(start, row):
    # The tests themselves may run where it is ignored, as in a script's background job.
    server = start(row, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    address = server.address
    held = server.begin("/hold/a")
    os.kill(server.pid, signal.SIGTERM)
    if not row.workers:
        until(lambda: server.status()["state"] == "stopping", "stopping")
        assert server.status()["stopping"]["by"] == {"signal": "SIGTERM"}
    else:
        until(lambda: row.hears_term in server.output, "the master has heard it")
    server.release("a")
    assert held.result() == (200, b"held a")
    until(lambda: not os.path.exists(server.socket), "a hub ends a moment after its master")
    assert ended_well(server, row, address)


def test_a_view_can_stop_its_server(start, row):
    server = start(row)
    address = server.address
    assert server.get("/stop") == (200, b"stopping")
    until(lambda: not os.path.exists(server.socket), "a hub ends a moment after its master")
    assert ended_well(server, row, address)


def test_silent_connections_are_closed_by_a_stop(start, row):
    server = start(row)
    address = server.address
    with socket.create_connection(address, timeout=TIMEOUT) as silent:
        assert server.client().stop()["outcome"] == "drained"
        assert ends(silent)
    assert ended_well(server, row, address)


def ends(sock):
    """Whether nobody is at the other end; with TCP_DEFER_ACCEPT that is told to who sends only."""
    try:
        sock.send(b"G")
        return sock.recv(1) == b""
    except ConnectionError:
        return True


@keeping_alive
def test_idle_connections_are_closed_by_a_stop(start, row):
    server = start(row)
    address = server.address
    with kept(address) as idle:
        assert server.client().stop()["outcome"] == "drained"
        assert ends(idle.sock)
    assert ended_well(server, row, address)


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


@reloadable
def test_a_reload_serves_the_new_code_from_the_same_server(start, program, row):
    server = start(row)
    address, before = server.address, workers(server)
    assert server.get("/version") == (200, b"old")
    assert server.get("/boom")[0] == 500
    program.edit("new")
    with server.client() as client:
        result = client.reload()
        assert (result["generation"], result["pid"], result["cut"]) == (2, server.pid, 0)
        assert client.ping()["pong"], "the connection that asked goes on"
    assert get(address, "/version") == (200, b"new")
    status = server.status()
    assert status["server"]["listeners"] == [f"http://127.0.0.1:{address[1]}"]
    assert (status["requests"]["total"], status["requests"]["errors"]) == (3, 1)
    assert status["generation"] == 2
    assert status["last_reload"]["ok"]
    assert status["last_reload"]["by"]["pid"] == os.getpid()
    assert not set(workers(server)) & set(before)
    assert [worker["generation"] for worker in status["workers"]] == [2] * row.workers
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


@reloadable
def test_broken_code_is_refused_and_the_service_untouched(start, program, row):
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
    program.edit("better")
    assert server.reload()["generation"] == 2
    assert server.get("/version") == (200, b"better")


@preloaded
def test_preloaded_code_is_not_said_to_be_reloaded(start, row):
    server = start(row)
    before = workers(server)
    with pytest.raises(CommandError, match=f"kill -USR2 {server.pid}") as refusal:
        server.reload()
    assert refusal.value.code == -32001
    assert workers(server) == before


@reloadable
def test_a_request_in_flight_is_answered_by_the_old_code_through_a_reload(start, program, row):
    server = start(row)
    address = server.address
    held = server.begin("/hold/a")
    program.edit("new")
    reload = Pending.call(server.reload)
    until(lambda: server.status()["state"] == "reloading", "reloading")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert reload.result()["generation"] == 2
    assert get(address, "/version") == (200, b"new")


@pytest.mark.parametrize("name", RELOADABLE)
def test_reloads_under_load_lose_nothing_and_leave_nothing(start, program, name):
    """Fewer of them for those that differ little from another one in the table; `make hammer` does 200."""
    server, times = start(SERVERS[name]), 4 if "," in name else 8
    address = server.address
    server.reload()
    before = counts(answered_by_all(server))
    with Load(address, clients=1) as load, Load(address, clients=1, keep=True) as keeping:
        for number in range(times):
            program.edit(f"v{number}")
            assert server.reload()["generation"] == number + 3
            assert get(address, "/version") == (200, f"v{number}".encode())
    assert (load.lost, keeping.lost, load.refused, keeping.refused) == ([], [], 0, 0)
    # Their replacement ends what the load has begun; pools of threads are filled anew as they are needed.
    server.reload()
    answered_by_all(server)
    grown = [now - then for now, then in zip(counts(server), before)]
    assert max(grown) < times, "something is left at every reload"
    assert server.client().stop()["outcome"] == "drained"


def answered_by_all(server):
    """Each worker has answered once, so that it has all that it needs for that."""
    until(lambda: server.get("/version") and all(item["total"] for item in server.status()["workers"]), "all answer")
    return server


def counts(server):
    """Descriptors and threads of the server, its workers and its hub, and the number of its children."""
    pids = [server.pid, *workers(server), *([hub(server)] if workers(server) else [])]
    processes = [psutil.Process(pid) for pid in pids]
    threads, descriptors = sum(p.num_threads() for p in processes), sum(p.num_fds() for p in processes)
    return descriptors, threads, len(processes[0].children())


def test_after_a_kill_a_new_one_starts_on_the_same_socket(start, row, short_path):
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


@with_workers
def test_a_worker_that_is_killed_is_replaced_and_the_totals_stay(start, row):
    server = start(row)
    for _ in range(5):
        server.get("/boom")
    before = workers(server)
    for pid in before:
        kill(pid)
    until(lambda: len(workers(server)) == row.workers and not set(workers(server)) & set(before), "new workers")
    requests = server.status()["requests"]
    assert (requests["total"], requests["errors"]) == (5, 5)
    assert server.client().stop()["outcome"] == "drained"


@with_workers
def test_a_hub_that_is_killed_comes_back_and_nothing_is_disturbed(start, row):
    server = start(row)
    server.get("/boom")
    kill(workers(server)[0])
    all_there(server, row.workers)
    address = server.address
    with Load(address) as load:
        held = server.begin("/hold/a") if row.workers > 1 else None
        kill(hub(server))
        server.ready()
        all_there(server, row.workers)
        if held is not None:
            server.release("a")
            assert held.result() == (200, b"held a")
    assert load.lost == []
    status = server.status()
    assert (status["requests"]["errors"], status["generation"]) == (1, 1)
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


@with_workers
def test_commands_run_in_each_worker_one_or_a_certain_one(start, row):
    server = start(row)
    pids = workers(server)
    answers = server.call("greet", name="ann")
    assert sorted(answer["pid"] for answer in answers) == sorted(pids)
    assert all(answer["result"] == {"greeting": "hello ann"} for answer in answers)
    assert server.call("greet", name="ann", _pid=pids[-1]) == [{"pid": pids[-1], "result": {"greeting": "hello ann"}}]
    [one] = server.call("whoami")
    assert one["result"] == one["pid"]
    assert one["pid"] in pids
