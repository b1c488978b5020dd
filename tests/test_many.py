"""One command for many instances: which ones, what is printed, and with which exit code it ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import pty
import sys
from typing import Any

import pytest
from harness import Serve, Server, run_cli

from flask_ctl_cli.many import ORDER, first_of

NAMED = """
import os
from flask import Flask
from flask_ctl import Control
app = Flask(os.environ["NAME"])
control = Control(app)

@control.command
def greet(name: str = "") -> str:
    return f"{os.environ['NAME']} greets {name}"

@control.command
def whoami() -> str:
    if os.environ["NAME"] == "shop-b":
        raise ValueError("unknown")
    return os.environ["NAME"]

if os.environ["NAME"] == "other":
    @control.command
    def other_only() -> str:
        return "only here"

app.run(port=0)
"""


@pytest.fixture
def serve_named(serve: Serve, short_path: pathlib.Path) -> Serve:
    """Start an app of that name in a directory of that name."""

    def start(name: str) -> Server:
        directory = short_path / name
        directory.mkdir()
        return serve(command=[sys.executable, "-c", NAMED], cwd=directory, env={"NAME": name})

    return start


@pytest.fixture
def three(serve_named: Serve) -> dict[str, Server]:
    return {name: serve_named(name) for name in ("shop-a", "shop-b", "other")}


def answers(*words: str, code: int = 0) -> list[dict[str, Any]]:
    done = run_cli(*words, "--json", cwd="/")
    assert done.returncode == code, (done.stdout, done.stderr)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def names(*words: str, code: int = 0) -> list[str]:
    return [one["name"] for one in answers(*words, code=code)]


def test_the_exit_code_is_the_gravest_that_occurred() -> None:
    """In the order of the README: 1, 8, 5, 4, 6, 7, 3, 2, 0."""
    assert ORDER == (1, 8, 5, 4, 6, 7, 3, 2, 0)
    for graver, other in itertools.combinations(ORDER, 2):
        assert first_of([other, graver, other]) == graver
    assert first_of([0, 0]) == 0


@pytest.mark.parametrize("words", [["--all"], ["--name", "x*"], ["--dir", "/srv"]])
@pytest.mark.parametrize("command", ["ping", "status", "stop", "reload", "requests", "logs", "call x"])
def test_an_empty_selection_is_exit_3(words: list[str], command: str) -> None:
    done = run_cli(*command.split(), *words)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no running instance is selected by" in done.stderr
    assert command != "stop" or run_cli("stop", *words, "--missing-ok").returncode == 0


def test_questions_and_commands_of_the_app_go_to_all_that_are_selected(three: dict[str, Server]) -> None:
    """In the order of their names: a table where each answer is a line, else one below the other, or a JSON list."""
    assert names("ping", "--all") == ["other", "shop-a", "shop-b"]
    assert names("--name", "shop*", "status") == ["shop-a", "shop-b"]
    shown = run_cli("ping", "--name", "shop*").stdout.splitlines()
    assert [line.split()[:3] for line in shown] == [
        [name, str(three[name].pid), "pong"] for name in ("shop-a", "shop-b")
    ]
    assert [line.split()[2] for line in run_cli("status", "--all").stdout.splitlines()] == ["state", *3 * ["running"]]
    for command in ("requests", "exceptions", "stacks", "logs", "events"):
        assert names("--all", command) == ["other", "shop-a", "shop-b"], command
    assert run_cli("events", "--name", "shop*").stdout.count("== shop-") == 2
    assert run_cli("logs", "--follow", "--name", "shop*").returncode == 2, "a stream is of one"
    assert run_cli("status", "--watch", "--name", "nobody").returncode == 3
    place = os.path.dirname(three["other"].status()["cwd"])
    assert names("ping", "--dir", f"{place}/shop-a") == ["shop-a"]
    assert names("ping", "--dir", place) == ["other", "shop-a", "shop-b"]

    # A failure of one does not keep the others from being asked.
    a, b = answers("whoami", "--name", "shop*", code=1)
    assert (a["result"], a["exit"]) == ("shop-a", 0)
    assert (b["error"]["message"], b["exit"]) == ("ValueError: unknown", 1)
    assert [one["exit"] for one in answers("call", "other_only", "--all", code=1)] == [0, 1, 1]

    # Several addresses: an instance counts once, and what is not there is told.
    sockets = [three["shop-b"].socket, f"unix:{three['shop-b'].socket}", "/nowhere.sock", three["shop-a"].socket]
    words = [word for socket in sockets for word in ("--socket", socket)]
    found = answers("ping", *words, code=3)
    assert [one["name"] for one in found] == ["shop-b", None, "shop-a"]
    assert [one["exit"] for one in found] == [0, 3, 0]
    assert run_cli("ping", *words, "--all").returncode == 2


def test_behind_the_name_of_a_command_its_own_parameter_takes_precedence(
    three: dict[str, Server], short_path: pathlib.Path
) -> None:
    here = short_path / "shop-a"
    assert json.loads(run_cli("greet", "--name", "Ann", "--json", cwd=here).stdout) == "shop-a greets Ann"
    done = run_cli("greet", "--name", "shop*", cwd="/")
    assert done.returncode == 2
    assert "3 instances run in /" in done.stderr
    found = answers("--name", "shop*", "greet", "--name", "Ann")
    assert [one["result"] for one in found] == ["shop-a greets Ann", "shop-b greets Ann"]
    assert len(answers("greet", "--all", "--name", "Ann")) == 3
    assert names("other-only", "--name", "oth*") == ["other"]


def test_a_stop_of_all_is_confirmed_and_a_stop_of_some_is_not(serve_named: Serve) -> None:
    """Without a terminal it needs --yes; nothing has been stopped before."""
    servers = [serve_named("shop-a"), serve_named("shop-b")]
    done = run_cli("stop", "--all")
    assert done.returncode == 2
    assert "stop --all needs --yes" in done.stderr
    code, shown = on_terminal(["stop", "--all"], "n")
    assert code == 1
    assert "Stop these 2? [y/N]" in shown
    assert names("reload", "--all") == ["shop-a", "shop-b"]
    assert [server.status()["generation"] for server in servers] == [2, 2]
    found = answers("stop", "--name", "*-a")
    assert [one["result"]["outcome"] for one in found] == ["drained"]
    assert servers[0].wait() == 0
    assert servers[1].status()["state"] == "running"
    done = run_cli("stop", "--all", "--yes", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert servers[1].wait() == 0


def on_terminal(words: list[str], answer: str) -> tuple[int, str]:
    """Exit code and output of flask-ctl on a terminal, where a person answers its question."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "flask_ctl_cli", *words])
    shown = ""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece.decode()
            if "[y/N]" in shown and answer:
                os.write(terminal, answer.encode() + b"\n")
                answer = ""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown
