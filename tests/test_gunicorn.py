"""gunicorn: one socket for the master and all its workers, whatever their class."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest
from harness import Pending, Program, Serve, Server, connections, first_quick, get, raw, run_cli, suspend, until
from manyworkers import all_there, hub, is_alive, kill, workers
from servers import SERVERS, Row

from flask_ctl import CommandError, ReloadFailed, ServerDied, TimedOut
from flask_ctl.servers.gunicorn import has_taken_sockets, is_next_master

SYNC = SERVERS["gunicorn sync"]
KINDS = first_quick(["sync", "gthread", "gevent"])


def version(server: Server) -> str:
    return server.get("/version")[1].decode()


def test_a_stop_answers_those_who_wait_to_be_accepted(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    server.get("/version")
    held = server.begin("/hold/a")
    waiting = [Pending(server.address, "/version") for _ in range(3)]
    until(lambda: _backlog(server) == 3, "three wait")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert [one.result() for one in waiting] == [(200, b"old")] * 3
    assert stop.result()["drained"] == 4
    assert server.wait() == 0


def _backlog(server: Server) -> int:
    """Connections of ours that nobody has accepted: their server's end belongs to no process yet."""
    port = server.address[1]
    accepted = [c for pid in workers(server) for c in connections(pid) if c.raddr]
    ours = [c for c in connections() if c.raddr and c.raddr.port == port]
    return len(ours) - len(accepted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_grace_is_ours_even_where_gunicorn_would_have_lost_patience(start: Serve, kind: str) -> None:
    server = start(SERVERS[f"gunicorn {kind}"], "--graceful-timeout", "1")
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop(grace=60))
    until(lambda: server.status()["stopping"], "stopping")
    began = server.status()["uptime"]
    until(lambda: server.status()["uptime"] > began + 2.5, "gunicorn would have killed it")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_reload_lets_old_workers_finish_and_brings_new_commands(start: Serve, program: Program, kind: str) -> None:
    server = start(SERVERS[f"gunicorn {kind}"], "--graceful-timeout", "1")
    held = server.begin("/hold/a")
    program.edit("new")
    program.file.write_text(program.file.read_text() + "\n@control.command\ndef later() -> str:\n    return 'later'\n")
    seen: list[Any] = []
    reload = Pending.call(lambda: server.reload(on_progress=seen.append))
    until(lambda: any(p["phase"] == "drain" and p["old"] == 1 for p in seen), "the drain")
    assert version(server) == "new"
    assert server.status()["state"] == "reloading"
    server.release("a")
    assert held.result() == (200, b"held a")
    assert reload.result()["cut"] == 0
    assert [answer["result"] for answer in server.call("later")] == ["later", "later"]


@pytest.mark.full
def test_an_edit_that_bytecode_does_not_show_is_served_all_the_same(start: Serve, program: Program) -> None:
    """Same size, same second."""
    server = start(SYNC, env={"PYTHONDONTWRITEBYTECODE": ""})
    program.edit("new1")
    server.reload()
    times = os.stat(program.file).st_atime_ns, os.stat(program.file).st_mtime_ns
    for number, preflight in ((2, True), (3, False)):
        program.edit(f"new{number}")
        os.utime(program.file, ns=times)
        server.reload(preflight=preflight)
        assert version(server) == f"new{number}"


def test_past_the_grace_a_reload_tells_who_is_left_or_can_cut(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    held = server.begin("/hold/a")
    done = run_cli("--json", "reload", "--grace", "0.1", "-s", server.socket)
    assert (done.returncode, json.loads(done.stdout)["old_left"]) == (0, 1)
    assert "Warning: old workers that still finish their last requests: 1" in done.stderr
    status = server.status()
    assert (status["state"], status["generation"], len(status["workers"])) == ("running", 2, 2)
    assert status["last_reload"]["ok"] is True
    server.release("a")
    assert held.result() == (200, b"held a")
    held = server.begin("/hold/b")
    assert server.reload(grace=0.1, cut=True)["cut"] == 1
    with pytest.raises(ConnectionError):
        held.result()


TITLED = """
import ctypes, os
for name, value in os.environ.items():
    os.environ[name] = value
with open("/proc/self/stat") as file:
    begin, end = map(int, file.read().rpartition(")")[2].split()[47:49])
ctypes.memset(begin, 0, end - begin)
"""
"""A configuration file that does to the memory of the environment what the package setproctitle does to it."""

ACTIVATED = """
import os, socket, sys
os.dup2(socket.create_server(("127.0.0.1", 0)).detach(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Executes a program as systemd does that has opened a socket for it."""


@pytest.mark.full
def test_a_title_that_is_written_over_the_environment_costs_nothing(start: Serve, program: Program) -> None:
    (program.directory / "titled.py").write_text(TITLED)
    own = [*SYNC.command[1:-1], "--config", "titled.py", SYNC.command[-1]]
    command = [sys.executable, "-c", ACTIVATED, *own]
    server = start(Row("gunicorn", command, workers=SYNC.workers, env={"NEEDED_BY_THE_APP": "yes"}))
    assert server.status()["server"]["activated"] == ["http"]
    program.edit("new", "import os; os.environ['NEEDED_BY_THE_APP']")
    assert server.reload()["generation"] == 2
    assert version(server) == "new"
    assert server.status()["server"]["activated"] == ["http"]


@pytest.mark.parametrize(
    ("environment", "taken"),
    [
        ({}, False),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}, True),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, True),
        ({"LISTEN_PID": "6", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}, False),
        ({"LISTEN_FDNAMES": "http"}, True),
    ],
)
def test_a_master_takes_what_is_passed_to_its_pid_and_leaves_the_names(
    environment: dict[str, str], taken: bool
) -> None:
    assert has_taken_sockets(7, environment) == taken


