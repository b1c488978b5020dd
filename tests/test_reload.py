"""A reload: the new code serves in the same process and nobody notices, or the old code goes on."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest
from harness import PYTHON, TIMEOUT, Pending, Program, Serve, Server, first_quick, raw, read_all, run_cli, until
from wires import request

from flask_ctl import CommandError, ControlClient, ReloadFailed, ServerDied, TimedOut


@pytest.fixture
def start(serve: Serve, program: Program) -> Serve:
    """Serve the program that can be edited."""
    return lambda mode="app.run", **options: serve(mode, cwd=program.directory, **options)


def version(server: Server) -> str:
    return server.get("/version")[1].decode()


def test_the_same_sockets_go_on_listening_nothing_is_left_open_and_every_client_gets_an_answer_or_a_clean_end(
    start: Serve,
) -> None:
    server = start()
    address, inode = server.address, os.stat(server.socket).st_ino
    with raw(server.socket) as other, raw(server.socket) as sock:
        other.sendall(b'{"jsonrpc":"2.0","method":"ping","id":1}\n')
        assert json.loads(other.recv(65536))["id"] == 1
        # What is sent behind the reload is answered by the new image.
        sock.sendall(b'{"jsonrpc":"2.0","method":"reload","id":1}\n{"jsonrpc":"2.0","method":"ping","id":2}\n{"js')
        sock.sendall(b'onrpc":"2.0","method":"status","id":3}\n')
        sock.shutdown(socket.SHUT_WR)
        answers = {answer["id"]: answer["result"] for answer in map(json.loads, read_all(sock).splitlines())}
        assert read_all(other) == b""
    assert answers[1]["generation"] == 2
    assert set(answers) == {1, 2, 3}
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    with raw(server.socket) as sock:
        sock.sendall(b"reload\n")
        text = read_all(sock).decode()
    assert text.startswith(f"pid {server.pid} serves generation 3 "), text
    until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= before, "as many descriptors as before")
    assert server.address == address
    assert os.stat(server.socket).st_ino == inode
    server.client().stop()
    assert server.wait() == 0
    assert not os.path.exists(server.socket)


def test_behind_a_reload_that_cuts_a_command_that_waits_for_its_turn_is_answered_by_the_new_image(start: Serve) -> None:
    server = start(env={"FLASK_CTL_MAX_PENDING": "2"})
    messages = [
        request("reload", 1, cut=True, grace=0.0), request("wait_for", 2, name="a"), request("whoami", 3)
    ]  # fmt: skip
    with raw(server.socket) as sock:
        sock.sendall(b"".join(message + b"\n" for message in messages))
        sock.shutdown(socket.SHUT_WR)
        answers = {answer["id"]: answer for answer in map(json.loads, read_all(sock).splitlines())}
    assert answers[1]["result"]["generation"] == 2
    assert answers[2]["error"]["code"] == -32006
    assert answers[3]["result"] == server.pid


BROKEN = {
    "a syntax error": ("def f(:", "SyntaxError"),
    "an exception": ("1 / 0", "ZeroDivisionError"),
    "an exit with 0": ("sys.exit()", "exit code 0"),
    "an exit with 3": ("sys.exit(3)", "exit code 3"),
    "a death": ("os.kill(os.getpid(), 9)", "exit code -9"),
}


@pytest.mark.parametrize("mode", first_quick(["app.run", "flask run", "flask run --debug", "flask-ctl run"]))
def test_broken_code_is_refused_and_the_old_code_serves_until_it_is_mended(
    start: Serve, program: Program, mode: str
) -> None:
    server = start(mode)
    held = server.begin("/hold/a")
    for what, (code, reason) in BROKEN.items():
        program.edit("new", code)
        with server.client() as client, pytest.raises(ReloadFailed, match=reason) as refusal:
            client.reload()
        assert refusal.value.code == -32004, what
        assert reason.startswith("exit code") or reason in refusal.value.data["traceback"]
        status = server.status()
        assert (status["state"], status["generation"]) == ("running", 1)
        assert not status["last_reload"]["ok"]
        assert reason in status["last_reload"]["error"]
        assert version(server) == "old"
    server.release("a")
    assert held.result() == (200, b"held a")
    program.edit("mended")
    assert server.reload()["generation"] == 2
    assert version(server) == "mended"


def test_a_program_that_is_gone_is_refused(start: Serve, program: Program) -> None:
    server = start()
    program.file.unlink()
    with server.client() as client, pytest.raises(ReloadFailed, match="No such file"):
        client.reload()
    assert version(server) == "old"


def test_a_program_that_does_not_come_to_serving_is_refused_in_time(start: Serve, program: Program) -> None:
    server = start(env={"FLASK_CTL_PREFLIGHT_TIMEOUT": "1"})
    program.edit("new", "threading.Event().wait()")
    with server.client() as client, pytest.raises(ReloadFailed, match="did not get ready to serve within 1 s"):
        client.reload()
    assert version(server) == "old"
    assert not psutil.Process(server.pid).children()


def test_the_command_line_shows_the_traceback_and_exits_with_7(start: Serve, program: Program) -> None:
    server = start()
    program.edit("new", "1 / 0")
    result = run_cli("reload", "--socket", server.socket)
    assert result.returncode == 7
    assert "Traceback" in result.stderr
    assert "The old code still serves" in result.stderr
    assert result.stdout == ""
    document = json.loads(run_cli("reload", "--socket", server.socket, "--json").stdout)
    assert document["exit"] == 7
    assert "ZeroDivisionError" in document["error"]["data"]["traceback"]


def test_an_image_that_dies_after_all_is_never_a_success(start: Serve, program: Program) -> None:
    server = start()
    program.edit("new", "import flask_ctl\nif not flask_ctl.preflighting: sys.exit(5)")
    with server.client() as client, pytest.raises(ServerDied):
        client.reload()
    assert server.wait() == 5


@pytest.mark.full
def test_on_the_command_line_that_is_exit_code_6(start: Serve, program: Program) -> None:
    server = start()
    program.edit("new", "1 / 0")
    assert run_cli("reload", "--no-preflight", "--socket", server.socket).returncode == 6
    assert server.wait() == 1


def test_who_has_sent_half_a_request_is_answered_by_the_old_code_and_who_only_connected_by_the_new(
    start: Serve, program: Program
) -> None:
    server = start()
    address = server.address
    with (
        socket.create_connection(address, timeout=TIMEOUT) as half,
        socket.create_connection(address, timeout=TIMEOUT) as silent,
    ):
        half.sendall(b"GET /version HT")
        program.edit("new")
        reload = Pending.call(lambda: server.reload())
        until(lambda: server.status()["state"] == "reloading", "reloading")
        half.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(half).endswith(b"old")
        assert reload.result()["generation"] == 2
        silent.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(silent).endswith(b"new")


@pytest.mark.parametrize("mode", first_quick(["app.run unthreaded", "app.run"]))
def test_a_connection_that_never_sends_a_byte_is_handed_on(start: Serve, program: Program, mode: str) -> None:
    server = start(mode)
    with socket.create_connection(server.address, timeout=TIMEOUT) as silent:
        for generation in (2, 3):
            assert server.reload()["generation"] == generation
        silent.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(silent).endswith(b"old")


def test_a_custom_command_in_flight_is_waited_for(start: Serve, program: Program) -> None:
    server = start()
    command = Pending.call(lambda: server.call("wait_for", name="a"))
    until(lambda: "waits for a" in server.lines, "the command")
    reload = Pending.call(lambda: server.reload())
    until(lambda: server.status()["state"] == "reloading", "reloading")
    server.release("a")
    assert command.result() == "a"
    assert reload.result()["generation"] == 2


def test_past_the_grace_nothing_has_happened_or_the_rest_is_cut_where_that_was_asked_for(
    start: Serve, program: Program
) -> None:
    server = start()
    held = server.begin("/hold/a")
    program.edit("new")
    with server.client() as client, pytest.raises(TimedOut, match="1 still in flight") as caught:
        client.reload(grace=0.1)
    [request] = caught.value.data["requests"]
    assert (request["method"], request["route"], request["worker"]) == ("GET", "/hold/<name>", server.pid)
    assert server.status()["state"] == "running"
    assert version(server) == "old"
    late = run_cli("reload", "--grace", "0.1", "--socket", server.socket)
    assert late.returncode == 4
    assert "In the way: GET /hold/<name> for " in late.stderr
    server.release("a")
    assert held.result() == (200, b"held a")
    held = server.begin("/hold/b")
    result = run_cli("reload", "--grace", "0.1", "--cut", "--json", "--socket", server.socket)
    assert result.returncode == 6
    assert json.loads(result.stdout)["cut"] == 1
    assert version(server) == "new"
    with pytest.raises(OSError):  # noqa: PT011
        held.result()


def test_a_request_in_the_main_thread_is_cut_and_the_program_does_not_go_on_behind_the_server(
    start: Serve, program: Program
) -> None:
    server = start("app.run unthreaded")
    address = server.address
    with socket.create_connection(address, timeout=TIMEOUT) as parked:
        assert server.get("/") == (200, b"hello")
        held = server.begin("/hold/a")
        with socket.create_connection(address, timeout=TIMEOUT) as in_backlog:
            for waiting in (parked, in_backlog):
                waiting.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            program.edit("new")
            assert server.reload(grace=0.1, cut=True)["cut"] == 1
            assert read_all(parked).endswith(b"new")
            assert read_all(in_backlog).endswith(b"new")
    with pytest.raises(OSError):  # noqa: PT011
        held.result()
    assert server.lines.count("on_stop") == 1
    assert "after run" not in server.lines


def test_edits_of_the_same_size_in_the_same_second_are_seen(start: Serve, program: Program) -> None:
    """In a module that is imported, so that bytecode is kept of it."""
    program.edit("old", "import part\nVERSION = part.VERSION")
    part = program.directory / "part.py"
    part.write_text("VERSION = 'a0'\n")
    server = start(env={"PYTHONDONTWRITEBYTECODE": ""})
    for number in range(1, 3):
        part.write_text(f"VERSION = 'a{number}'\n")
        os.utime(part, ns=(10**18, 10**18 + number))
        server.reload()
        assert version(server) == f"a{number}"


START = """
import os, sys, json
app.add_url_rule("/start", "start", lambda: json.dumps({
    "argv": sys.argv, "options": sys._xoptions, "marker": os.environ.get("MARKER"), "extra": os.environ.get("EXTRA"),
    "cwd": os.getcwd(), "mask": [*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))],
    "handover": os.environ.get("FLASK_CTL_HANDOVER"), "stdin": os.fstat(0).st_ino}))
os.environ["EXTRA"] = "set by the program"
os.environ["MARKER"] = "changed by the program"
os.chdir("/")
app.run(port=0)
"""


def test_what_the_program_was_started_with_stays(serve: Serve, program: Program) -> None:
    code = "import os, json, signal\nfrom sample import *\nbefore = dict(os.environ)\n" + START.replace(
        'os.environ.get("MARKER")', 'before.get("MARKER")'
    ).replace('os.environ.get("EXTRA")', 'before.get("EXTRA")')
    command = [sys.executable, "-X", "marker=1", "-c", code, "an argument"]
    server = serve(command=command, cwd=program.directory, env={"MARKER": "of the start"})
    before = json.loads(server.get("/start")[1])
    server.reload()
    after = json.loads(server.get("/start")[1])
    assert before == after
    assert after["argv"] == ["-c", "an argument"]
    assert after["options"] == {"marker": "1"}
    assert after["marker"] == "of the start"
    assert after["extra"] is after["handover"] is None
    assert after["mask"] == []


def test_the_old_image_ends_like_any_program(serve: Serve, program: Program) -> None:
    code = """
import atexit, threading
atexit.register(print, "registered first")
import sample
threading.Thread(target=sample.gates["end"].wait, name="waits").start()
atexit.register(sample.gates["end"].set)
try:
    sample.app.run(port=0)
