"""Looking into serving processes: the same questions to a single process and to workers behind a hub."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import socket
import sys
from http.client import HTTPConnection, HTTPException
from typing import Any

import click
import pytest
from harness import PYTHON, TIMEOUT, Child, Pending, Serve, Server, first_quick, run_cli, until
from manyworkers import workers
from servers import SERVERS

from flask_ctl import CommandError, ControlClient, ControlError, TimedOut, render_result
from flask_ctl.system.stuck import why_silent
from flask_ctl_cli.output import print_found

# Each worker goes the way of a single process too.
KINDS = first_quick(["gunicorn gthread", "flask run"])


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, start: Serve) -> Server:
    return start(SERVERS[request.param])


def processes(server: Server) -> list[int]:
    """The pids of the serving processes."""
    return workers(server) or [server.status()["pid"]]


def routed(client: ControlClient) -> list[dict[str, Any]]:
    """The requests in flight, once there are some, and Flask has found the route of each."""

    def found() -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = client.requests()["requests"]
        return requests if all(request["route"] for request in requests) else []

    listed: list[dict[str, Any]] = until(found, "in a view")
    return listed


def test_requests_in_flight_are_listed_the_oldest_first(server: Server) -> None:
    held = [server.begin(f"/hold/{name}") for name in "ab"]
    with server.client() as client:
        listed = client.requests()
        assert listed["unanswered"] == []
        assert len(listed["requests"]) == 2
        ages = [request["age"] for request in listed["requests"]]
        assert ages == sorted(ages, reverse=True)
        assert {request["worker"] for request in listed["requests"]} <= set(processes(server))
        assert client.requests(slower=3600)["requests"] == []
        routed(client)
        oldest = client.status()["requests"]["oldest_request"]
        assert oldest == {"method": "GET", "route": "/hold/<name>"}
    for name in "ab":
        server.release(name)
    for pending in held:
        pending.result()


def test_a_request_is_told_with_all_that_helps_to_find_it_and_without_secrets(server: Server) -> None:
    with socket.create_connection(server.address, timeout=TIMEOUT) as sock, server.client() as client:
        sock.sendall(b"GET /hold/a?user=bob&access_token=hunter2 HTTP/1.1\r\nHost: x\r\nX-Request-ID: 7f3a\r\n\r\n")
        (request,) = routed(client)
        server.release("a")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    assert {name: request[name] for name in ("method", "route", "path", "query", "id", "client")} == {
        "method": "GET",
        "route": "/hold/<name>",
        "path": "/hold/a",
        "query": "user=bob&access_token=***",
        "id": "7f3a",
        "client": "127.0.0.1",
    }
    assert request["thread"]
    assert request["thread_id"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_observer_learns_nothing_personal_of_a_request(
    kind: str, start: Serve, free_port: int, short_path: pathlib.Path
) -> None:
    path, tcp = str(short_path / "a.sock"), f"tcp://127.0.0.1:{free_port}"
    server = start(SERVERS[kind], socket=path, env={"FLASK_CTL_SOCKET": json.dumps([path, tcp])})
    held = server.begin("/hold/a")
    with ControlClient(tcp) as observer:
        (request,) = observer.requests()["requests"]
    assert set(request) == {"method", "route", "age", "worker"}
    server.release("a")
    held.result()


def test_one_worker_can_be_asked(server: Server) -> None:
    with server.client() as client:
        for pid in processes(server):
            assert client.requests(worker=pid) == {"requests": [], "left_out": 0, "unanswered": []}
        with pytest.raises(CommandError, match="worker: no worker has the pid 1; there ") as caught:
            client.requests(worker=1)
    assert caught.value.code == -32602


# Exceptions


def exceptions_of(server: Server) -> list[dict[str, Any]]:
    with server.client() as client:
        told = client.exceptions()
    assert told["unanswered"] == []
    found: list[dict[str, Any]] = told["exceptions"]
    return found


def test_unhandled_exceptions_are_counted_over_all_processes(server: Server) -> None:
    assert exceptions_of(server) == []
    for _ in range(6):
        assert server.get("/boom")[0] == 500
    [entry] = exceptions_of(server)
    assert (entry["count"], entry["type"], entry["message"]) == (6, "RuntimeError", "boom")
    assert (entry["origin"], entry["route"], entry["method"]) == ("request", "/boom", "GET")
    assert entry["worker"] in processes(server)
    assert re.fullmatch(r"/.*/sample\.py:\d+, in boom", entry["where"])
    assert entry["first"] < entry["last"]
    assert entry["traceback"].startswith("Traceback (most recent call last):\n")
    assert entry["traceback"].endswith('\n    raise RuntimeError("boom")\nRuntimeError: boom\n')
    with server.client() as client:
        shares = [client.exceptions(worker=pid)["exceptions"] for pid in processes(server)]
    assert sum(share["count"] for share, *_ in filter(None, shares)) == 6


def test_exceptions_outlive_a_reload(server: Server) -> None:
    server.get("/boom")
    server.reload()
    [entry] = until(lambda: exceptions_of(server), "the exception of the old worker")
    server.get("/boom")
    [again] = exceptions_of(server)
    assert (again["count"], again["id"], again["first"]) == (2, entry["id"], entry["first"])
    assert again["last"] > entry["last"]


def test_exceptions_of_workers_that_a_reload_kills_are_not_lost(start: Serve) -> None:
    server = start(SERVERS["gunicorn gthread"])
    held = server.begin("/hold/a")
    for _ in range(4):
        server.get("/boom")
    assert server.reload(grace=0.2, cut=True)["cut"] == 1
    [entry] = exceptions_of(server)
    assert entry["count"] == 4
    with pytest.raises((OSError, HTTPException)):
        held.result()


MORE = """
import sample, threading
from flask import request

