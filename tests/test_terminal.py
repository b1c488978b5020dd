"""flask-ctl on a real terminal: width, colours, progress, and what a pipe gets instead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

import pytest
from harness import APPS, PYTHON, TIMEOUT, Program, Serve, Server, first_quick, run_cli

from flask_ctl_cli.progress import describe

Env = Mapping[str, str]
NO_ENV: Env = {}

CLI = (*PYTHON, "-m", "flask_ctl_cli")


class Terminal:
    """A terminal of `width` columns in which flask-ctl runs, with all of its streams."""

    def __init__(self, *arguments: str, width: int = 80, height: int = 24, env: Env = NO_ENV) -> None:
        self._terminal, theirs = pty.openpty()
        self._theirs = theirs
        self.resize(width, height)
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            [*CLI, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env={**environ, "TERM": "xterm", **env}
        )
        self.shown = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def until(self, text: str) -> str:
        """What it has shown, up to a text."""
        while text not in self.shown:
            self.shown += os.read(self._terminal, 4096).decode()
        return self.shown

    def end(self) -> str:
        """What it has shown until the program ended."""
        os.close(self._theirs)
        with contextlib.suppress(OSError):
            while piece := os.read(self._terminal, 4096):
                self.shown += piece.decode()
        os.close(self._terminal)
        self.process.wait()
        return self.shown.replace("\r\n", "\n")


def on_terminal(*arguments: str, code: int = 0, width: int = 80, env: Env = NO_ENV) -> str:
    """What flask-ctl shows on a terminal."""
    terminal = Terminal(*arguments, width=width, env=env)
    shown = terminal.end()
    assert terminal.process.returncode == code, shown
    return shown


@pytest.mark.parametrize("width", first_quick([40, 200]))
def test_a_status_and_a_table_of_commands_fit_the_terminal(serve: Serve, width: int) -> None:
    server = serve()
    server.reload()
    status = on_terminal("status", "-s", server.socket, width=width, env={"NO_COLOR": "1"})
    commands = on_terminal("call", "commands", "-s", server.socket, width=width)
    assert max(map(len, status.splitlines())) <= width
    assert max(map(len, commands.splitlines())) <= width
    words = " ".join(status.split())
    assert f"running, pid {server.pid}, up" in words
    assert " ago in " in words
    assert "wait_for" in commands


def test_a_pipe_sees_the_same_lines_at_every_width(serve: Serve) -> None:
    server = serve()
    wide, narrow = (
        run_cli("call", "commands", "-s", server.socket, env={"COLUMNS": columns}).stdout for columns in ("200", "40")
    )
    assert wide == narrow
    assert max(map(len, narrow.splitlines())) > 60


COLOURS = [
    ({}, True),
    ({"NO_COLOR": "1"}, False),
    ({"NO_COLOR": ""}, True),
    ({"CLICOLOR": "0"}, False),
    ({"CLICOLOR": "1"}, True),
    ({"TERM": "dumb"}, False),
    ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True),
    ({"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, False),
]


def test_the_state_has_a_colour_on_a_terminal_unless_the_user_wants_none(serve: Serve) -> None:
    line = ("status", "-s", serve().socket)
    for env, colour in COLOURS:
        shown = on_terminal(*line, env=env)
        assert ("\033[32m\033[1mrunning\033[0m, pid" in shown) is colour, env
        assert colour or "\033" not in shown, env
    assert "\033" not in run_cli(*line, env={"CLICOLOR": "1"}).stdout
    assert "\033[32m" in run_cli(*line, env={"CLICOLOR_FORCE": "1"}).stdout


@pytest.mark.parametrize(("env", "moves"), [({}, True), ({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)])
def test_a_watched_status_stays_in_its_place_also_without_colours(
    serve: Serve, env: dict[str, str], moves: bool
) -> None:
    server = serve()
    terminal = Terminal("status", "--watch", "0.1", "-s", server.socket, height=5, env=env)
    terminal.until("requests")
    terminal.process.send_signal(signal.SIGINT)
    shown = terminal.end()
    assert ("\033[H\033[J" in shown) is moves
    assert ("… 3 more lines" in shown) is moves


def test_progress_is_one_line_that_fits(serve: Serve) -> None:
    """Or on a terminal whose cursor can't be moved a line for each phase."""
    server = serve()
    held = server.begin("/hold/a")
    moving = Terminal("stop", "-s", server.socket, width=30)
    moving.until("drain: 1 in flight")
    plain = Terminal("stop", "-s", server.socket, env={"TERM": "dumb"})
    plain.until("drain: 1 in flight")
    server.release("a")
    held.result()
    pieces = moving.end().split("\r\033[K")
    assert all(len(piece) < 30 for piece in pieces[:-1]), pieces
    assert pieces[-1].startswith(f"pid {server.pid} stopped")
    shown = plain.end()
    assert "\033" not in shown
    assert shown.count("drain: 1 in flight") == 1


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "drain: 2 in flight, 27 s left, deadline set by uid 0"),
        (40, "drain: 2 in flight, 27 s left"),
        (25, "drain: 2 in flight"),
        (10, "drain: 2 …"),
    ],
)
def test_of_the_progress_the_most_important_part_is_shown_first(width: int, line: str) -> None:
    progress = {"phase": "drain", "in_flight": 2, "remaining": 27.1, "waiting_for": [], "deadline_by": {"uid": 0}}
    assert describe(progress, width) == line