finally:
    sample.gates["end"].set()
    print("finally")
"""
    server = serve(command=[sys.executable, "-c", code], cwd=program.directory)
    server.reload()
    assert [line for line in server.lines if line in ("on_stop", "finally", "atexit", "registered first")] == [
        "on_stop",
        "finally",
        "atexit",
        "registered first",
    ]


def test_the_config_is_reloaded_by_hooks_in_the_serving_process(start: Serve) -> None:
    server = start()
    result = run_cli("reload", "--config", "--json", "--socket", server.socket)
    assert result.returncode == 0
    assert json.loads(result.stdout)["generation"] == 1
    assert server.lines.count("on_reload") == 1


def test_a_reload_hook_that_fails_is_told_and_the_others_run(start: Serve, program: Program) -> None:
    program.edit("old", "control.on_reload(lambda: 1 / 0)")
    server = start()
    result = run_cli("reload", "--config", "--socket", server.socket)
    assert result.returncode == 1
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "on_reload" in server.lines


IMPOSSIBLE = {
    "in a thread of a bigger program": (
        "import threading, sample\nfrom werkzeug.serving import make_server\n"
        "t = threading.Thread(target=make_server('127.0.0.1', 0, sample.app).serve_forever)\nt.start(); t.join()",
        "bigger program",
    ),
    "TLS": ("import sample; sample.app.run(port=0, ssl_context='adhoc')", "TLS"),
    "processes": ("import sample; sample.app.run(port=0, threaded=False, processes=4)", "processes"),
}


@pytest.mark.parametrize(("code", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_where_it_cannot_be_done_the_reason_is_told(start: Serve, code: str, reason: str) -> None:
    server = start(command=[*PYTHON, "-c", code])
    with server.client() as client, pytest.raises(CommandError, match=reason) as refusal:
        client.reload()
    assert refusal.value.code == -32001
    assert server.status()["state"] == "running"


def test_a_program_from_standard_input_cannot_be_started_again(start: Serve) -> None:
    server = start(command=[*PYTHON, "-"], stdin=subprocess.PIPE, ready=False)
    stdin = server.process.stdin
    assert stdin is not None
    stdin.write(b"import sample\nsample.app.run(port=0)\n")
    stdin.close()
    server.ready()
    with server.client() as client, pytest.raises(CommandError, match="standard input"):
        client.reload()


def test_during_a_stop_a_reload_is_refused(start: Serve) -> None:
    server = start()
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    with server.client() as client, pytest.raises(CommandError) as refusal:
        client.reload()
    assert refusal.value.code == -32002
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"


@pytest.mark.full
def test_a_second_reload_is_refused(start: Serve) -> None:
    server = start()
    held = server.begin("/hold/a")
    first = Pending.call(lambda: server.reload())
    until(lambda: server.status()["state"] == "reloading", "reloading")
    with server.client() as client, pytest.raises(CommandError) as refusal:
        client.reload()
    assert refusal.value.code == -32002
    server.release("a")
    assert held.result() == (200, b"held a")
    assert first.result()["generation"] == 2


@pytest.mark.parametrize("phase", first_quick(["drain", "preflight"]))
def test_a_stop_calls_the_reload_off(start: Serve, program: Program, phase: str) -> None:
    server = start()
    program.edit("new", "threading.Event().wait()" if phase == "preflight" else "")
    held = server.begin("/hold/a")
    seen: list[Any] = []
    reload = Pending.call(lambda: server.reload(on_progress=seen.append))
    until(lambda: any(progress["phase"] == phase for progress in seen), phase)
    stop = Pending.call(lambda: server.client().stop())
    with pytest.raises(CommandError, match="called off by a stop") as refusal:
        reload.result()
    assert refusal.value.code == -32002
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.full
def test_a_stop_after_the_point_of_no_return_is_done_by_the_new_image(
    serve: Serve, program: Program, short_path: pathlib.Path
) -> None:
    """The old image's exit is held up by a pipe, and meanwhile a stop is asked for."""
    fifo = short_path / "fifo"
    os.mkfifo(fifo)
    code = f"""
import atexit, os, sample
if not os.path.exists({str(short_path / "held")!r}):
    def hold():
        open({str(short_path / "held")!r}, "w").close()
        open({str(fifo)!r}).read()
    atexit.register(hold)
sample.app.run(port=0)
"""
    server = serve(command=[sys.executable, "-c", code], cwd=program.directory)
    program.edit("new")
    reload = Pending.call(lambda: server.reload())
    until((short_path / "held").exists, "the old image is at its exit")
    stop = Pending.call(lambda: server.client().stop())
    fifo.write_bytes(b"")
    assert reload.result()["generation"] == 2
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0
    assert server.lines.count("on_stop") == 2