@pytest.mark.parametrize(
    ("title", "variables", "is_master"),
    [
        ("gunicorn: master [sample:app]", {}, True),
        ("gunicorn: worker [sample:app]", {}, False),
        ("python", {"GUNICORN_PID": str(os.getpid())}, True),
        ("python", {"GUNICORN_PID": "1"}, False),
    ],
)
def test_a_new_master_is_known_by_its_environment_or_by_the_title_that_replaces_it(
    title: str, variables: dict[str, str], is_master: bool
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([title], executable="/bin/cat", env=variables, stdin=pipe, stdout=pipe, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # What it answers comes after the exec, during which the kernel knows neither.
        child.stdin.write(b"ready")
        assert child.stdout.read(5) == b"ready"
        assert is_next_master(child.pid, os.getpid()) == is_master


BROKEN = {"a syntax error": "def f(:", "an exception": "1 / 0", "an exit": "sys.exit(3)"}


@pytest.mark.full
def test_broken_code_is_refused_and_nothing_else_has_happened(start: Serve, program: Program) -> None:
    server = start(SYNC)
    before = workers(server)
    for what, code in BROKEN.items():
        program.edit("new", code)
        with pytest.raises(ReloadFailed) as failure:
            server.reload()
        assert failure.value.data["traceback"], what
        assert workers(server) == before
        assert version(server) == "old"
        assert server.status()["last_reload"]["ok"] is False
    program.edit("mended")
    assert server.reload()["generation"] == 2
    assert version(server) == "mended"


EMBEDDED = """
from gunicorn.app.base import BaseApplication
BEFORE
class Server(BaseApplication):
    def load_config(self):
        for name, value in {"bind": "127.0.0.1:0", "workers": 1, "control_socket_disable": True}.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)
    def load(self):
        from sample import app
        return app
Server().run()
"""


def embedded(before: str) -> Row:
    return Row("gunicorn", [sys.executable, "-c", EMBEDDED.replace("BEFORE", before)], workers=1)


def test_embedded_with_an_app_that_was_imported_before(start: Serve) -> None:
    server = start(embedded("import sample"))
    with pytest.raises(CommandError, match="stop and start") as refusal:
        server.reload()
    assert refusal.value.code == -32001
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_embedded_with_an_app_that_its_workers_import(start: Serve, program: Program) -> None:
    server = start(embedded(""))
    program.edit("new")
    with pytest.raises(CommandError, match="without preflight") as refusal:
        server.reload()
    assert refusal.value.code == -32001
    assert server.reload(preflight=False)["generation"] == 2
    assert version(server) == "new"


@pytest.mark.full
def test_broken_code_without_a_preflight_is_told(start: Serve, program: Program) -> None:
    server = start(SYNC)
    program.edit("new", "1 / 0")
    with pytest.raises(ServerDied, match="the server died during the reload") as death:
        server.reload(preflight=False)
    assert death.value.data == {"outcome": "died"}
    assert server.wait() != 0


def test_code_that_passes_the_preflight_and_fails_in_the_workers_is_told_as_a_death(
    start: Serve, program: Program
) -> None:
    """gunicorn's master ends when a worker can't boot."""
    server = start(SERVERS["gunicorn sync, 1 worker"])
    program.edit("new", "import flask_ctl\nif not flask_ctl.preflighting: 1 / 0")
    result = run_cli("reload", "--json", "--socket", server.socket)
    assert result.returncode == 6, result
    assert json.loads(result.stdout)["error"]["data"] == {"outcome": "died"}
    assert "serves on" not in result.stderr
    assert server.wait() != 0


def test_a_worker_that_is_killed_during_a_stop_has_answered_nothing(start: Serve) -> None:
    server = start(SYNC)
    held = server.begin("/hold/a")
    busy = next(worker["pid"] for worker in server.status()["workers"] if worker["in_flight"])
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    kill(busy)
    result = stop.result()
    assert (result["outcome"], result["drained"], result["cut"]) == ("forced", 0, 1)
    with pytest.raises(ConnectionError):
        held.result()


def test_each_worker_answers_or_fails_or_is_silent_and_what_all_refuse_is_refused(start: Serve) -> None:
    """Asked over JSON-RPC, in plain text and on the command line."""
    server = start(SYNC)
    pid = workers(server)[1]
    with pytest.raises(CommandError, match="times: must be an integer") as refusal:
        server.call("greet", name="ann", times="x")
    assert refusal.value.code == -32602
    with pytest.raises(CommandError, match="no worker has the pid 1"):
        server.call("greet", name="ann", _pid=1)
    answers = server.call("fail", message="sorry")
    assert [answer["error"]["message"] for answer in answers] == ["ValueError: sorry"] * 2
    with raw(server.socket) as sock:
        sock.sendall(f"greet name=ann _pid={pid}\n".encode())
        assert "hello ann" in sock.recv(65536).decode()
    done = run_cli("--json", "call", "greet", "name=ann", f"_pid={pid}", "-s", server.socket)
    assert json.loads(done.stdout) == [{"pid": pid, "result": {"greeting": "hello ann"}}]
    assert run_cli("call", "greet", "name=ann", "_pid=x", "-s", server.socket).returncode == 2
    silent, awake = workers(server)
    suspend(silent)
    try:
        answers = {answer["pid"]: answer for answer in server.call("greet", name="ann", _timeout=1.0)}
        assert answers[awake]["result"] == {"greeting": "hello ann"}
        assert answers[silent]["error"]["code"] == -32005
        assert len(server.status()["workers"]) == 2
    finally:
        os.kill(silent, signal.SIGCONT)


def test_a_hub_that_is_killed_while_it_stops_the_server_is_followed_by_one_that_lets_visitors_in(start: Serve) -> None:
    server = start(SYNC)
    address = server.address
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    kill(hub(server))
    with pytest.raises(TimedOut, match="the server goes on"):
        stop.result()
    server.ready()
    all_there(server, 2)
    assert server.status()["state"] == "running"
    assert get(address, "/version") == (200, b"old")
    server.release("a")
    assert held.result() == (200, b"held a")


def test_kill_after_ends_the_master_and_its_workers_and_nobody_else(start: Serve) -> None:
    """Not another server, which has a hub of its own."""
    server, other = start(SYNC), start(SYNC)
    pids = workers(server)
    assert hub(server) != hub(other)
    assert not set(pids) & set(workers(other))
    held = server.begin("/hold/a")
    server.suspend()
    result = server.client().stop(grace=60, kill_after=0.3)
    assert result["outcome"] == "killed"
    assert not any(is_alive(pid) for pid in [server.pid, *pids])
    assert server.process.wait() == -9
    with pytest.raises(ConnectionError):
        held.result()
    assert other.status()["state"] == "running"


@pytest.mark.parametrize("kind", first_quick(["gevent", "gevent, preload"]))
def test_status_answers_while_a_greenlet_spins(start: Serve, kind: str, short_path: pathlib.Path) -> None:
    server = start(SERVERS[f"gunicorn {kind}"])
    gate = short_path / "gate"
    spinning = server.begin(f"/spin?until={gate}")
    assert server.status()["requests"]["in_flight"] == 1
    gate.touch()
    assert spinning.result() == (200, b"spun")


ANOTHER = """
import threading
from werkzeug.serving import make_server
threading.Thread(target=make_server("127.0.0.1", 0, app).serve_forever, daemon=True).start()
"""


def test_another_server_inside_a_worker_is_not_under_control(start: Serve, program: Program) -> None:
    program.edit("first", ANOTHER)
    server = start(SYNC)
    status = server.status()
    assert (status["server"]["name"], status["pid"]) == ("gunicorn", server.pid)
    assert server.get("/") == (200, b"hello")
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert "without a control socket" not in server.output


@pytest.mark.full
def test_a_worker_class_that_is_made_of_another_server_is_gunicorns(start: Serve, program: Program) -> None:
    server = start(SYNC, "-k", "gunicorn.workers.ggevent.GeventPyWSGIWorker")
    assert server.status()["server"]["name"] == "gunicorn"
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0
    assert "without a control socket" not in server.output


def test_an_app_that_no_worker_can_tell_its_hub_is_not_served_by_another(
    serve: Serve, program: Program, short_path: pathlib.Path
) -> None:
    """Without a directory for the hub there is no control socket, for any worker."""
    (short_path / "run").chmod(0o777)
    (short_path / "tmp" / f"flask-ctl-{os.getuid()}").write_text("in the way")
    server = serve(command=SYNC.command, cwd=program.directory, ready=False, env={"XDG_RUNTIME_DIR": ""})
    until(lambda: "Booting worker" in server.output and "without a control socket" in server.output, "the warning")
    port = int(server.output.partition("Listening at: http://127.0.0.1:")[2].split()[0])
    assert get(("127.0.0.1", port), "/") == (200, b"hello")
    assert not os.path.exists(server.socket)
