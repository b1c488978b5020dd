"""flask-ctl: ping and status, the options that all commands share, output, and exit codes."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import APPS, Child, Done, Pending, Serve, Server, run_cli, until

STATUS = {
    "protocol": 2, "pid": 4242, "app": "later", "state": "running", "uptime": 1.0, "generation": 1, "cwd": "/",
    "server": {"name": "werkzeug", "version": "9", "listeners": []}, "versions": {}, "stopping": None,
    "requests": {"in_flight": 0, "oldest": None, "total": 0, "errors": 0},
    "process": {"rss": 1, "cpu": 0.0, "threads": 1, "fds": 1},
}  # fmt: skip
STOPPED = {"outcome": "drained", "drained": 0, "cut": 0, "elapsed": 0.1, "pid": 4242, "embedded": True}
LATER = {"ping": {"pong": True, "protocol": 2, "pid": 4242, "version": "9.9"}, "status": STATUS, "stop": STOPPED}


@contextlib.contextmanager
def listening(path: pathlib.Path, answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Something other than flask-ctl at a Unix socket, with `answer(line)` for each line; it closes after None."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve_lines, args=(listener, answer))
        thread.start()
        yield str(path)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def serve_lines(listener: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection = listener.accept()[0]
            # A client that has read enough may close before the last answer is sent.
            with contextlib.suppress(ConnectionError), connection, connection.makefile("rb") as lines:
                for line in lines:
                    connection.sendall(answer(line))
                    if b'"stop"' in line:
                        break


def later_version(line: bytes) -> bytes:
    """The answer of a server that speaks protocol 2."""
    request = json.loads(line)
    answer = {"jsonrpc": "2.0", "id": request["id"], "result": LATER[request["method"]]}
    return json.dumps(answer).encode() + b"\n"


def web_server(line: bytes) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\n\r\n"


def document(done: Done) -> Any:
    """The one JSON document on stdout."""
    return json.loads(done.stdout)


def test_ping_prints_who_answered(shared: Server) -> None:
    """One line for a person, with the pid, on stdout; nothing on stderr."""
    done = run_cli("ping", "--socket", shared.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pong from pid {shared.pid}")


def test_status_is_one_screen_or_the_servers_own_document(shared: Server) -> None:
    """The same figures for a person and for a program."""
    screen = run_cli("status", "--socket", shared.socket)
    assert f"running, pid {shared.pid}" in screen.stdout
    assert len(screen.stdout.splitlines()) < 24
    told = document(run_cli("status", "--json", "--socket", shared.socket))
    assert (told["pid"], told["app"], told["state"]) == (shared.pid, "sample", "running")


def test_options_stand_before_and_after_the_commands_name(shared: Server) -> None:
    """--socket, -s, --timeout, --json and --quiet work on either side, for our own and for the app's commands."""
    path = shared.socket
    for line in (
        ["--socket", path, "--timeout", "9", "--json", "--quiet", "ping"],
        ["ping", "--socket", path, "--timeout", "9", "--json", "--quiet"],
        ["-s", path, "--json", "ping", "-q"],
        ["--json", "ping", f"--socket={path}"],
    ):
        assert document(run_cli(*line))["pong"] is True, line
    for line in (
        ["-s", path, "--json", "greet", "--name", "x"],
        ["greet", "--name", "x", "--json", "-s", path],
        ["--json", "greet", "--socket", f"unix:{path}", "--name", "x"],
        ["call", "greet", "name=x", "-s", path, "--json"],
    ):
        assert document(run_cli(*line)) == {"greeting": "hello x"}, line


def test_the_option_after_the_name_wins(shared: Server) -> None:
    """Of two sockets the nearer one is meant."""
    assert run_cli("-s", "/nowhere", "ping", "-s", shared.socket).returncode == 0


def test_the_environment_names_the_socket_and_the_option_wins(shared: Server) -> None:
    """FLASK_CTL_SOCKET is used without --socket, one address or a JSON list."""
    path = shared.socket
    assert run_cli("ping", env={"FLASK_CTL_SOCKET": path}).returncode == 0
    assert run_cli("ping", env={"FLASK_CTL_SOCKET": json.dumps([path])}).returncode == 0
    assert run_cli("ping", "-s", path, env={"FLASK_CTL_SOCKET": "/nowhere"}).returncode == 0


