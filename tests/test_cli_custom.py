"""The app's own commands on the command line: options and values from the server's description."""

import contextlib
import json
import os
import pty
import sys
from typing import Any

import click
import pytest
from harness import Server, run_cli

from flask_ctl_cli.custom import custom_command
from flask_ctl_cli.settings import ControlCommand


class Typed:
    """Run a command line for apps/typed.py; its JSON result."""

    def __init__(self, socket: str) -> None:
        self.socket = socket

    def __call__(self, *arguments: str) -> Any:
        done = run_cli(*arguments, "--json", "-s", self.socket)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def typed(shared_typed: Server) -> Typed:
    return Typed(shared_typed.socket)


VALUES = {
    "scalars": ["", 1, 0.5, False],
    "scalars --word=ü --count=-3 --ratio=2 --dry-run": ["ü", -3, 2.0, True],
    "scalars --dry-run --no-dry-run": ["", 1, 0.5, False],
    "scalars --dry_run --count=0 --ratio=0": ["", 0, 0.0, True],
    "choices": ["a_b", 1, "RED"],
    "choices --mode=a-b --level=2 --colour=blue": ["a-b", 2, "BLUE"],
    "choices --mode=a_b": ["a_b", 1, "RED"],
    "lists --names=a": [["a"], None, None],
    "lists --names=a --names=b,c --numbers=1 --numbers=2 --modes=y": [["a", "b,c"], [1, 2], ["y"]],
    "optional": [None, None, None],
    "optional --word= --no-flag --colour=red": ["", False, "RED"],
    "nothing": None,
    "call scalars": ["", 1, 0.5, False],
    "call scalars word=a=b count=-3 ratio=2 dry_run=yes": ["a=b", -3, 2.0, True],
    "call scalars dry-run=1 word=": ["", 1, 0.5, True],
    "call choices mode=a-b level=2 colour=blue": ["a-b", 2, "BLUE"],
    "call lists names=a,b numbers=1,2 modes=x,y": [["a", "b"], [1, 2], ["x", "y"]],
    "call lists names=": [[], None, None],
    "call optional flag=false": [None, False, None],
}


def test_every_kind_of_parameter_arrives_as_what_it_is(typed: Typed) -> None:
    """As options of a command of its own, and as key=value of `call`."""
    assert {line: typed(*line.split()) for line in VALUES} == VALUES


REFUSED = {
    "scalars --count=1.5": "1.5",
    "scalars --ratio=much": "much",
    "scalars --ratio=nan": "not JSON",
    "scalars --nonsense=1": "--nonsense",
    "choices --mode=c": "a_b, a-b",
    "choices --level=3": "1, 2",
    "choices --colour=RED": "red, blue",
    "lists": "--names",
    "lists --names=a --numbers=b": "b",
    "call scalars count=1.5": "count",
    "call scalars dry_run=perhaps": "dry_run",
    "call scalars nonsense=1": "word, count, ratio, dry_run",
    "call scalars timeout=1": "word, count, ratio, dry_run",
    "call choices mode=c": "a_b, a-b",
    "call lists": "names",
    "call stop nonsense=1": "--nonsense",
}


def test_a_wrong_value_is_exit_2_before_anything_is_called(typed: Typed) -> None:
    """The message names what is wrong, or what there is."""
    for line, named in REFUSED.items():
        done = run_cli(*line.split(), "-s", typed.socket)
        assert (done.returncode, done.stdout) == (2, ""), line
        assert named in done.stderr, line


def test_help_tells_types_defaults_and_what_is_required(typed: Typed) -> None:
    """As the server describes them."""
    shown = {name: run_cli(name, "--help", "-s", typed.socket).stdout for name in ("scalars", "choices", "lists")}
    for name, words in {
        "scalars": ["A str, an int, a float and a bool.", "--count INTEGER", "[default: 0.5]", "--dry-run / --no-dry"],
        "choices": ["--mode [a_b|a-b]", "--level [1|2]", "[default: red]"],
        "lists": ["--names TEXT", "several times", "[required]", "--modes [x|y]"],
    }.items():
        for word in words:
            assert word in shown[name], (name, word)


