"""What comes from others and is shown to a person: no command for the terminal, and no row that is not one."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import click
import pytest
from harness import PYTHON, Serve, run_cli
from test_fleet_gather import instance
from test_terminal import on_terminal

from flask_ctl import ControlError, LiveInstance, ReloadFailed, printable, render_message
from flask_ctl_cli.commands.stop import confirm_all
from flask_ctl_cli.fleet import streams
from flask_ctl_cli.fleet.selection import FleetTarget
from flask_ctl_cli.many import Answer, print_answers
from flask_ctl_cli.output import report_errors
from flask_ctl_cli.progress import describe
from flask_ctl_cli.rollout.text import render
from flask_ctl_cli.selection import Target

EVIL = "a\x1b[2J\r\n\x9bshop-1  done\u2028b\u202ec"
"""Clears the screen, begins a line, and writes from right to left."""


@pytest.fixture(autouse=True)
def _command() -> Iterator[None]:
    with click.Context(click.Command("status")):
        yield


def assert_harmless(shown: str, lines: int) -> None:
    assert len(shown.rstrip("\n").splitlines()) == lines, shown
    assert all(char.isprintable() for line in shown.split("\n") for char in line), repr(shown)


def test_a_text_is_printable_over_its_lines_or_on_one() -> None:
    assert printable("a\x1b\nb") == "a\\x1b\nb"
    assert printable("a\x1b\nb", keep="") == "a\\x1b\\x0ab"


@pytest.mark.parametrize(
    "message",
    [
        {"dropped": EVIL},
        {"gap": True, "worker": EVIL},
        {"generation": EVIL},
        {"unanswered": [{"worker": EVIL, "error": EVIL}]},
        {"time": EVIL, "worker": EVIL, "level": EVIL, "logger": EVIL, "message": EVIL, "traceback": EVIL},
    ],
)
def test_further_lines_of_a_message_are_indented(message: dict[str, Any]) -> None:
    first, *others = render_message("logs", message).split("\n")
    assert all(line.startswith("    ") for line in others)
    assert all(line.isprintable() for line in (first, *others))


def test_an_instance_of_the_fleet_has_one_line_for_each_message(capsys: pytest.CaptureFixture[str]) -> None:
    target = FleetTarget(SimpleNamespace(), instance(EVIL))  # type: ignore[arg-type]
    for item in (
        streams.Item(target, {}, ControlError("lost")),
        streams.Item(target, {"end": EVIL.partition("\n")[0]}),
        streams.Item(target, {"generation": 2}),
    ):
        streams._print(item, "logs")
        captured = capsys.readouterr()
        assert_harmless(captured.out + captured.err, 1)


def answers() -> dict[str, Callable[[], None]]:
    target = Target(EVIL, None, EVIL, 7)
    failed = ReloadFailed("refused", {"traceback": EVIL.replace("\n", ""), "directory": ""})
    one_line = ControlError(EVIL.replace("\n", ""))
    progress = {"phase": EVIL, "oldest_request": {"method": EVIL, "route": EVIL, "age": 1.0}}
    record = {
        "id": EVIL, "method": EVIL, "end": EVIL, "operator": {"user": EVIL, "host": EVIL, "pid": EVIL},
        "targets": [
            {"host": EVIL, "name": EVIL, "pid": EVIL, "outcome": None, "asked": True, "message": EVIL, "now": None}
        ],
    }  # fmt: skip
    return {
        "an error": lambda: print_answers([Answer(target, 1, error=one_line)], str, quiet=False),
        "a refused reload": lambda: print_answers([Answer(target, 7, error=failed)], str, quiet=False),
        "a record": lambda: click.echo(render(record, "ended").rpartition("\nto go on")[0]),
        "a record that runs": lambda: click.echo(render(record, "running")),
        "progress": lambda: click.echo(describe(progress, 500)),
    }


@pytest.mark.parametrize(("name", "lines"), [
    ("an error", 1), ("a refused reload", 3), ("a record", 2), ("a record that runs", 2), ("progress", 1),
])  # fmt: skip
def test_no_text_of_another_begins_a_line(capsys: pytest.CaptureFixture[str], name: str, lines: int) -> None:
    answers()[name]()
    captured = capsys.readouterr()
    assert_harmless(captured.out + captured.err, lines)


def test_no_result_looks_like_that_of_another_instance(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "well\n== shop-2, pid 8, /tmp/shop-2.sock\ndone"
    print_answers([Answer(Target("/a.sock", None, "shop-1", 7), 0, forged)], str, quiet=False)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")] == [
        "== shop-1, pid 7, /a.sock"
    ]


def test_an_error_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit), report_errors(as_json=False):
        raise ControlError(EVIL)
    assert_harmless(capsys.readouterr().err.replace("\n", ""), 1)


def test_the_question_names_each_instance_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(click, "confirm", lambda text, **options: asked.append(text))
    confirm_all([Target("/a.sock", LiveInstance("/a.sock", None), EVIL, 7)])
    assert_harmless(asked[0], 2)


PROGRAM = """
from flask import Flask
from flask_ctl import Control

app = Flask("evil")
control = Control(app)

@control.command
def text() -> str:
    return "a\\tb\\x07"

app.run()
"""


def test_a_result_reaches_a_file_as_it_is_and_a_terminal_without_commands(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "evil.py").write_text(PROGRAM)
    server = serve(command=[*PYTHON, "evil.py"], cwd=tmp_path)
    assert run_cli("text", "-s", server.socket).stdout == "a\tb\x07\n"
    shown = on_terminal("text", "-s", server.socket)
    assert "\x07" not in shown
    assert "\\x07" in shown