def test_quiet_ping_prints_nothing(shared: Server) -> None:
    """Its exit code is the answer."""
    done = run_cli("ping", "--quiet", "-s", shared.socket)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


USAGE_ERRORS = [
    ["--json"],
    ["ping", "--nonsense"],
    ["ping", "superfluous"],
    ["ping", "--timeout", "soon"],
    ["ping", "--timeout", "-1"],
    ["ping", "--timeout", "nan"],
    ["ping", "--wait", "inf"],
    ["ping", "--socket"],
    ["ping", "--socket", ""],
    ["ping", "--socket", "off"],
    ["ping", "--socket", "carrier-pigeon:x"],
    ["ping", "--socket", "/" + "x" * 108],
    ["stop", "--mode", "gently"],
    ["stop", "--grace", "-1"],
    ["stop", "--delay", "x"],
    ["stop", "--no-wait", "--kill-after", "1"],
    ["call"],
    ["call", "greet", "name"],
    ["call", "greet", "=x"],
    ["run", "--server", "nonsense"],
    ["run", "--port", "65536"],
    ["run", "--threads", "0"],
    ["run", "--app", "no_such_module"],
]


@pytest.mark.parametrize("arguments", USAGE_ERRORS, ids=" ".join)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    """A message on stderr, nothing on stdout, no traceback."""
    done = run_cli(*arguments)
    if "--json" in arguments:
        assert document(done)["exit"] == 2
    else:
        assert done.stdout == ""
        assert done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_off_is_no_target() -> None:
    """`off`, as option or in the environment, is exit 2 and says what to do."""
    for done in (run_cli("stop", "-s", "off"), run_cli("stop", env={"FLASK_CTL_SOCKET": "off"})):
        assert done.returncode == 2
        assert "give one by --socket" in done.stderr


def test_an_unknown_command_is_exit_2(shared: Server) -> None:
    """Neither flask-ctl nor the app has it."""
    done = run_cli("nonsense", "-s", shared.socket)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no command 'nonsense'" in done.stderr