def test_hup_reloads_where_no_terminal_would_send_it_and_with_broken_code_changes_nothing(
    start: Serve, program: Program
) -> None:
    server = start()
    program.edit("new", "1 / 0")
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: server.status()["last_reload"], "the failure")
    until(lambda: "ZeroDivisionError" in server.output, "the log, which another thread writes")
    assert version(server) == "old"
    program.edit("new")
    os.kill(server.pid, signal.SIGHUP)
    # The next image answers before it serves, and the reload is over when it does.
    until(lambda: (status := server.status())["generation"] == 2 and status["last_reload"], "the next generation")
    assert server.status()["last_reload"]["by"] == {"signal": "SIGHUP"}
    assert version(server) == "new"


@pytest.mark.full
@pytest.mark.parametrize("mode", first_quick(["app.run", "flask run --debug"]))
def test_refusals_and_reloads_under_load_lose_nothing(start: Serve, program: Program, mode: str) -> None:
    """Every answer is whole, and of a generation that was serving while it was asked for."""
    server = start(mode)
    address = server.address
    stop: list[bool] = []
    loads = [Pending.call(lambda: _load(address, stop)) for _ in range(3)]
    for number in range(2, 6):
        broken = number == 4
        program.edit(f"v{number}", "1 / 0" if broken else "")
        with contextlib.suppress(ReloadFailed), ControlClient(server.socket) as client:
            client.reload()
            assert not broken
    stop.append(True)
    versions = [load.result() for load in loads]
    assert all(len(seen) > 20 for seen in versions)
    for seen in versions:
        numbers = [int(text[1:]) for text in seen if text != "old"]
        assert numbers == sorted(numbers), "an answer by code that had been replaced"
    assert server.status()["generation"] == 4


def _load(address: tuple[str, int], stop: list[bool]) -> list[str]:
    """The versions that answered, one connection each; whatever is not a whole answer is raised."""
    versions = []
    while not stop:
        with socket.create_connection(address, timeout=TIMEOUT) as sock:
            sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            head, _, body = read_all(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert body, head
        versions.append(body.decode())
    return versions
