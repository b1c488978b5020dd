"""An app under runit's `runsv`, which starts it again whenever it ends."""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import APPS, TIMEOUT, Pending, Serve, Server, run_cli, until


def sv(command: str, service: pathlib.Path) -> int:
    """`sv COMMAND`, which waits until it is done; its exit code."""
    return subprocess.run(["sv", "-w", str(int(TIMEOUT)), command, service], stdout=subprocess.DEVNULL).returncode


@pytest.fixture
def service(short_path: pathlib.Path) -> pathlib.Path:
    """The directory of a service that runs `sample`."""
    directory = short_path / "service"
    directory.mkdir()
    run = directory / "run"
    run.write_text(f"#!/bin/sh\ncd {shlex.quote(str(APPS))}\nexec {shlex.quote(sys.executable)} sample.py\n")
    run.chmod(0o755)
    return directory


@pytest.fixture
def server(serve: Serve, service: pathlib.Path) -> Iterator[Server]:
    """The app, once it serves; `pid` is that of runsv."""
    server = serve(command=["runsv", str(service)])
    yield server
    assert sv("exit", service) == 0
    server.wait()


def test_after_a_stop_another_process_serves_at_the_same_socket(server: Server) -> None:
    before = server.status()["pid"]
    done = run_cli("stop", "--socket", server.socket)
    assert done.returncode == 0, done.stderr
    server.ready()
    assert server.status()["pid"] != before


def test_told_to_run_it_only_once_it_stays_down_after_a_stop(server: Server, service: pathlib.Path) -> None:
    assert sv("once", service) == 0
    assert run_cli("stop", "--socket", server.socket).returncode == 0
    assert run_cli("status", "--socket", server.socket).returncode == 3
    until(lambda: sv("status", service) == 0 and "down" in (service / "supervise" / "stat").read_text(), "down")


def test_a_restart_asks_runit_whether_it_starts_the_app_again(server: Server, service: pathlib.Path) -> None:
    before = server.status()
    assert before["supervisor"] == {"kind": "runit", "service": str(service), "restart": "unknown"}
    done = run_cli("restart", "--socket", server.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.status()["pid"] != before["pid"]

    assert sv("once", service) == 0
    done = run_cli("restart", "--socket", server.socket)
    assert done.returncode == 2
    assert "runit" in done.stderr
    assert "would not start it again (restart policy: no)" in done.stderr
    assert server.status()["state"] == "running"


def test_taken_down_it_answers_the_requests_in_flight(server: Server, service: pathlib.Path) -> None:
    held = server.begin("/hold/a")
    down = subprocess.Popen(["sv", "-w", str(int(TIMEOUT)), "down", service], stdout=subprocess.DEVNULL)
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert down.wait(TIMEOUT) == 0
    assert run_cli("status", "--socket", server.socket).returncode == 3


def test_restarted_it_reports_another_process(server: Server, service: pathlib.Path) -> None:
    before = server.status()["pid"]
    assert sv("restart", service) == 0
    # sv may return while the old process still runs.
    until(lambda: server.ready().status()["pid"] != before, "another process")


def test_stopped_for_good_it_stays_down(server: Server, service: pathlib.Path) -> None:
    """With the requests in flight answered, and counted by the server."""
    done = run_cli("stop", "--socket", server.socket)
    assert f"runit {service} starts it again (restart policy: always); stop --for-good prevents that" in done.stdout
    server.ready()
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: run_cli("stop", "--for-good", "--socket", server.socket))
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.release("a")
    assert held.result() == (200, b"held a")
    done = stop.result()
    assert done.returncode == 0
    assert "1 request finished" in done.stdout
    assert f"runit {service} does not start it again: it was told to stop it" in done.stdout
    until(lambda: "down" in (service / "supervise" / "stat").read_text(), "down")
    assert run_cli("status", "--socket", server.socket).returncode == 3
