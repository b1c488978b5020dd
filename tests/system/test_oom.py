"""The kernel kills a process that uses more memory than its cgroup may; it needs root and a cgroup of memory."""

from __future__ import annotations

import os
import pathlib
import shlex
import sys
from collections.abc import Iterator

import psutil
import pytest
from harness import Pending, Serve, run_cli, until

from flask_ctl import ServerDied

LIMIT = 160 << 20

PROGRAM = """
import threading
import flask, flask_ctl
app = flask.Flask("eater")
control = flask_ctl.Control(app)
gate = threading.Event()

@app.get("/")
def index():
    return "served"

@app.get("/eat")
def eat_in_a_request():
    gate.wait()
    return str(len(eat()))

@control.command
def eat() -> list[int]:
    kept = []
    while True:
        kept.append(bytearray(b"x" * (1 << 20)))

@control.command
def release() -> None:
    gate.set()

if __name__ == "__main__":
    app.run(port=0)
"""

LOOP = "import subprocess, sys\nfor _ in range(3): subprocess.call(sys.argv[1:])"
"""Starts it again whatever its end was, from outside of the cgroup."""


@pytest.fixture
def enter() -> Iterator[str]:
    """A shell command that puts the shell into a cgroup with that limit."""
    first, second = pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")
    root, limit = (first, "memory.limit_in_bytes") if first.exists() else (second, "memory.max")
    group = root / f"flask-ctl-test-{os.getpid()}"
    group.mkdir()
    (group / limit).write_text(str(LIMIT))
    yield f"echo $$ >{group}/cgroup.procs"
    until(lambda: not (group / "cgroup.procs").read_text(), "its processes have ended")
    group.rmdir()


@pytest.fixture
def program(short_path: pathlib.Path) -> pathlib.Path:
    (short_path / "eater.py").write_text(PROGRAM)
    return short_path


def test_the_caller_is_told_that_it_died_and_the_next_instance_takes_its_place(
    enter: str, program: pathlib.Path, serve: Serve
) -> None:
    inside = ["sh", "-c", f"{enter}; exec {shlex.quote(sys.executable)} eater.py"]
    server = serve(command=[sys.executable, "-c", LOOP, *inside], cwd=program)
    first = server.status()
    with server.client() as client, pytest.raises(ServerDied):
        client.call("eat")
    until(server._serves, "the next instance")
    second = server.status()
    assert second["pid"] != first["pid"]
    assert second["generation"] == 1

    # Killed while a stop drains it.
    server.begin("/eat")
    stop = Pending.call(lambda: server.client().stop(grace=20))
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.call("release")
    assert stop.result()["outcome"] == "died"
    until(server._serves, "the last instance")
    assert server.get("/") == (200, b"served")
    listed = run_cli("ls", "--name", "eater").stdout
    assert listed.count("eater") == 1
    assert run_cli("stop", "-s", server.socket).returncode == 0


def test_a_worker_that_is_killed_is_replaced_and_the_hub_says_how_many_requests_it_had(
    enter: str, program: pathlib.Path, serve: Serve
) -> None:
    gunicorn = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", "2", "eater:app"]
    server = serve(command=["sh", "-c", f"{enter}; exec {shlex.join(gunicorn)}"], cwd=program)
    until(lambda: len(server.status()["workers"]) == 2, "both workers")
    before = {worker["pid"] for worker in server.status()["workers"]}
    eaten = Pending(server.address, "/eat")
    until(lambda: server.status()["requests"]["in_flight"], "the request")
    server.call("release")
    until(lambda: {w["pid"] for w in server.status()["workers"]} not in (before, set()), "another worker")
    with pytest.raises(OSError, match=r".*"):
        eaten.result()
    until(lambda: len(server.status()["workers"]) == 2, "as many as before")
    assert psutil.pid_exists(server.pid)
    assert server.get("/") == (200, b"served")
    assert server.client().stop()["outcome"] == "drained"
