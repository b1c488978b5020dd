"""The hub: who may be one, when it ends, and what the workers tell it. Real processes, no HTTP server."""

from __future__ import annotations

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from harness import TIMEOUT, Child, Pending, raw, until
from manyworkers import hubs_of, is_alive, kill

from flask_ctl import CommandError, ControlClient, RemoteProtocolError
from flask_ctl.protocol.typed import from_json
from flask_ctl.system.processes import open_process
from flask_ctl.workers import messages
from flask_ctl.workers.agent.spawn import private_path, start_hub
from flask_ctl.workers.hub.table import Worker, Workers
from flask_ctl.workers.messages import AppRecord, Figures, Hello, Loaded, SavedHistory, SavedState, Tally, Welcome


@pytest.fixture
def hubs(short_path: pathlib.Path) -> Iterator[Callable[[], list[psutil.Process]]]:
    """The hubs of this test; they have to end with their masters."""
    yield lambda: hubs_of(short_path)
    until(lambda: not hubs_of(short_path), lambda: f"the end of {hubs_of(short_path)}")


@pytest.fixture
def master(hubs: Callable[[], list[psutil.Process]]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a master, and ends with the test."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def path(master: subprocess.Popen[bytes]) -> str:
    return private_path(master.pid)


@pytest.fixture
def socket_path(short_path: pathlib.Path) -> str:
    return str(short_path / "app.sock")


def app(socket_path: str, **changes: Any) -> AppRecord:
    fields = {
        "key": socket_path, "name": "sample", "root_path": "/srv", "endpoints": [socket_path], "required": False,
        "grace": 30.0, "preflight_timeout": 60.0, "versions": {"flask_ctl": "0.1.0"}, "commands": {},
        "policy": {"allow": {}, "tcp_operate": False}, "limits": {}, "curve": {},
    }  # fmt: skip
    record: AppRecord = from_json(AppRecord, {**fields, **changes})
    return record


def hello(socket_path: str, master: int = 1, pid: int | None = None, **changes: Any) -> Hello:
    record = app(socket_path)
    fields: dict[str, Any] = {
        "package": _version(), "pid": pid or os.getpid(), "master": master, "loaded": Loaded(1, time.monotonic()),
        "wanted": 1, "cwd": "/srv", "server": {"name": "test", "version": "1", "listeners": []},
        "signals": {"stop": signal.SIGTERM, "fast": signal.SIGKILL, "reload": signal.SIGHUP},
        "drains_by_itself": True, "obstacle": None, "apps": [record], "figures": Figures({record.key: Tally()}),
    }  # fmt: skip
    return Hello(**{**fields, **changes})


def _version() -> str:
    from importlib.metadata import version

    return version("flask_ctl")


class TestWorker:
    """A worker's end of the private socket, in this process."""

    __test__ = False

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rwb")

    def close(self) -> None:
        self._file.close()

    def say(self, greeting: Hello) -> Any:
        self.send(messages.request("hello", messages.as_json(greeting), messages.HELLO_ID))
        return self.hear()

    def send(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def hear(self) -> Any:
        """The next message."""
        return json.loads(self._file.readline())

    def until(self, method: str) -> Any:
        """The next request for `method`; questions for figures before it are answered."""
        while (message := self.hear()).get("method") != method:
            if message.get("method") == "figures":
                self.send(messages.answer(message["id"], messages.as_json(Figures())))
        return message


def _listens(path: str) -> bool:
    try:
        with raw(path):
            pass
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


@pytest.fixture
def worker(
    master: subprocess.Popen[bytes], path: str, hubs: Callable[[], list[psutil.Process]]
) -> Iterator[TestWorker]:
    """A worker that is connected to a hub."""
    start_hub(path, master.pid)
    until(lambda: _listens(path), "the hub listens")
    with raw(path) as sock:
        worker = TestWorker(sock)
        yield worker
        worker.close()


def test_only_one_becomes_the_hub(
    master: subprocess.Popen[bytes], path: str, hubs: Callable[[], list[psutil.Process]]
) -> None:
    for _ in range(4):
        start_hub(path, master.pid)
    until(lambda: os.path.exists(path), "the hub listens")
    start_hub(path, master.pid)
    assert len(hubs()) == 1


def test_it_is_nobodys_child_leads_no_session_and_ignores_what_ends_others(
    master: subprocess.Popen[bytes], path: str, hubs: Callable[[], list[psutil.Process]]
) -> None:
    start_hub(path, master.pid)
    until(lambda: _listens(path), "the hub listens")
    [hub] = hubs()
    assert hub.ppid() != os.getpid()
    assert os.getsid(hub.pid) not in (hub.pid, os.getsid(0))
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        hub.send_signal(signum)
    with raw(path) as sock:
        worker = TestWorker(sock)
        assert "result" in worker.say(hello(path + ".app", master.pid))
        worker.close()


def test_it_keeps_no_descriptor_of_who_started_it(
    master: subprocess.Popen[bytes], path: str, hubs: Callable[[], list[psutil.Process]], tmp_path: pathlib.Path
) -> None:
    with open(tmp_path / "inherited", "w") as file:
        os.set_inheritable(file.fileno(), True)
        start_hub(path, master.pid)
    until(lambda: os.path.exists(path), "the hub listens")
    [hub] = hubs()
    targets = [os.readlink(f"/proc/{hub.pid}/fd/{number}") for number in os.listdir(f"/proc/{hub.pid}/fd")]
    assert str(tmp_path / "inherited") not in targets


def test_it_ends_with_the_master_and_leaves_nothing(
    master: subprocess.Popen[bytes],
    path: str,
    hubs: Callable[[], list[psutil.Process]],
    socket_path: str,
    worker: TestWorker,
) -> None:
    worker.say(hello(socket_path, master.pid))
    assert os.path.exists(socket_path)
    kill(master.pid)
    until(lambda: not hubs(), "the end of the hub")
    assert not os.path.exists(socket_path)
    assert not os.path.exists(path)
    assert not os.path.exists(path + ".lock")


def test_it_does_not_start_for_another_process_with_the_pid_of_the_master(
    master: subprocess.Popen[bytes], path: str, hubs: Callable[[], list[psutil.Process]]
) -> None:
    command = [sys.executable, "-m", "flask_ctl.hub", path, str(master.pid), "1"]
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT)
    try:
        done = subprocess.run(
            ["sh", "-c", 'exec 3<&0; exec "$@"', "sh", *command], stdin=lock, capture_output=True, timeout=TIMEOUT
        )
    finally:
        os.close(lock)
    assert (done.returncode, done.stderr) == (0, b"")
    until(lambda: not hubs(), "the end of the hub")


def test_the_hub_knows_neither_flask_nor_the_app() -> None:
    code = """
import sys, flask_ctl.hub, flask_ctl.workers.hub.hub, flask_ctl.workers.hub.main
names = ("flask", "werkzeug", "jinja2", "click", "gunicorn", "gevent", "granian", "zmq")
print([name for name in names if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_worker_that_claims_another_pid_is_refused(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    assert "says that it is 1" in worker.say(hello(socket_path, master.pid, pid=1))["error"]["message"]
    assert not os.path.exists(socket_path)


@pytest.mark.parametrize("line", [b"{}\n", b"[]\n", b'{"method": "report"}\n', b'{"method": "hello", "id": 0}\n'])
def test_what_makes_no_sense_is_refused_and_the_hub_goes_on(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str, line: bytes
) -> None:
    if line != b"{}\n":
        worker.send(line)
        assert "error" in worker.hear()
    assert "result" in worker.say(hello(socket_path, master.pid))


def test_status_and_commands_before_any_request(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    worker.say(hello(socket_path, master.pid, apps=[app(socket_path, commands={"greet": {"summary": "Greet."}})]))
    with ControlClient(socket_path) as client:
        assert client.ping()["pid"] == master.pid
        assert client.commands()["greet"]["summary"] == "Greet."


def test_a_worker_that_is_silent_does_not_hold_up_status(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    worker.say(hello(socket_path, master.pid, figures=Figures({socket_path: Tally(1, 2.0, 3, 4)})))
    with ControlClient(socket_path) as client:
        status = client.status()
    assert (status["requests"]["in_flight"], status["requests"]["total"], status["requests"]["errors"]) == (1, 3, 4)
    assert status["workers"][0]["last_seen"] > 0


@pytest.fixture
def silent(
    master: subprocess.Popen[bytes], path: str, hubs: Callable[[], list[psutil.Process]], socket_path: str
) -> Iterator[Child]:
    """A worker that has said hello to its hub, and nothing else."""
    start_hub(path, master.pid)
    until(lambda: _listens(path), "the hub listens")
    process = Child(sys.executable, "-c", WORKER, path)
    greeting = hello(socket_path, master.pid, process.pid, drains_by_itself=False)
    process.say(messages.request("hello", messages.as_json(greeting), messages.HELLO_ID).decode().rstrip())
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_stop_reaches_a_master_whose_workers_have_all_ended(
    silent: Child, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    silent.kill()
    silent.wait()
    with ControlClient(socket_path) as client:
        until(lambda: not client.status()["workers"], "the worker has ended")
        assert client.stop()["outcome"] == "drained"
    assert master.wait(TIMEOUT) == -signal.SIGTERM


@pytest.mark.full
def test_what_a_silent_worker_does_is_not_said_to_be_done(
    silent: Child, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    with ControlClient(socket_path) as client:
        result = client.stop(grace=1.0)
    assert (result["outcome"], result["cut"]) == ("forced", 1)
    assert (master.wait(TIMEOUT), silent.wait(TIMEOUT)) == (-signal.SIGTERM, -signal.SIGKILL)


WORKER = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(sys.stdin.buffer.readline())
sys.stdout.buffer.write(sock.recv(65536))
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_worker_that_reads_slowly_misses_nothing(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    commands = {"take": {"summary": "", "scope": "each", "role": "operate", "parameters": {}}}
    worker.say(hello(socket_path, master.pid, apps=[app(socket_path, commands=commands)]))
    with ControlClient(socket_path, timeout=TIMEOUT) as client:
        calls = [Pending.call(lambda: call(socket_path)) for _ in range(4)]
        seen = [worker.until("call") for _ in calls]
        for message in seen:
            worker.send(messages.answer(message["id"], len(message["params"]["params"]["text"])))
        assert [pending.result() for pending in calls] == [[{"pid": os.getpid(), "result": 300_000}]] * 4
        assert client.ping()["pong"]


def call(socket_path: str) -> Any:
    with ControlClient(socket_path, timeout=TIMEOUT) as client:
        return client.call("take", text="x" * 300_000)


def test_what_is_too_large_for_the_way_to_a_worker_is_refused(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    commands = {"take": {"summary": "", "scope": "each", "role": "operate", "parameters": {}}}
    worker.say(hello(socket_path, master.pid, apps=[app(socket_path, commands=commands)]))
    request = {"jsonrpc": "2.0", "id": 1, "method": "take", "params": {"text": "ü" * 300_000}}
    with raw(socket_path) as sock, sock.makefile("rwb") as file:
        file.write(json.dumps(request, ensure_ascii=False).encode() + b"\n")
        file.flush()
        assert "1048576 is the most" in json.loads(file.readline())["error"]["message"]


def test_an_address_that_cannot_be_used_is_told_to_the_worker_and_tried_again(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str
) -> None:
    from flask_ctl.transports.socketfile import SocketFile

    other = SocketFile(socket_path)
    listener = other.acquire()
    try:
        welcome = from_json(Welcome, worker.say(hello(socket_path, master.pid))["result"])
        assert welcome.first
        assert f"in use by pid {os.getpid()}" in welcome.problems[0]
        assert welcome.endpoints == []
    finally:
        listener.close()
        other.release()
    until(lambda: os.path.exists(socket_path), "the address is taken when it is free")
    assert worker.until("listening")["params"] == {"endpoints": [socket_path]}


def test_a_new_version_takes_the_place_of_an_old_hub_which_leaves_what_it_knew(
    master: subprocess.Popen[bytes],
    path: str,
    hubs: Callable[[], list[psutil.Process]],
    worker: TestWorker,
    socket_path: str,
) -> None:
    worker.say(hello(socket_path, master.pid))
    [old] = hubs()
    with raw(path) as sock:
        newer = TestWorker(sock)
        newer.say(hello(socket_path, master.pid, package="99", loaded=Loaded(1, time.monotonic() + 1)))
        until(lambda: not is_alive(old.pid), "the end of the old hub")
        newer.close()
    start_hub(path, master.pid)
    until(lambda: _listens(path), "the next hub listens")
    with raw(path) as sock:
        again = TestWorker(sock)
        history = {"generation": 7, "reloaded_at": None, "last_reload": None}
        state = {"number": 3, "totals": {socket_path: [100, 5]}, "history": history}
        again.say(hello(socket_path, master.pid, saved_state=state))
        with ControlClient(socket_path) as client:
            status = client.status()
            assert (status["generation"], status["requests"]["total"], status["requests"]["errors"]) == (7, 100, 5)
        again.close()


def test_an_old_worker_does_not_replace_a_new_hub(
    worker: TestWorker, master: subprocess.Popen[bytes], socket_path: str, hubs: Callable[[], list[psutil.Process]]
) -> None:
    worker.say(hello(socket_path, master.pid, package="0.0.1", loaded=Loaded(1, 0.0)))
    with ControlClient(socket_path) as client:
        assert client.ping()["pong"]
    assert len(hubs()) == 1


# The table of workers


def entry(pid: int, **changes: Any) -> Worker:
    # The handle is this process's: its end is no matter here.
    process = open_process(os.getpid())
    assert process is not None
    return Worker(hello("x", pid=pid, **changes), process, lambda line: None, 1)


def test_totals_of_workers_that_have_ended_stay() -> None:
    workers = Workers()
    one, two = (entry(pid, figures=Figures({"x": Tally(1, 0.5, 10, 2)})) for pid in (11, 12))
    workers.add(one)
    workers.add(two)
    assert workers.tally("x") == Tally(2, 0.5, 20, 4)
    workers.remove(one)
    assert workers.tally("x") == Tally(1, 0.5, 20, 4)
    assert workers.lost == 1
    two.final = True
    workers.remove(two)
    assert workers.tally("x") == Tally(0, None, 20, 4)
    assert workers.lost == 2, "what is in flight at its last words will not be answered"


def test_a_request_that_is_not_taken_in_or_not_answered_is_given_up() -> None:
    worker = entry(11)
    future = worker.ask(1, "call", {}, time.monotonic() - 1)
    worker.expire(time.monotonic())
    with pytest.raises(CommandError, match="does not answer"):
        future.result()
    taken = worker.ask(2, "call", {}, math.inf)
    worker.received(2)
    worker.expire(time.monotonic() + 1000)
    assert not taken.done()
    worker.close()
    with pytest.raises(CommandError, match="has ended"):
        taken.result()


def test_an_answer_to_what_was_given_up_is_nothing() -> None:
    worker = entry(11)
    worker.settle(99, {"result": 1})
    worker.close()


@pytest.mark.parametrize("value", [None, [], {}, {"pid": 1}, "x"])
def test_what_is_no_hello_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        from_json(Hello, value)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"number": "1", "totals": {}, "history": {"generation": 1}},
        {"number": 1, "totals": [], "history": {"generation": 1}},
        {"number": 1, "totals": {"x": [1]}, "history": {"generation": 1}},
        {"number": 1, "totals": {"x": [1, None]}, "history": {"generation": 1}},
        {"number": 1, "totals": {}, "history": {}},
        {"number": 1, "totals": {}, "history": {"generation": None}},
    ],
)
def test_what_is_no_saved_state_is_a_protocol_error(state: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        from_json(Hello, json.loads(json.dumps({**messages.as_json(hello("x")), "saved_state": state})))


def test_fields_of_a_saved_state_that_are_unknown_are_ignored() -> None:
    state = {"number": 1, "totals": {}, "history": {"generation": 2, "began": 0.0, "_note": None}, "later": 1}
    remembered = from_json(
        Hello, json.loads(json.dumps({**messages.as_json(hello("x")), "saved_state": state}))
    ).saved_state
    assert remembered == SavedState(1, {}, SavedHistory(2))


def test_its_start_does_not_count_up_to_a_huge_limit_of_descriptors() -> None:
    """Where that is a billion, it would take minutes."""
    code = """
import os
from flask_ctl.workers.hub.main import close_above
os.sysconf = os.closerange = None
os.dup2(1, 700)
close_above(2)
print(os.listdir("/proc/self/fd"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr) == ("['0', '1', '2', '3']\n", "")


def test_a_hello_survives_the_wire_with_what_a_later_version_adds() -> None:
    greeting = hello("x", saved_state=SavedState(1, {"x": (1, 2)}, SavedHistory(3)))
    value = json.loads(json.dumps({**messages.as_json(greeting), "later": 1}))
    assert from_json(Hello, value) == greeting


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("x" * 2_000_000, "1048576 is the most"),
        (CommandError("bad", data=object()), "not JSON"),
        (Unspeakable(), "its text can't be had"),
    ],
    ids=["too large", "data that is no JSON", "an exception without text"],
)
def test_whatever_a_command_ends_with_there_is_an_answer(result: CommandError | str | Unspeakable, text: str) -> None:
    assert text in json.loads(messages.answer(1, result))["error"]["message"]


def test_an_answer_that_is_no_json_is_an_error() -> None:
    assert "error" in json.loads(messages.answer(1, object()))
    assert json.loads(messages.answer(1, ValueError("no")))["error"]["message"] == "ValueError: no"
