"""`--kill-after`: which processes it ends, which it never touches, and where it is refused. Real processes."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest
from harness import PYTHON, TIMEOUT, Child, Done, Serve, Server, first_quick, run_cli, suspend, until
from holders import Holder
from manyworkers import hub, is_alive, kill, workers
from servers import SERVERS

from flask_ctl import AccessDenied, BackgroundServer, ConfigurationError, Control, ControlClient, TimedOut
from flask_ctl.client.methods import QUESTION_TIMEOUT

NOBODY = pwd.getpwnam("nobody").pw_uid
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="becoming another user and making a PID namespace take root; test_client_stop.py does not"
)

SYNC = SERVERS["gunicorn sync"]
FORMS = {"unix": "{}", "ipc": "ipc://{}"}


# Servers that lie

LIAR = """
import json, os, socket, sys
from flask_ctl.system import locks
path, uid, named, more = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
if uid != os.geteuid():
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
locks.take(lock, locks.SERVER)
exec(more)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
print("ready", flush=True)
workers = [{"pid": pid} for pid in named]
answers = {"ping": {"pong": True, "protocol": 1, "pid": named[0]}, "status": {"pid": named[0], "workers": workers}}
while True:
    with listener.accept()[0] as sock:
        for line in sock.makefile("rb"):
            asked = json.loads(line)
            print(asked["method"], flush=True)
            if asked["method"] in answers:
                answer = {"jsonrpc": "2.0", "id": asked["id"], "result": answers[asked["method"]]}
                sock.sendall(json.dumps(answer).encode() + b"\\n")
"""


Lie = Callable[..., tuple[str, Child]]
"""Starts a server that lies; its address and its process."""


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that has nothing to do with any server."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def lie(short_path: pathlib.Path, bystander: subprocess.Popen[bytes]) -> Iterator[Lie]:
    """Start a server that hangs in a stop, and says that the bystander is its master and its worker."""
    servers = []

    def start(uid: int | None = None, more: str = "") -> tuple[str, Child]:
        uid = os.geteuid() if uid is None else uid
        place = short_path / "place"
        place.mkdir(mode=0o700)
        os.chown(place, uid, -1)
        os.chmod(short_path, 0o711)
        path = str(place / "x.sock")
        servers.append(Child(sys.executable, "-c", LIAR, path, str(uid), json.dumps([bystander.pid]), more))
        assert servers[-1].stdout.readline() == "ready\n"
        return path, servers[-1]

    yield start
    for server in servers:
        server.kill()
        server.communicate()


USERS = [pytest.param(None, id="its own user"), pytest.param(NOBODY, id="another user", marks=needs_root)]


@pytest.mark.parametrize("uid", USERS)
def test_a_process_that_only_the_server_names_is_not_killed(
    lie: Lie, bystander: subprocess.Popen[bytes], uid: int | None
) -> None:
    path, server = lie(uid)
    with ControlClient(path, owner=uid) as client:
        result = client.stop(kill_after=0.1)
    assert (result["outcome"], result["pid"]) == ("killed", server.pid)
    assert server.wait(TIMEOUT) == -signal.SIGKILL
    assert bystander.poll() is None


@needs_root
def test_a_server_can_not_give_us_out_as_its_master(lie: Lie) -> None:
    """Its parent is of another user."""
    lies = "first = locks.hub_byte(os.getppid()); locks.take(lock, first); locks.take(lock, first + 2)"
    path, server = lie(NOBODY, lies)
    client = ControlClient(path, owner=NOBODY)
    with client, pytest.raises(ConfigurationError, match="belongs to another user"):
        client.stop(kill_after=0.1)
    assert server.poll() is None
    server.kill()
    assert server.stdout.read() == ""


def test_an_orphan_of_a_master_that_is_gone_does_not_bring_us_to_kill_who_took_it_in(
    lie: Lie,
) -> None:
    """Its parent is not the master that it had when it took the lock."""
    lies = "locks.take(lock, locks.hub_byte(99)); locks.take(lock, locks.hub_byte(99) + 2)"
    path, server = lie(None, lies)
    client = ControlClient(path)
    with client, pytest.raises(ConfigurationError, match="is not the master"):
        client.stop(kill_after=0.1)
    assert server.poll() is None


# Where it is refused, before anything is sent


def refused(server: Server, address: str, words: str, *options: str) -> None:
    """By the Python client and by the command line; the server goes on."""
    with ControlClient(address) as client, pytest.raises(ConfigurationError, match=words):
        client.stop(kill_after=0.1)
    done = run_cli("stop", "--kill-after", "0.1", "-s", address, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert server.status()["state"] == "running"


def test_over_tcp_nobody_is_killed(serve: Serve, free_port: int) -> None:
    server = serve(socket=f"tcp://127.0.0.1:{free_port}", env={"FLASK_CTL_TCP_OPERATE": "true"})
    refused(server, server.socket, "the kernel does not name its process there")


FORWARDER = """
import socket, sys, threading
def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
while True:
    near, far = listener.accept()[0], socket.socket(socket.AF_UNIX)
    far.connect(sys.argv[2])
    threading.Thread(target=copy, args=(near, far), daemon=True).start()
    threading.Thread(target=copy, args=(far, near), daemon=True).start()