@sample.app.get("/thread")
def end_a_thread():
    thread = threading.Thread(target=exec, args=("raise LookupError('in a thread')",))
    thread.start()
    thread.join()
    return "ended"

@sample.app.post("/say")
def say():
    raise ValueError(request.get_data(as_text=True))

@sample.app.errorhandler(404)
def missing(error):
    raise KeyError("no such page") from error

sample.control.on_reload(lambda: {}["in a hook"])
sample.app.run(port=0)
"""


def test_threads_hooks_and_error_handlers_are_seen_and_the_program_sees_them_too(serve: Serve) -> None:
    server = serve(command=[*PYTHON, "-c", MORE])
    server.get("/thread")
    server.get("/nowhere")
    with pytest.raises(CommandError, match="KeyError"):
        server.reload(what="config")
    found = [(entry["type"], entry["origin"], entry["route"]) for entry in exceptions_of(server)]
    assert found == [("LookupError", "thread", None), ("KeyError", "request", None), ("KeyError", "hook", None)]
    assert "LookupError: in a thread" in server.output


def test_what_looks_like_a_secret_is_in_no_output(serve: Serve) -> None:
    server = serve(command=[*PYTHON, "-c", MORE])
    for text in (
        "password=hunter2",
        "Authorization: Basic hunter2",
        "Cookie: session=hunter2",
        "http://shop:hunter2@db/?token=hunter2",
        '{"token": "hunter2"}',
    ):
        connection = HTTPConnection(*server.address)
        connection.request("POST", "/say?api_key=hunter2", text, {"Authorization": "Bearer hunter2"})
        assert connection.getresponse().status == 500
        connection.close()
    held = server.begin("/hold/a?api_key=hunter2")
    for command in ("exceptions", "stacks", "requests"):
        for options in ([], ["--json"]):
            done = run_cli(command, *options, "-s", server.socket)
            assert (done.returncode, done.stderr) == (0, "")
            assert "hunter2" not in done.stdout
            assert "***" in done.stdout or not options
    server.release("a")
    held.result()


def test_the_command_line_shows_the_last_exception_at_the_end(server: Server) -> None:
    assert run_cli("exceptions", "-s", server.socket).stdout == "no exception\n"
    server.get("/boom")
    done = run_cli("exceptions", "-s", server.socket)
    first, second, *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"1 time in GET /boom, pid \d+, at \S+Z", first)
    assert re.fullmatch(r"RuntimeError: boom \(/.*sample\.py:\d+, in boom\)", second)
    assert last == "  RuntimeError: boom"
    told = json.loads(run_cli("exceptions", "--json", "-s", server.socket).stdout)
    assert [entry["type"] for entry in told["exceptions"]] == ["RuntimeError"]


def test_requests_are_told_while_every_request_thread_waits_and_the_pool_of_commands_is_full(start: Serve) -> None:
    server = start(SERVERS["waitress"])
    held = [server.begin(f"/hold/{name}") for name in "abcd"]
    commands = [Pending.call(functools.partial(server.call, "wait_for", name=name)) for name in "efghi"]
    until(lambda: len([line for line in server.lines if line.startswith("waits for")]) == 4, "the pool is full")
    with server.client() as client:
        requests = routed(client)
        assert [request["path"] for request in requests] == [f"/hold/{name}" for name in "abcd"]
        assert {request["thread"] for request in requests} == {f"waitress-{number}" for number in range(4)}
        assert client.status()["requests"]["oldest_request"] == {"method": "GET", "route": "/hold/<name>"}
        cut = client.stop("fast")
    assert (cut["cut"], len(cut["cut_requests"])) == (9, 4)
    for pending in held:
        with pytest.raises((OSError, HTTPException)):
            pending.result()
    for pending in commands:
        with pytest.raises(ControlError):
            pending.result()


@pytest.mark.parametrize("name", ["pywsgi", "gunicorn gevent"])
def test_requests_of_greenlets_are_told_while_one_of_them_computes(
    name: str, start: Serve, short_path: pathlib.Path
) -> None:
    server = start(SERVERS[name])
    held = server.begin("/hold/a")
    spinning = server.begin(f"/spin?until={short_path / 'gate'}")
    with server.client() as client:
        requests = until(lambda: len(found := routed(client)) == 2 and found, "both in a view")
    assert {request["path"] for request in requests} == {"/hold/a", "/spin"}
    assert all(request["greenlet"] for request in requests)
    # Two workers may have an object each at the same address.
    assert len({(request["worker"], request["greenlet"]) for request in requests}) == 2
    assert {request["thread_id"] for request in requests} == {None}
    (short_path / "gate").touch()
    assert spinning.result() == (200, b"spun")
    server.release("a")
    assert held.result() == (200, b"held a")


HELD = {"method": "GET", "route": "/hold/<name>"}


@pytest.mark.parametrize("kind", first_quick(["gunicorn gthread", "flask run", "pywsgi"]))
def test_a_stop_tells_which_requests_it_has_cut(kind: str, start: Serve) -> None:
    server = start(SERVERS[kind])
    held = server.begin("/hold/a?token=hunter2")
    with server.client() as client:
        [request] = routed(client)
        result = client.stop("fast")
    [cut] = result["cut_requests"]
    assert {**cut, "age": 0} == {**HELD, "age": 0, "worker": request["worker"]}
    assert cut["age"] >= request["age"]
    assert result["cut"] == 1
    assert re.search(r", 1 CUT \(GET /hold/<name> after \d+\.\d s\),", render_result("stop", result))
    with pytest.raises((OSError, HTTPException)):
        held.result()


@pytest.mark.parametrize("kind", first_quick(["gunicorn gthread", "flask run", "pywsgi"]))
def test_a_reload_tells_which_requests_it_has_cut(kind: str, start: Serve) -> None:
    server = start(SERVERS[kind])
    held = server.begin("/hold/a")
    with server.client() as client:
        [request] = routed(client)
        result = client.reload(grace=0.2, cut=True)
        [cut] = result["cut_requests"]
        assert {**cut, "age": 0} == {**HELD, "age": 0, "worker": request["worker"]}
        assert client.stop()["outcome"] == "drained"
    with pytest.raises((OSError, HTTPException)):
        held.result()


def test_a_stop_that_cuts_nothing_names_nothing(server: Server) -> None:
    server.get("/")
    assert "cut_requests" not in server.client().stop()


def test_the_command_line_shows_requests_as_text_as_json_and_again_and_again(server: Server) -> None:
    held = server.begin("/hold/a")
    with server.client() as client:
        routed(client)
    shown = run_cli("requests", "-s", server.socket)
    assert re.search(r"GET +/hold/<name> +\d+ +127\.0\.0\.1 .*/hold/a$", shown.stdout, re.MULTILINE), shown
    (request,) = json.loads(run_cli("requests", "--json", "-s", server.socket).stdout)["requests"]
    assert request["path"] == "/hold/a"
    assert run_cli("requests", "--slower", "3600", "-s", server.socket).stdout == "no request in flight\n"
    assert run_cli("requests", "--worker", "1", "-s", server.socket).returncode == 1
    command = [sys.executable, "-m", "flask_ctl_cli", "requests", "--watch", "0.1", "--json", "-s", server.socket]
    with Child(*command) as watch:
        assert json.loads(watch.stdout.readline())["requests"][0]["path"] == "/hold/a"
        server.release("a")
        held.result()
        until(lambda: json.loads(watch.stdout.readline())["requests"] == [], "answered")
        server.client().stop()
        watch.stdout.read()
    assert watch.returncode == 3


# Stacks


def stacks_of(server: Server, **options: Any) -> list[dict[str, Any]]:
    with server.client() as client:
        told = client.stacks(**options)
    assert (told["unanswered"], told["left_out"]) == ([], 0)
    found: list[dict[str, Any]] = told["stacks"]
    return found


def functions(stack: dict[str, Any]) -> list[str]:
    """The names in a stack, without those of classes."""
    return [frame["function"].rpartition(".")[2] for frame in stack["frames"]]


def waiting(server: Server, count: int, function: str = "hold") -> list[dict[str, Any]]:
    """The stacks, once so many requests are in that function."""
    return until(  # type: ignore[no-any-return]
        lambda: len(found := stacks_of(server)) == count and all(function in functions(one) for one in found) and found,
        f"{count} in {function}",
    )


def test_a_stack_shows_where_each_request_is(server: Server) -> None:
    assert stacks_of(server) == []
    held = [server.begin(f"/hold/{name}") for name in "ab"]
    first, second = waiting(server, 2)
    assert [stack["request"]["path"] for stack in (first, second)] == ["/hold/a", "/hold/b"]
    assert {stack["worker"] for stack in (first, second)} <= set(processes(server))
    [frame] = [frame for frame in first["frames"] if frame["function"] == "hold"]
    assert frame["file"].endswith("/sample.py")
    assert frame["source"] == "gates[name].wait()"
    assert {stack["request"] for stack in stacks_of(server, all=True)[2:]} == {None}
    shown = run_cli("stacks", "-s", server.socket)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(rf"^pid {first['worker']}, thread .+ \(\d+\): GET /hold/a, \d+\.\d s$", shown.stdout, re.MULTILINE)
    assert f'  File "{frame["file"]}", line {frame["line"]}, in hold\n    gates[name].wait()\n' in shown.stdout
    for name in "ab":
        server.release(name)
    for pending in held:
        pending.result()
    assert run_cli("stacks", "-s", server.socket).stdout == "no request is in flight\n"


def test_stacks_come_while_every_request_thread_waits(start: Serve) -> None:
    server = start(SERVERS["waitress"])
    held = [server.begin(f"/hold/{name}") for name in "abcd"]
    assert {stack["thread"] for stack in waiting(server, 4)} == {f"waitress-{number}" for number in range(4)}
    others = {stack["thread"] for stack in stacks_of(server, all=True) if stack["request"] is None}
    assert {"MainThread", "flask-ctl"} <= others
    for name in "abcd":
        server.release(name)
    for pending in held:
        pending.result()


@pytest.mark.parametrize("name", ["pywsgi", "gunicorn gevent"])
def test_greenlets_have_stacks_also_the_one_that_computes(start: Serve, name: str, short_path: pathlib.Path) -> None:
    server = start(SERVERS[name])
    held = server.begin("/hold/a")
    [stack] = waiting(server, 1)
    assert stack["greenlet"]
    spinning = server.begin(f"/spin?until={short_path / 'gate'}")
    by_path = until(
        lambda: (
            len(found := {stack["request"]["path"]: stack for stack in stacks_of(server)}) == 2
            and "spin" in functions(found["/spin"])
            and found
        ),
        "it computes",
    )
    assert "hold" in functions(by_path["/hold/a"])
    assert by_path["/spin"]["greenlet"]
    others = [stack for stack in stacks_of(server, all=True) if stack["request"] is None]
    assert any(stack["greenlet"] for stack in others)
    (short_path / "gate").touch()
    assert spinning.result() == (200, b"spun")
    server.release("a")
    assert held.result() == (200, b"held a")


def until_stuck(pid: int) -> None:
    until(lambda: why_silent([pid])[pid]["state"] == "held", "a C call holds the interpreter")


def test_a_single_process_whose_interpreter_is_held_is_told_as_such_in_time(start: Serve) -> None:
    server = start(SERVERS["flask run"])
    pending = Pending(server.address, "/stuck")
    until_stuck(server.pid)
    with server.client() as client, pytest.raises(TimedOut, match="did not answer stacks within 2 s: pid ") as caught:
        client.stacks(timeout=2)
    stuck = caught.value.data["stuck"]
    assert (stuck["pid"], stuck["state"]) == (server.pid, "held")
    assert [thread["system_call"] for thread in stuck["threads"]] == ["clock_nanosleep"]
    assert caught.value.message.endswith(f": py-spy dump --pid {server.pid}")
    done = run_cli("stacks", "--timeout", "1", "-s", server.socket)
    assert done.returncode == 4
    assert f"py-spy dump --pid {server.pid}\nWait longer by --timeout, or end it by: " in done.stderr
    assert "see why by: flask-ctl stacks" in run_cli("status", "--timeout", "0.2", "-s", server.socket).stderr
    server.kill()
    with pytest.raises(ConnectionError):
        pending.result()


SILENT = {"worker": 8, "error": "it does not answer"}


@pytest.mark.parametrize(
    ("requests", "left_out", "unanswered", "code"),
    [([], 0, [], 0), ([], 0, [SILENT], 4), ([{}], 0, [SILENT], 0), ([], 1, [SILENT], 0)],
)
def test_nothing_but_silence_is_printed_with_exit_code_4(
    requests: Any, left_out: int, unanswered: Any, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"requests": requests, "left_out": left_out, "unanswered": unanswered}
    exit_code = 0
    try:
        print_found("requests", result, as_json=True)
    except click.exceptions.Exit as end:
        exit_code = end.exit_code
    assert (json.loads(capsys.readouterr().out), exit_code) == (result, code)


def test_of_a_worker_whose_interpreter_is_held_the_hub_says_so(start: Serve) -> None:
    server = start(SERVERS["gunicorn gthread"])
    pending = Pending(server.address, "/stuck")
    with server.client() as client:
        told = until(lambda: (found := client.stacks())["unanswered"] and found, "one does not answer")
    [silent] = told["unanswered"]
    assert silent["worker"] in processes(server)
    assert silent["stuck"]["state"] == "held"
    assert silent["error"].endswith(f": py-spy dump --pid {silent['worker']}")
    done = run_cli("stacks", "-s", server.socket)
    assert f"pid {silent['worker']} did not answer: it does not answer; it was last heard " in done.stdout
    assert done.returncode == 4
    server.kill()
    with pytest.raises(ConnectionError):
        pending.result()
