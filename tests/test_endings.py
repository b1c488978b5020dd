"""How the old code ends in a reload, whatever hangs: hooks, threads, exit functions, the exec itself."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from typing import Any

import pytest
from harness import PYTHON, Pending, Program, Serve, Server, first_quick, run_cli, until
from servers import SERVERS, Row, alone, each_mechanism

from flask_ctl import CommandError, ServerDied, TimedOut

HANG = "os.read(os.pipe()[0], 1)"
PREFLIGHTING = "import flask_ctl\nif not flask_ctl.preflighting: "


@pytest.fixture
def hanging(start: Serve, program: Program) -> Serve:
    """Serve a program whose `on_stop` hook hangs once; the next code has no such hook."""

    def serve(row: Row, **options: Any) -> Server:
        program.edit("old", f"@control.on_stop\ndef hang():\n    say('hangs')\n    {HANG}\n")
        server = start(row, **options)
        program.edit("new")
        return server

    return serve


def committed(server: Server, **options: Any) -> Pending:
    """A reload that hangs in its hooks."""
    reload = Pending.call(lambda: server.reload(**options))
    until(lambda: "hangs" in server.lines, "the hook")
    return reload


@each_mechanism(alone)
def test_a_hook_that_hangs_is_left_behind_at_the_end_of_the_grace(hanging: Serve, row: Row) -> None:
    server = hanging(row)
    result = run_cli("reload", "--grace", "0.1", "--json", "--socket", server.socket)
    assert result.returncode == 6, result
    assert json.loads(result.stdout)["hooks"] == "unfinished"
    assert server.get("/version") == (200, b"new")


@each_mechanism(alone)
def test_a_fast_stop_ends_a_reload_whose_hook_hangs(hanging: Serve, row: Row) -> None:
    server = hanging(row)
    reload = committed(server)
    first = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["stopping"], "a stop that waits")
    result = server.client().stop("fast")
    assert (result["outcome"], result["hooks"]) == ("drained", "unfinished")
    assert first.result()["outcome"] == "drained"
    with pytest.raises(CommandError, match="called off by a stop"):
        reload.result()
    assert server.wait() == 0
    assert not os.path.exists(server.socket)


@pytest.mark.parametrize("signum", first_quick([signal.SIGTERM, signal.SIGINT]), ids=lambda signum: signum.name)
def test_the_second_signal_ends_it_too(hanging: Serve, signum: signal.Signals) -> None:
    server = hanging(SERVERS["werkzeug"], preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL))
    reload = committed(server)
    os.kill(server.pid, signum)
    until(lambda: server.status()["stopping"], "a stop that waits")
    assert server.status()["stopping"]["by"] == {"signal": signum.name}
    assert server.process.poll() is None
    os.kill(server.pid, signum)
    assert server.wait() == 0
    with pytest.raises(CommandError, match="called off by a stop"):
        reload.result()


def test_a_signal_during_a_preflight_ends_the_server_with_the_last_answer(start: Serve, program: Program) -> None:
    """The grace is longer than the test may take: nothing but the answer ends it."""
    server = start(SERVERS["werkzeug"], env={"FLASK_CTL_GRACE": "3600"})
    held = server.begin("/hold/a")
    program.edit("new", HANG)
    seen: list[Any] = []
    reload = Pending.call(lambda: server.reload(on_progress=seen.append))
    until(lambda: any(progress["phase"] == "preflight" for progress in seen), "the preflight")
    os.kill(server.pid, signal.SIGTERM)
    with pytest.raises(CommandError, match="called off by a stop"):
        reload.result()
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


def test_an_exit_function_that_hangs_is_left_behind(start: Serve, program: Program) -> None:
    program.edit("old", f"atexit.register(lambda: {HANG})")
    server = start(SERVERS["werkzeug"])
    program.edit("new")
    assert server.reload(grace=0.1)["hooks"] == "unfinished"
    assert server.get("/version") == (200, b"new")


def test_an_exec_that_fails_ends_the_process_with_1_and_leaves_no_socket(start: Serve, program: Program) -> None:
    program.edit("old", "@control.on_stop\ndef lose():\n    sys.executable = '/nonexistent/python'\n")
    server = start(SERVERS["werkzeug"])
    with pytest.raises(ServerDied):
        server.reload()
    assert server.wait() == 1
    assert "the new code could not be started" in server.output
    assert not os.path.exists(server.socket)


def test_without_an_interpreter_nothing_happens(serve: Serve, program: Program) -> None:
    code = "import sys\nfrom sample import *\nsys.executable = '/nonexistent/python'\napp.run(port=0)"
    server = serve(command=[*PYTHON, "-c", code], cwd=program.directory)
    with server.client() as client, pytest.raises(CommandError, match="interpreter"):
        client.reload(preflight=False)
    assert server.status()["state"] == "running"
    assert "on_stop" not in server.lines
    assert server.get("/version") == (200, b"old")


PLAIN = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
import flask, flask_ctl
app = flask.Flask("plain")
control = flask_ctl.Control(app)
go = threading.Event()
pool = ThreadPoolExecutor()

@control.command
def let_go():
    go.set()

@control.command
def work():
    pool.submit(go.wait)

{code}
app.run(port=0)
"""


@pytest.fixture
def plain(serve: Serve, short_path: pathlib.Path) -> Serve:
    """Serve an app without hooks, with some code before it serves."""

    def start(code: str) -> Server:
        file = short_path / "plain.py"
        file.write_text(PLAIN.format(code=code))
        return serve(command=[*PYTHON, str(file)])

    return start


THREAD = f"{PREFLIGHTING}threading.Thread(target=go.wait, name='keeper').start()"


def test_a_thread_without_a_hook_that_might_end_it_is_waited_for_and_named_past_the_grace(plain: Serve) -> None:
    """Then nothing has happened."""
    server = plain(THREAD)
    with (
        server.client() as client,
        pytest.raises(TimedOut, match=r"keeper.*daemon.*on_stop.*the old code still serves"),
    ):
        client.reload(grace=0.1)
    assert run_cli("reload", "--grace", "0.1", "--socket", server.socket).returncode == 4
    assert server.status()["state"] == "running"
    assert server.status()["generation"] == 1
    reload = Pending.call(lambda: server.reload())
    until(lambda: server.status()["state"] == "reloading", "reloading")
    server.call("let_go")
    result = reload.result()
    assert result["generation"] == 2
    assert "threads_left" not in result


@pytest.mark.parametrize("how", first_quick(["cut", "a hook"]))
def test_with_cut_or_a_hook_it_is_left_behind(plain: Serve, how: str) -> None:
    server = plain(THREAD + ("\ncontrol.on_stop(lambda: None)" if how == "a hook" else ""))
    options = ["--cut"] if how == "cut" else []
    result = run_cli("reload", "--grace", "0.1", "--json", *options, "--socket", server.socket)
    assert result.returncode == 6, result
    assert json.loads(result.stdout)["threads_left"] == ["keeper"]
    assert server.status()["generation"] == 2


def test_an_idle_executor_does_not_count_and_a_busy_one_is_waited_for(plain: Serve) -> None:
    server = plain("pool.submit(int).result()")
    assert server.reload()["generation"] == 2
    server.call("work")
    reload = Pending.call(lambda: server.reload())
    until(lambda: server.status()["state"] == "reloading", "reloading")
    with server.client() as client, pytest.raises(CommandError, match="can't reload while reloading"):
        client.reload()
    server.call("let_go")
    assert reload.result()["generation"] == 3
