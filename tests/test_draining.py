"""A stop of a server of one process, Werkzeug's, beyond what every server owes (`test_servers.py`)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import psutil
import pytest
from harness import PYTHON, RELOADING, TIMEOUT, Pending, Serve, Server, first_quick, get, read_all, until

from flask_ctl import ServerDied


def stopping(server: Server, **options: Any) -> Pending:
    """A stop under way, as it is when this returns."""
    pending = Pending.call(lambda: server.client().stop(**options))
    until(lambda: server.status()["state"] == "stopping", "stopping")
    return pending


def ended_well(server: Server) -> bool:
    """The server's process ended with 0, its hook and atexit run, its socket file gone."""
    assert server.wait() == 0
    assert server.lines.index("on_stop") < server.lines.index("atexit")
    assert not os.path.exists(server.socket)
    return True


def test_without_threads_what_waits_in_the_backlog_is_answered(serve: Serve) -> None:
    server = serve("app.run unthreaded")
    address = server.address
    held = server.begin("/hold/a")
    waiting = [socket.create_connection(address, timeout=TIMEOUT) for _ in range(3)]
    for sock in waiting:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    progress: list[Mapping[str, Any]] = []
    stop = stopping(server, on_progress=progress.append)
    until(lambda: len(progress) > 2, "idle connections have had their time")
    server.release("a")
    assert held.result() == (200, b"held a")
    for sock in waiting:
        with sock:
            assert read_all(sock).endswith(b"hello")
    assert stop.result()["drained"] == 4
    assert ended_well(server)


def test_nothing_that_was_accepted_is_lost_under_load_of_requests_with_bodies(serve: Serve) -> None:
    server = serve()
    address = server.address
    loads = [Pending.call(lambda: _load(address)) for _ in range(4)]
    until(lambda: server.status()["requests"]["total"] > 100, "load")
    assert server.client().stop()["outcome"] == "drained"
    assert sum(load.result() for load in loads) > 100
    assert ended_well(server)


def _load(address: tuple[str, int]) -> int:
    """Requests until the server refuses to connect; any other failure, or a cut answer, is raised."""
    answered = 0
    while True:
        try:
            sock = socket.create_connection(address, timeout=TIMEOUT)
        except ConnectionRefusedError:
            return answered
        with sock:
            sock.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1"), answer
        assert answer.endswith(b"\r\n\r\nhello"), answer
        answered += 1


@pytest.mark.parametrize("mode", first_quick(["flask run --debug", "app.run unthreaded"]))
def test_past_the_grace_the_rest_is_cut_and_said_so(serve: Serve, mode: str) -> None:
    server = serve(mode)
    held = server.begin("/hold/a")
    result = server.client().stop(grace=0.1)
    assert (result["outcome"], result["cut"]) == ("forced", 1)
    with pytest.raises(OSError):  # noqa: PT011
        held.result()
    assert ended_well(server)


@pytest.mark.parametrize("mode", first_quick(["app.run unthreaded", "flask run --debug"]))
def test_fast_cuts_at_once_but_runs_hooks_and_atexit(serve: Serve, mode: str) -> None:
    server = serve(mode)
    assert server.client().stop("fast")["outcome"] == "drained"
    assert ended_well(server)