def test_the_progress_names_the_oldest_request() -> None:
    progress = {"phase": "drain", "in_flight": 2, "oldest_request": {"method": "GET", "route": None, "age": 4.4}}
    assert describe(progress, 80) == "drain: 2 in flight, oldest GET (no route) 4 s"


def test_the_progress_names_threads_and_workers() -> None:
    assert describe({"waiting_for": ["mail", "log"]}, 80) == "waiting for mail, log"
    progress = {"phase": "load", "in_flight": 0, "old": 2, "new": 1}
    assert describe(progress, 80) == "load: 0 in flight, 2 old and 1 new workers (new workers load the code)"


# The last log records

LOGGING = """
import logging
for number in range(9):
    logging.getLogger("shop").warning("record %d %s\\nmore", number, "x" * 200)
"""


def test_status_shows_the_last_records_a_line_each(serve: Serve, program: Program) -> None:
    program.edit("first", '@app.get("/log")\ndef log():\n' + LOGGING.replace("\n", "\n    ") + '\n    return "ok"\n')
    server = serve(cwd=program.directory)
    server.get("/log")
    shown = on_terminal("status", "-s", server.socket, width=70).splitlines()
    records = [line for line in shown if "record" in line and "shop:" in line]
    assert [line.split("record ")[1][0] for line in records] == list("45678")
    assert all(len(line) == 70 for line in records)
    assert all(line.endswith("…") for line in records)
    assert "record" not in run_cli("status", "-s", server.socket).stdout


# Closed streams

CLOSED = {"<&-": "stdin", ">&-": "stdout", "2>&-": "stderr"}


def closed(
    which: str, *arguments: str, command: Sequence[str] = CLI, env: Env = NO_ENV
) -> subprocess.CompletedProcess[str]:
    """flask-ctl, as a shell begins it with these streams closed."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {which}', "sh", *command, *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.parametrize("which", first_quick([" ".join(CLOSED), *CLOSED]))
def test_with_a_closed_stream_each_command_does_what_it_does_else(
    serve: Serve, shared_typed: Server, which: str
) -> None:
    """What would be written to the closed one is dropped."""
    server = serve()
    for words, said in (
        (["ping"], "pong"),
        (["status"], "running"),
        (["reload"], "generation 2"),
        (["call", "empty-cache", "-s", shared_typed.socket], "emptied"),
        (["stop"], "stopped"),
    ):
        done = closed(which, *words, *([] if "-s" in words else ["-s", server.socket]))
        assert (done.returncode, done.stderr) == (0, ""), words
        assert (said in done.stdout) is (">&-" not in which.replace("2>&-", "")), words
    assert server.wait() == 0


@pytest.mark.parametrize("which", first_quick([" ".join(CLOSED), *CLOSED]))
def test_the_exit_code_of_a_failure_is_the_same_with_a_closed_stream(short_path: pathlib.Path, which: str) -> None:
    for command in ("ping", "status", "reload", "stop"):
        done = closed(which, command, "-s", str(short_path / "nobody.sock"))
        assert (done.returncode, done.stdout) == (3, "")
        assert ("nothing is running" in done.stderr) is ("2>&-" not in which), command


def test_a_closed_stdin_is_no_terminal(serve: Serve) -> None:
    server = serve()
    done = closed("<&-", "stop", "--all")
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    assert server.status()["state"] == "running"
    assert closed("<&-", "shell", "-s", server.socket).returncode == 0
    assert closed("<&-", "stop", "--all", "--yes").returncode == 0
    assert server.wait() == 0


def test_flask_ctl_of_an_app_needs_no_stream_either(serve: Serve) -> None:
    server = serve()
    flask = [*PYTHON, "-m", "flask", "--app", "sample", "ctl"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *flask, "stop", "-s", server.socket], cwd=APPS, timeout=TIMEOUT
    )
    assert (done.returncode, server.wait()) == (0, 0)