"""


@pytest.fixture
def forward(short_path: pathlib.Path) -> Iterator[Callable[[str], str]]:
    """A path that another process forwards to a server's socket, as `ssh -L` does."""
    path = str(short_path / "forwarded.sock")
    processes = []

    def start(target: str) -> str:
        processes.append(Child(sys.executable, "-c", FORWARDER, path, target))
        assert processes[-1].stdout.readline() == "ready\n"
        return path

    yield start
    for process in processes:
        assert process.poll() is None
        process.kill()
        process.communicate()


def test_a_process_that_forwards_a_socket_is_not_killed(serve: Serve, forward: Callable[[str], str]) -> None:
    server = serve()
    refused(server, forward(server.socket), "may only forward a socket")


def test_a_stop_by_a_forwarded_socket_ends_with_the_connection(serve: Serve, forward: Callable[[str], str]) -> None:
    server = serve()
    with ControlClient(forward(server.socket)) as client:
        result = client.stop()
    assert (result["outcome"], result["pid"], result["proof"]) == ("drained", server.pid, "connection")
    assert server.wait() == 0


def test_a_server_does_not_kill_itself(short_path: pathlib.Path) -> None:
    from flask import Flask

    app = Flask("embedded")
    Control(app, socket=str(short_path / "x.sock"))
    with BackgroundServer(app, socket=str(short_path / "x.sock")):
        client = ControlClient(short_path / "x.sock")
        with client, pytest.raises(ConfigurationError, match="this process belongs to the server"):
            client.stop(kill_after=0.1)
        # To have opened the lock file here would have released the lock.
        asked = "import sys; from flask_ctl.system.locks import LockFile; print(LockFile(sys.argv[1]).server())"
        done = subprocess.run(
            [sys.executable, "-c", asked, f"{short_path}/x.sock.lock"], capture_output=True, text=True
        )
        assert done.stdout == f"{os.getpid()}\n"


@needs_root
def test_another_users_server_can_not_be_killed_and_is_not_asked_to_stop(
    serve: Serve, short_path: pathlib.Path
) -> None:
    """The client is let in by CTL_ALLOW."""
    place = short_path / "open"
    place.mkdir(mode=0o755)
    os.chmod(short_path, 0o711)
    server = serve(socket=place / "x.sock", env={"FLASK_CTL_ALLOW": json.dumps({"operate": [f"uid:{NOBODY}"]})})

    def stop() -> bytes:
        try:
            return repr(ControlClient(server.socket, owner=0).stop(kill_after=0.1)).encode()
        except AccessDenied as error:
            return error.message.encode()

    from harness import as_user

    assert b"belongs to another user, so you can't kill it" in as_user(NOBODY, NOBODY, (), stop)
    assert server.status()["state"] == "running"


# Servers that hang


def fill(address: str) -> list[socket.socket]:
    """Connections that a hung server does not accept, as many as the kernel takes."""
    path = address.removeprefix("ipc://")
    waiting: list[socket.socket] = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        if sock.connect_ex(path) == errno.EAGAIN:
            sock.close()
            return waiting
        waiting.append(sock)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_hung_server_that_lets_nobody_in_is_killed(serve: Serve, short_path: pathlib.Path, form: str) -> None:
    server = serve(socket=form.format(short_path / "x.sock")).suspend()
    waiting = fill(server.socket)
    try:
        with server.client() as client, pytest.raises(TimedOut):
            client.stop(timeout=0.1)
        done = run_cli("stop", "--kill-after", "0.1", "--json", "-s", server.socket)
    finally:
        for sock in waiting:
            sock.close()
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"], told["pid"], told["proof"]) == (6, "killed", server.pid, "process")
    assert server.wait() == -signal.SIGKILL


