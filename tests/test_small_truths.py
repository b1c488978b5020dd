"""What answers, log lines and tables say to the letter."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
from typing import Any

import pytest
from harness import PYTHON, Done, Serve, Server, first_quick, raw, read_all, run_cli
from servers import SERVERS

from flask_ctl.dispatch.audit import asker
from flask_ctl.protocol.text import render_result

# reload --config

BARE = "import flask, flask_ctl; app = flask.Flask('bare'); flask_ctl.Control(app); app.run(port=0)"


def test_a_reload_of_the_config_without_hooks_says_so(serve: Serve) -> None:
    server = serve(command=[*PYTHON, "-c", BARE])
    done = run_cli("reload", "--config", "-s", server.socket)
    nothing = f"pid {server.pid} has no function that is decorated with on_reload: nothing was done\n"
    assert (done.returncode, done.stdout) == (0, nothing)
    assert json.loads(run_cli("reload", "--config", "--json", "-s", server.socket).stdout)["hooks_run"] == 0
    with raw(server.socket) as sock:
        sock.sendall(b"reload what=config\n")
        assert read_all(sock).decode() == nothing


def test_a_reload_of_the_config_tells_how_many_hooks_were_called(serve: Serve) -> None:
    code = (
        "import flask, flask_ctl; app = flask.Flask('bare'); control = flask_ctl.Control(app)\n"
        "control.on_reload(lambda: None); control.on_reload(lambda: None); app.run(port=0)"
    )
    server = serve(command=[*PYTHON, "-c", code])
    done = run_cli("reload", "--config", "-s", server.socket)
    assert re.fullmatch(rf"pid {server.pid} called 2 reload hooks, after \d\.\d s\n", done.stdout)
    assert done.returncode == 0


def test_hooks_of_all_workers_count(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync"])
    hooks = server.reload(what="config")["hooks_run"]
    assert hooks > 0
    assert hooks % 2 == 0


# Who has asked

ASKERS: dict[str, dict[str, Any]] = {
    'key "ann"': {"key": "ann"},
    'signal "SIGTERM"': {"signal": "SIGTERM"},
    "uid 7, gid 8": {"uid": 7, "gid": 8, "pid": None},
    'key "a\\nb"': {"key": "a\nb"},
    "unknown": {},
}


@pytest.mark.parametrize("text", ASKERS)
def test_who_has_asked_is_told_as_in_the_audit_log(text: str) -> None:
    assert asker(ASKERS[text]) == text


def test_the_program_of_a_process_is_named() -> None:
    with open(f"/proc/{os.getpid()}/comm") as file:
        assert asker({"uid": 1, "pid": os.getpid()}) == f'uid 1, pid {os.getpid()}, program "{file.read().strip()}"'


@pytest.mark.parametrize("name", first_quick(["werkzeug", "gunicorn sync"]))
def test_log_lines_have_that_form_too(start: Serve, serve: Serve, name: str) -> None:
    """Beside the record of the audit log itself, in a single process and behind a hub."""
    server = serve("flask-ctl run") if name == "werkzeug" else start(SERVERS[name])
    server.reload()
    server.client().stop()
    server.wait()
    who = rf'uid {os.geteuid()}, gid {os.getegid()}, pid {os.getpid()}, program "[^"]+"'
    lines = [line for line in server.lines if "asked by" in line]
    assert all(re.search(f"asked by {who}$", line) for line in lines), lines
    if name == "werkzeug":
        assert len(lines) == 2


# ping --wait --pid


def wait_for(*arguments: str) -> Done:
    return run_cli("ping", "--wait", "3600", *arguments)


def test_a_ping_that_waits_ends_with_the_process_that_was_to_answer(short_path: pathlib.Path) -> None:
    """Exit 3, as soon as it is gone, also before it began to listen; a zombie is gone."""
    process = subprocess.Popen([*PYTHON, "-c", "input()"], stdin=subprocess.PIPE)
    words = ["ping", "--wait", "3600", "--pid", str(process.pid), "-s", f"{short_path}/x.sock"]
    waiting = subprocess.Popen([*PYTHON, "-m", "flask_ctl_cli", *words], stderr=subprocess.PIPE, text=True)
    process.communicate(b"\n")
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 3
    assert f"pid {process.pid} has ended; nothing is running at {short_path}/x.sock" in said
    assert wait_for("--pid", str(process.pid), "-s", f"{short_path}/x.sock").returncode == 3


def test_a_zombie_is_no_process_to_wait_for(short_path: pathlib.Path) -> None:
    process = subprocess.Popen([*PYTHON, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert wait_for("--pid", str(process.pid), "-s", f"{short_path}/x.sock").returncode == 3
    process.wait()


def test_an_answer_is_an_answer_whatever_has_ended(serve: Serve) -> None:
    server = serve()
    assert wait_for("--pid", str(server.pid), "-s", server.socket).returncode == 0
    assert wait_for("--pid", str(2**22), "-s", server.socket).returncode == 0


def test_a_server_that_stays_silent_is_still_exit_4(serve: Serve) -> None:
    server = serve().suspend()
    done = run_cli("ping", "--wait", "0.3", "--pid", str(server.pid), "-s", server.socket)
    assert done.returncode == 4
    os.kill(server.pid, signal.SIGCONT)


def test_a_pid_without_waiting_is_exit_2() -> None:
    assert run_cli("ping", "--pid", "1", "-s", "/nowhere/x.sock").returncode == 2


# Figures


def numbers(value: Any) -> list[float]:
    """All floats in a JSON value."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("name", first_quick(["gunicorn sync", "werkzeug"]))
def test_figures_are_rounded_to_milliseconds_and_a_stop_tells_when_the_process_was_gone(
    start: Serve, name: str
) -> None:
    """An exit function counts for that, and not for what the server needed until it answered."""
    server = start(SERVERS[name])
    held = server.begin("/hold/a")
    server.reload(what="config")
    status = server.status()
    assert status["requests"]["oldest"] is not None
    for number in numbers(status):
        assert number == round(number, 3), status
    server.release("a")
    held.result()
    began = time.monotonic()
    result = server.client().stop()
    assert result["proof"] == "process"
    assert result["elapsed"] <= result["ended_after"] <= time.monotonic() - began + 0.001
    for number in numbers(result):
        assert number == round(number, 3)


# commands


def test_commands_shows_role_and_scope(shared: Server) -> None:
    with raw(shared.socket) as sock:
        sock.sendall(b"commands\n")
        text = read_all(sock).decode()
    with shared.client() as client:
        described = client.commands()
    for line in text.splitlines():
        name, role, scope, *summary = line.split()
        command = described[name]
        assert (role, scope, " ".join(summary)) == (command["role"], command["scope"], command["summary"])
    assert len(text.splitlines()) == len(described)
    assert run_cli("call", "commands", "-s", shared.socket).stdout == text


def test_no_command_is_no_line() -> None:
    assert render_result("commands", {}) == ""


# stop


def test_a_killed_server_is_gone_when_it_was_killed(serve: Serve) -> None:
    server = serve().suspend()
    result = server.client().stop(kill_after=0.1)
    assert result["ended_after"] == result["elapsed"] >= 0.1


def test_where_the_kernel_does_not_say_when_the_time_is_not_known(serve: Serve) -> None:
    from flask import Flask

    from flask_ctl import BackgroundServer

    path = f"{os.environ['TMPDIR']}/b.sock"
    with BackgroundServer(Flask("b"), socket=path):
        done = run_cli("stop", "--json", "-s", path)
    assert json.loads(done.stdout)["proof"] == "connection"
    assert json.loads(done.stdout)["ended_after"] is None