def test_the_programs_help_lists_them(typed: Typed) -> None:
    """With their summaries, wherever --socket stands."""
    shown = run_cli("-s", typed.socket, "--help").stdout
    assert "A str, an int, a float and a bool." in shown
    assert "Check that the server answers." in shown


def test_help_has_no_sequence_for_the_terminal_that_the_app_gives() -> None:
    schema = {"default": "a\x1b[2J", "enum": ["a\x1b[2J", "b"]}
    description = {"summary": "Say\x1b[2J it.", "impact_note": "b\x1b[2J", "impact": "high"}
    description["parameters"] = {"properties": {"text": schema}}  # type: ignore[assignment]
    command = custom_command("greet", description, ControlCommand)
    with click.Context(command) as context:
        shown = command.get_help(context)
    assert "Say\\x1b[2J it." in shown
    assert "\x1b" not in shown


def test_hyphens_and_underscores_are_the_same(shared: Server) -> None:
    """In names of commands: wait-for is wait_for."""
    shared.release("a")
    for line in (["wait-for", "--name=a"], ["wait_for", "--name=a"], ["call", "wait-for", "name=a"]):
        assert run_cli(*line, "-s", shared.socket).stdout == "a\n", line


def test_a_result_is_text_or_json(typed: Typed) -> None:
    """A string as it is, nothing for None, JSON for the rest; JSON for all with --json."""
    as_text = {name: run_cli(name, "-s", typed.socket).stdout for name in ("text", "nothing", "optional")}
    assert as_text["text"] == "grüße\n"
    assert as_text["nothing"] == ""
    assert json.loads(as_text["optional"]) == [None, None, None]
    assert (typed("text"), typed("nothing")) == ("grüße", None)


def test_the_servers_other_methods_can_be_called(typed: Typed) -> None:
    """ping, status and commands are methods like the rest."""
    assert typed("call", "ping")["pong"] is True
    assert typed("call", "status")["app"] == "typed"
    assert "scalars" in typed("commands")


# Commands of high impact


def answered(answer: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of flask-ctl on a terminal, where a person answers its question."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "flask_ctl_cli", *arguments])
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece
            if piece.endswith(b"Go on? [y/N]: "):
                os.write(terminal, answer.encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_on_a_terminal_a_command_of_high_impact_asks_first_unless_yes_is_given(typed: Typed) -> None:
    socket = typed.socket
    question = "empty_cache has a high impact: it empties the cache. Go on?"
    for command in (["empty-cache"], ["call", "empty-cache"]):
        code, shown = answered("n", *command, "-s", socket)
        assert (code, question in shown, "emptied" in shown) == (1, True, False)
        code, shown = answered("y", *command, "-s", socket)
        assert (code, question in shown, "emptied" in shown) == (0, True, True)
        code, shown = answered("", *command, "--yes", "-s", socket)
        assert (code, question in shown, "emptied" in shown) == (0, False, True)


def test_a_script_is_not_asked_before_a_command_of_high_impact(typed: Typed) -> None:
    done = run_cli("empty-cache", "-s", typed.socket)
    assert (done.returncode, done.stdout) == (0, "emptied\n")


def test_help_tells_role_and_impact(typed: Typed) -> None:
    shown = run_cli("empty-cache", "--help", "-s", typed.socket).stdout
    assert "Role: operate. Impact: high (it empties the cache)." in shown


def test_the_help_of_a_built_in_command_tells_what_the_server_does(shared: Server) -> None:
    with shared.client() as client:
        described = client.commands()
    for name in ("ping", "status", "stop", "reload"):
        note = described[name]["impact_note"]
        line = f"Role: {described[name]['role']}. Impact: {described[name]['impact']}{note and f' ({note})'}."
        assert line in " ".join(run_cli(name, "--help").stdout.split())