def test_two_stops_at_once_both_get_the_answer(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    first = stopping(server)
    progress: list[Mapping[str, Any]] = []
    second = Pending.call(lambda: server.client().stop(on_progress=progress.append))
    until(lambda: progress, "the second has joined")
    server.release("a")
    assert held.result() == (200, b"held a")
    answers = [dict(stop.result()) for stop in (first, second)]
    for answer in answers:
        # Each client's own.
        del answer["ended_after"]
    assert answers[0] == answers[1]
    assert ended_well(server)


def test_a_fast_stop_escalates_the_one_under_way(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    patient = stopping(server)
    assert server.client().stop("fast")["outcome"] == "forced"
    assert patient.result()["cut"] == 1
    with pytest.raises(OSError):  # noqa: PT011
        held.result()
    assert ended_well(server)


def test_during_the_delay_new_visitors_are_served(serve: Serve) -> None:
    server = serve()
    address = server.address
    stop = stopping(server, delay=TIMEOUT, grace=0)
    assert get(address, "/") == (200, b"hello")
    server.client().stop("fast")
    assert stop.result()["drained"] == 1
    assert ended_well(server)


def test_a_custom_command_in_flight_is_waited_for(serve: Serve) -> None:
    server = serve()
    command = Pending.call(lambda: server.call("wait_for", name="a"))
    until(lambda: "waits for a" in server.lines, "the command")
    stop = stopping(server)
    server.release("a")
    assert command.result() == "a"
    assert stop.result()["outcome"] == "drained"
    assert ended_well(server)


def test_who_asks_to_stop_and_is_killed_has_asked(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    client = server.client()
    assert client.stop(wait=False)["accepted"]
    client.close()
    assert server.status()["state"] == "stopping"
    server.release("a")
    assert held.result() == (200, b"held a")
    assert ended_well(server)


def test_non_daemon_threads_that_keep_the_process_alive_are_named(serve: Serve) -> None:
    server = serve(command=[*PYTHON, "sample.py", "keeper"])
    server.client().stop(wait=False)
    until(lambda: server.status()["stopping"]["waiting_for"], "it waits for a thread")
    with pytest.raises(Exception, match="kept alive by keeper"):
        server.client().stop(timeout=0.5)
    assert server.status()["stopping"]["waiting_for"] == ["keeper"]
    with contextlib.suppress(ServerDied):  # the end that this brings may come before its answer
        server.release("keeper")
    assert ended_well(server)


def test_a_forked_child_that_holds_the_connection_does_not_delay_the_proof(serve: Serve) -> None:
    server = serve(stdin=subprocess.PIPE)
    child = int(server.get("/fork")[1])
    assert not [target for target in _targets(child) if "socket" in target and server.socket in target]
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert os.path.exists(f"/proc/{child}")
    server.process.communicate()
    until(lambda: not os.path.exists(f"/proc/{child}"), "the child has ended")


def _targets(pid: int) -> list[str]:
    targets = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        # Some are open for a moment only.
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return targets


def test_forking_servers_wait_for_their_children(serve: Serve) -> None:
    server = serve(command=[*PYTHON, "sample.py", "forking"])
    address = server.address
    # The child has gates of its own, so it is held by a half-sent body instead.
    with socket.create_connection(address, timeout=TIMEOUT) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")
        until(lambda: psutil.Process(server.pid).children(), "a child")
        [child] = psutil.Process(server.pid).children()
        # It begins with the parent's handlers, puts them back, and waits for the body once it has its own.
        until(lambda: _handles(child.pid, signal.SIGTERM) and child.status() == psutil.STATUS_SLEEPING, "the request")
        os.killpg(server.pid, signal.SIGTERM)
        until(lambda: server.status()["state"] == "stopping", "stopping")
        sock.sendall(b"llo")
        assert read_all(sock).endswith(b"hello")
    assert ended_well(server)


def _handles(pid: int, signum: int) -> bool:
    with open(f"/proc/{pid}/status") as status:
        mask = next(line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(mask, 16) & 1 << (signum - 1))


@pytest.mark.parametrize("mode", first_quick(RELOADING))
@pytest.mark.parametrize("signum", first_quick([signal.SIGTERM, signal.SIGINT]), ids=lambda signum: signum.name)
def test_a_signal_to_the_group_drains_too(serve: Serve, mode: str, signum: signal.Signals) -> None:
    """As the terminal's Ctrl-C, and as service managers do: both processes of the reloader get it."""
    server = serve(mode)
    held = server.begin("/hold/a")
    os.killpg(server.pid, signum)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    assert server.status()["stopping"]["by"]["signal"] in {signum.name, "SIGTERM"}
    server.release("a")
    assert held.result() == (200, b"held a")
    assert ended_well(server)


@pytest.mark.parametrize("mode", first_quick(RELOADING))
@pytest.mark.parametrize("signum", first_quick([signal.SIGTERM, signal.SIGINT]), ids=lambda signum: signum.name)
def test_a_signal_to_the_reloaders_parent_alone_drains_the_child(
    serve: Serve, mode: str, signum: signal.Signals
) -> None:
    server = serve(mode)
    held = server.begin("/hold/a")
    os.kill(server.pid, signum)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert ended_well(server)


@pytest.mark.parametrize("mode", first_quick(["app.run", "flask run --debug"]))
def test_a_stop_works_where_sigint_was_ignored_at_the_start(serve: Serve, mode: str) -> None:
    """As in a script's background job: `python app.py &`."""
    server = serve(mode, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    held = server.begin("/hold/a")
    os.kill(server.status()["pid"], signal.SIGINT)
    assert server.status()["state"] == "running"
    stop = stopping(server)
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert ended_well(server)


def test_tls_handshakes_that_never_end_hold_up_nobody(serve: Serve, short_path: pathlib.Path) -> None:
    code = "import sample; sample.app.run(port=0, ssl_context='adhoc')"
    server = serve(command=[sys.executable, "-c", code])
    host, port = server.address
    with socket.create_connection((host, port)) as silent:
        silent.sendall(b"\x16")
        assert _https_get(host, port) == b"hello"
        assert server.client().stop(grace=0.2)["cut"] == 1
    assert ended_well(server)


def _https_get(host: str, port: int) -> bytes:
    import ssl
    from http.client import HTTPSConnection

    connection = HTTPSConnection(host, port, timeout=TIMEOUT, context=ssl._create_unverified_context())
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_file_in_a_reference_cycle_is_written_out_at_the_end(serve: Serve, short_path: pathlib.Path) -> None:
    """The exit is fast because the last collection is left out; what that would have flushed is not lost."""
    path = short_path / "data"
    code = f"""
import sample
class Node: pass
node = Node(); node.myself = node; node.file = open({str(path)!r}, "w")
node.file.write("precious")
sample.app.run(port=0)
"""
    server = serve(command=[sys.executable, "-c", code])
    server.client().stop()
    assert server.wait() == 0
    assert path.read_text() == "precious"


def test_a_client_that_goes_away_early_is_no_request_in_flight_for_ever(serve: Serve) -> None:
    server = serve()
    address = server.address
    for _ in range(20):
        with socket.create_connection(address) as sock:
            sock.sendall(b"GET /stream/never HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.recv(10)
    server.release("never")
    until(lambda: server.status()["requests"]["in_flight"] == 0, "nothing in flight")


def test_a_hook_that_hangs_is_left_behind_by_a_fast_stop(serve: Serve) -> None:
    code = "import sample\nsample.control.on_stop(sample.gates['never'].wait)\nsample.app.run(port=0)"
    server = serve(command=[sys.executable, "-c", code])
    seen: list[Mapping[str, Any]] = []
    stop = Pending.call(lambda: server.client().stop(on_progress=seen.append))
    until(lambda: any(progress["phase"] == "hooks" for progress in seen), "the hooks run")
    assert server.client().stop("fast")["outcome"] == "drained"
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


def test_a_socket_that_was_given_serves_its_next_owner(serve: Serve, short_path: pathlib.Path) -> None:
    """As by a service manager, which keeps it: nothing is done to it that outlives the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = f"""
import sample
from werkzeug.serving import make_server
make_server("127.0.0.1", {listener.getsockname()[1]}, sample.app, threaded=True, fd={listener.fileno()}).serve_forever()
"""
        for _ in range(2):
            server = serve(command=[sys.executable, "-c", code], pass_fds=[listener.fileno()])
            assert server.get("/") == (200, b"hello")
            assert server.client().stop()["outcome"] == "drained"
            assert server.wait() == 0


def test_who_waits_without_threads_and_is_cut_is_counted(serve: Serve) -> None:
    server = serve("app.run unthreaded")
    address = server.address
    held = server.begin("/hold/a")
    waiting = [socket.create_connection(address, timeout=TIMEOUT) for _ in range(3)]
    for sock in waiting:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert server.client().stop(grace=0.2)["cut"] == 4
    assert server.wait() == 0
    for sock in waiting:
        sock.close()
    with pytest.raises(OSError):  # noqa: PT011
        held.result()


def test_a_wsgiref_server_under_load_ends(serve: Serve, free_port: int) -> None:
    server = serve(command=[*PYTHON, "sample.py", "wsgiref"], env={"PORT": str(free_port)}, ready=False)
    address = ("127.0.0.1", free_port)
    until(lambda: "listening" in server.lines, "listening")
    assert get(address, "/") == (200, b"hello")
    server.ready()
    loads = [Pending.call(lambda: _ask_until_refused(address)) for _ in range(4)]
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    for load in loads:
        load.result()


def _ask_until_refused(address: tuple[str, int]) -> None:
    while True:
        try:
            get(address, "/")
        except ConnectionRefusedError:
            return
        except (OSError, HTTPException):
            # Its last connections are reset: nothing can be done about the sockets of an unknown server.
            continue