def test_over_ipc_the_kill_comes_when_it_was_asked_for(serve: Serve, short_path: pathlib.Path) -> None:
    """And not after what else a question may take."""
    server = serve(socket=f"ipc://{short_path / 'x.zmq'}").suspend()
    result = server.client().stop(kill_after=0.1)
    assert result["outcome"] == "killed"
    assert result["elapsed"] < QUESTION_TIMEOUT
    assert server.wait() == -signal.SIGKILL


@pytest.mark.full
def test_a_suspended_hub_does_not_hide_that_its_master_was_killed(start: Serve) -> None:
    server = start(SYNC)
    pids, frozen = workers(server), hub(server)
    suspend(frozen)
    try:
        result = server.client().stop(kill_after=0.1)
        assert (result["outcome"], result["pid"]) == ("killed", server.pid)
        assert not any(is_alive(pid) for pid in [server.pid, *pids])
        assert server.wait() == -signal.SIGKILL
    finally:
        os.kill(frozen, signal.SIGCONT)


def test_a_hung_hub_that_lets_nobody_in_does_not_save_its_master(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    pids, frozen = workers(server), hub(server)
    suspend(frozen)
    waiting = fill(server.socket)
    try:
        assert server.client().stop(kill_after=0.1)["pid"] == server.pid
        assert not any(is_alive(pid) for pid in [server.pid, *pids])
        server.wait()
    finally:
        os.kill(frozen, signal.SIGCONT)
        for sock in waiting:
            sock.close()


def test_workers_that_hang_without_a_hub_are_killed_with_their_master(start: Serve) -> None:
    server = start(SYNC)
    pids = workers(server)
    dead = hub(server)
    for pid in [server.pid, *pids]:
        suspend(pid)
    kill(dead)
    result = server.client().stop(kill_after=0.2)
    assert (result["outcome"], result["pid"]) == ("killed", server.pid)
    assert not any(is_alive(pid) for pid in [server.pid, *pids])
    server.wait()


@pytest.mark.parametrize("name", first_quick(["uwsgi", "granian", "gunicorn gevent"]))
def test_every_server_of_workers_is_killed_as_a_whole_and_nobody_else(
    start: Serve, name: str, bystander: subprocess.Popen[bytes]
) -> None:
    row = SERVERS[name]
    server, parent = start(row), os.getpid()
    pids = workers(server)
    status = server.status()
    suspend(status["pid"])
    result = server.client().stop(grace=60, kill_after=0.2)
    assert (result["outcome"], result["pid"]) == ("killed", status["pid"])
    until(lambda: not any(is_alive(pid) for pid in [status["pid"], *pids]), "the end of all of them")
    assert bystander.poll() is None
    assert os.getpid() == parent


@pytest.mark.full
def test_uwsgi_without_a_master_is_killed_and_not_its_parent(start: Serve, bystander: subprocess.Popen[bytes]) -> None:
    row = SERVERS["uwsgi"]
    alone = replace(row, command=[word for word in row.command if word != "--master"], workers=1)
    server = start(alone, "--processes", "1").suspend()
    result = server.client().stop(grace=60, kill_after=0.1)
    assert (result["outcome"], result["pid"]) == ("killed", server.pid)
    assert server.wait() == -signal.SIGKILL
    assert bystander.poll() is None


def test_a_worker_that_was_just_being_started_is_killed_with_its_master(
    short_path: pathlib.Path, bystander: subprocess.Popen[bytes]
) -> None:
    """It takes its byte when the master is dead."""
    from flask_ctl.client.targets import targets_at
    from flask_ctl.client.trust import Trust

    path = short_path / "x.sock.lock"
    code = f"locks.take(descriptor, 0); locks.take(descriptor, locks.hub_byte({os.getpid()}))"
    hub, worker = Holder(path, code), Holder(path, f"p = presence.Presence({os.getpid()}); p.be_at([path[:-5]])")
    targets = targets_at(str(short_path / "x.sock"), Trust())
    assert targets is not None
    assert targets.pid == os.getpid()
    assert [process.pid for process in targets.workers] == [worker.pid]
    targets.server.pop().close()
    late = Holder(path, f"p = presence.Presence({os.getpid()}); p.be_at([path[:-5]])")
    targets.kill()
    targets.close()
    for process in (worker, late):
        assert process.process.wait(TIMEOUT) == -signal.SIGKILL
    assert hub.process.poll() is None
    for process in (hub, worker, late):
        process.process.stdin.close()
        process.process.wait()
        process.process.stdout.close()


# PID namespaces

INSIDE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def init_of(server: Server) -> int:
    """The pid, as seen from here, of process 1 of the namespace in which a server runs."""
    return psutil.Process(server.pid).children()[0].pid


def run_inside(server: Server, *arguments: str) -> Done:
    """`flask-ctl` in the PID namespace of a server."""
    command = ["nsenter", "-t", str(init_of(server)), "-p", "-m", sys.executable, "-m", "flask_ctl_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=os.environ)


@needs_root
@pytest.mark.parametrize("command", first_quick([[*PYTHON, "sample.py"], SYNC.command]), ids=["single", "gunicorn"])
def test_process_1_is_not_killed_from_inside(no_hubs_left: None, serve: Serve, command: list[str]) -> None:
    server = serve(command=[*INSIDE, *command])
    done = run_inside(server, "stop", "--kill-after", "0.1", "-s", server.socket)
    assert (done.returncode, done.stdout) == (2, "")
    assert "run it from outside, or docker stop" in done.stderr
    assert server.status()["state"] == "running"


@needs_root
def test_a_process_1_that_hangs_is_not_to_be_killed_by_what_is_refused(serve: Serve) -> None:
    """The advice is to wait."""
    server = serve(command=[*INSIDE, *PYTHON, "sample.py"])
    suspend(init_of(server))
    for command in ("status", "stop"):
        done = run_inside(server, command, "--timeout", "0.2", "-s", server.socket)
        assert (done.returncode, done.stdout) == (4, "")
        assert "--kill-after" not in done.stderr
        assert "None" not in done.stderr
    os.kill(init_of(server), signal.SIGKILL)
    server.wait()


@needs_root
def test_a_stop_of_process_1_from_inside_is_told_as_soon_as_it_is_answered(serve: Serve) -> None:
    """Its end would be the client's, too."""
    server = serve(command=[*INSIDE, *PYTHON, "sample.py", "keeper"])
    done = run_inside(server, "stop", "--json", "-s", server.socket)
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"], told["pid"], told["proof"]) == (0, "drained", 1, "answer")
    assert server.process.poll() is None
    server.client().stop(kill_after=0)


@needs_root
@pytest.mark.parametrize("command", first_quick([[*PYTHON, "sample.py"], SYNC.command]), ids=["single", "gunicorn"])
def test_from_outside_a_container_is_killed_by_the_pids_that_it_has_there(
    no_hubs_left: None, serve: Serve, command: list[str]
) -> None:
    server = serve(command=[*INSIDE, *command])
    until(lambda: len(server.status()["workers"]) == (2 if command is SYNC.command else 0), "its workers")
    init = init_of(server)
    suspend(init)
    result = server.client().stop(kill_after=0.2)
    assert (result["outcome"], result["pid"], result["proof"]) == ("killed", init, "process")
    server.wait()


@needs_root
def test_from_inside_a_container_nobody_outside_is_killed(serve: Serve) -> None:
    server = serve()
    command = [*INSIDE, sys.executable, "-m", "flask_ctl_cli", "stop", "--kill-after", "0.1", "-s", server.socket]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2, done.stderr
    assert "the kernel does not name the process" in done.stderr
    assert server.status()["state"] == "running"
    command[command.index("--kill-after") :] = ["-s", server.socket]
    assert subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT).returncode == 0
    assert server.wait() == 0


def test_no_message_names_a_pid_that_is_not_known_or_the_hubs(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    held = server.begin("/hold/a")
    server.client().stop(wait=False)
    with server.client() as client, pytest.raises(TimedOut) as late:
        client.stop(timeout=0.5)
    assert f"pid {server.pid} has not ended" in late.value.message
    assert str(hub(server)) not in late.value.message
    server.release("a")
    assert held.result() == (200, b"held a")
    server.wait()