def test_what_the_server_refuses_is_exit_1(shared: Server) -> None:
    """Its message goes to stderr: a command that raises, a method that it lacks."""
    path = shared.socket
    failed = run_cli("fail", "--message", "out of paint", "-s", path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "ValueError: out of paint" in failed.stderr
    lacking = run_cli("call", "nonsense", "-s", path)
    assert lacking.returncode == 1
    assert "greet" in lacking.stderr


def test_nothing_there_is_exit_3_with_the_path(short_path: pathlib.Path) -> None:
    """No socket, a path through a file, a socket that nobody serves."""
    stale = short_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    plain = short_path / "plain"
    plain.touch()
    for path in (short_path / "missing", plain / "below", stale):
        done = run_cli("status", "-s", str(path))
        assert (done.returncode, done.stdout) == (3, ""), path
        assert str(path) in done.stderr
        assert "--socket" in done.stderr
        told = document(run_cli("status", "--json", "-s", str(path)))
        assert told["error"]["data"] == {"tried": [str(path)]}


def test_a_server_that_does_not_answer_is_exit_4(serve: Serve) -> None:
    """A stopped process is still there; --timeout says how long to wait, also to ask for the app's own commands."""
    server = serve()
    server.suspend()
    for command in (["ping"], ["status"], ["stop"], ["greet", "--name", "x"], ["call", "greet", "name=x"]):
        done = run_cli(*command, "-s", server.socket, "--timeout", "0.2")
        assert (done.returncode, done.stdout) == (4, ""), command
        assert "still there" in done.stderr
    assert run_cli("ping", "-s", server.socket, "--timeout", "0").returncode == 4


def test_ping_wait_is_exit_3_if_nothing_ever_listened() -> None:
    """It tries for as long as it may."""
    done = run_cli("ping", "--wait", "0.2", "-s", "/nowhere/app.sock")
    assert done.returncode == 3
    assert "/nowhere/app.sock" in done.stderr


def test_ping_wait_is_exit_4_if_it_stayed_silent(serve: Serve) -> None:
    """Something listened, but said nothing."""
    server = serve().suspend()
    assert run_cli("ping", "--wait", "0.3", "-s", server.socket).returncode == 4
    assert run_cli("ping", "--wait", "0.3", "--timeout", "0.1", "-s", server.socket).returncode == 4


def test_ping_wait_returns_when_the_server_is_up(serve: Serve, short_path: pathlib.Path) -> None:
    """Begun before the server, it answers once the server does."""
    waiting = Pending.call(lambda: run_cli("ping", "--json", "--wait", "30", "-s", str(short_path / "0.sock")))
    server = serve()
    done = waiting.result()
    assert (done.returncode, document(done)["pid"]) == (0, server.pid)


AS_NOBODY = """
import os
from harness import import_client
from flask_ctl_cli import main
import_client()
os.setuid(65534)
main()
"""


def run_as_nobody(*arguments: str) -> Done:
    env = {**os.environ, "PYTHONPATH": str(APPS.parent)}
    return subprocess.run([sys.executable, "-c", AS_NOBODY, *arguments], capture_output=True, text=True, env=env)


def test_a_socket_that_may_not_be_connected_to_is_exit_5(serve: Serve, short_path: pathlib.Path) -> None:
    """By the file's mode: root asks as user nobody, others take their own permission away."""
    path = serve().socket
    if os.geteuid() == 0:
        short_path.chmod(0o711)
        done = run_as_nobody("ping", "-s", path)
    else:
        os.chmod(path, 0)
        done = run_cli("ping", "-s", path)
    assert (done.returncode, done.stdout) == (5, "")
    assert f"{path}: permission denied; run as the user of the app" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_a_peer_that_the_server_refuses_is_exit_5(serve: Serve, short_path: pathlib.Path) -> None:
    """Whoever may connect may still not be the right user."""
    server = serve()
    short_path.chmod(0o711)
    os.chmod(server.socket, 0o666)
    done = run_as_nobody("stop", "--json", "-s", server.socket)
    assert done.returncode == document(done)["exit"] == 5
    assert document(done)["error"]["code"] == -32003
    assert server.status()["state"] == "running"


def test_what_is_no_control_socket_is_exit_8(short_path: pathlib.Path) -> None:
    """A web server behind the socket, for every command."""
    with listening(short_path / "web.sock", web_server) as path:
        for command in (["ping"], ["status"], ["stop"], ["call", "x"], ["x"], ["ping", "--wait", "0.1"]):
            done = run_cli(*command, "-s", path)
            assert (done.returncode, done.stdout) == (8, ""), command
            assert "address" in done.stderr


def test_an_answer_that_lacks_fields_is_exit_8(short_path: pathlib.Path) -> None:
    """JSON-RPC, but not ours."""
    with listening(short_path / "other.sock", lambda line: b'{"jsonrpc":"2.0","id":1,"result":{}}\n') as path:
        for command in ("ping", "status"):
            done = run_cli(command, "-s", path)
            assert (done.returncode, done.stdout) == (8, ""), command
            assert "Traceback" not in done.stderr


def test_a_higher_protocol_is_used_for_ping_status_and_stop_only(short_path: pathlib.Path) -> None:
    """They are frozen for ever; the rest is exit 8, naming both versions."""
    with listening(short_path / "later.sock", later_version) as path:
        for command in (["ping"], ["status"], ["stop"], ["call", "status"], ["call", "stop", "grace=1"]):
            assert run_cli(*command, "-s", path).returncode == 0, command
        for command in (["call", "greet", "name=x"], ["greet", "--name", "x"]):
            done = run_cli(*command, "-s", path)
            assert done.returncode == 8
            assert "protocol 2, this client 1" in done.stderr


JSON_FAILURES = {
    "usage": (["ping", "--nonsense", "--json"], 2),
    "usage, option first": (["--json", "stop", "--mode", "x"], 2),
    "target": (["ping", "--json", "-s", "off"], 2),
    "not running": (["stop", "--json", "-s", "/nowhere"], 3),
    "not running, custom": (["--json", "anything", "-s", "/nowhere"], 3),
    "not running, found nothing": (["status", "--json"], 3),
    "run, wrong server": (["run", "--json", "--server", "x"], 2),
    "run, no app": (["run", "--json", "--app", "no_such_module"], 2),
    "run, bad socket": (["run", "--json", "--app", "typed", "--port", "0", "--socket", "/nowhere/x"], 1),
}


@pytest.mark.parametrize("case", JSON_FAILURES)
def test_a_failure_is_one_json_document_too(case: str) -> None:
    """Code, message and data of the error, and the exit code, on stdout."""
    arguments, code = JSON_FAILURES[case]
    done = run_cli(*arguments, cwd=APPS)
    start = done.stdout.index("{")  # Flask's own banner comes before it.
    told = json.loads(done.stdout[start:])
    assert told["exit"] == done.returncode == code
    assert set(told) == {"error", "exit"}
    assert set(told["error"]) == {"code", "message", "data"}
    assert told["error"]["message"]


def test_a_servers_refusal_is_one_json_document_too(shared: Server) -> None:
    """With the code of the JSON-RPC error."""
    told = document(run_cli("--json", "fail", "-s", shared.socket))
    assert (told["exit"], told["error"]["code"], told["error"]["message"]) == (1, -32603, "ValueError: no")


def test_help_is_there_without_an_instance() -> None:
    """For the program and for each command, exit 0."""
    for line in (["--help"], ["ping", "--help"], ["stop", "--help"], ["call", "--help"], ["run", "--help"]):
        done = run_cli(*line)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: flask-ctl")
    assert {"call", "ping", "run", "status", "stop"} <= set(run_cli("--help").stdout.split())


def test_version_is_told() -> None:
    """`--version` prints it."""
    assert run_cli("--version").stdout.startswith("flask-ctl, version ")


def test_an_interrupted_client_exits_with_130_and_the_stop_goes_on(serve: Serve) -> None:
    """Ctrl-C ends the waiting, not what was asked for."""
    server = serve()
    held = server.begin("/hold/a")
    command = [sys.executable, "-m", "flask_ctl_cli", "stop", "-s", server.socket]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as client:
        until(lambda: server.status()["state"] == "stopping", "stopping")
        client.send_signal(signal.SIGINT)
        assert "continues with the command" in client.communicate()[1]
    assert client.returncode == 130
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


def test_a_reader_that_goes_away_is_no_traceback(shared: Server) -> None:
    """`flask-ctl status | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "flask_ctl_cli", "status", "-s", shared.socket]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


MODULES = """
import atexit, sys
before = set(sys.modules)
from flask_ctl_cli import main
atexit.register(lambda: print(*set(sys.modules) - before))
main()
"""


def test_ping_loads_no_heavy_module(shared: Server) -> None:
    """Neither the server's libraries, nor what alone costs as much as half of click."""
    command = [sys.executable, "-c", MODULES, "ping", "--quiet", "-s", shared.socket]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "flask_ctl.client.client" in loaded
    heavy = {"flask", "werkzeug", "zmq", "psutil", "importlib.metadata", "dataclasses", "logging", "asyncio", "ctypes"}
    heavy |= {"dotenv", "flask_ctl_cli.dotenv", "hashlib", "flask_ctl.protocol.text"}
    assert not heavy & loaded


# status again and again


CLI = (sys.executable, "-m", "flask_ctl_cli")


def test_a_watched_status_is_a_document_a_line_until_the_server_ends(serve: Serve) -> None:
    server = serve()
    with Child(*CLI, "status", "--watch", "0.1", "--json", "-s", server.socket) as client:
        for _ in range(3):
            assert json.loads(client.stdout.readline())["state"] == "running"
        server.reload()
        until(lambda: json.loads(client.stdout.readline())["generation"] == 2, "the new code")
        server.client().stop()
        rest = client.stdout.read()
    assert json.loads(rest[rest.index("{\n") :])["exit"] == client.returncode == 3


def test_a_stderr_that_can_not_be_written_keeps_no_command_from_being_done(serve: Serve) -> None:
    """As a log on a full disk."""
    server = serve()
    for words, code in ((["status", "-s", "/nowhere.sock"], 3), (["stop", "-s", server.socket], 0)):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*CLI, *words], stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
        assert done.returncode == code, words
    assert server.wait() == 0


def test_a_result_that_can_not_be_written_is_exit_1_with_the_reason(shared: Server) -> None:
    """As on a full disk."""
    for words in (["status"], ["status", "--json"], ["status", "--watch", "0.1"], ["help"], ["help", "6"]):
        with open("/dev/full", "w") as full:
            command = [*CLI, *words, "-s", shared.socket]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (
            1,
            "Error: the result can't be written to stdout: No space left on device\n",
        )
