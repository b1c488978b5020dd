"""Shell completion: commands, the app's own included, options, and sockets."""

import os
import pathlib
import subprocess
import sys

import click
import pytest
from click.shell_completion import CompletionItem
from harness import APPS, Serve, Server, first_quick, run_cli
from shells import shell

from flask_ctl_cli.completion import SHELLS, assignments
from flask_ctl_cli.main import COMMANDS


def complete(line: str, cwd: pathlib.Path | None = None) -> list[str]:
    """The words that bash offers at the end of a line, and what was printed beside them."""
    words = line.split(" ")
    env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_FLASK_CTL_COMPLETE": "bash_complete"}
    done = run_cli(env=env, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return [word.removeprefix("plain,") for word in done.stdout.split()]


def test_our_own_commands_are_offered_without_an_instance() -> None:
    """All, or those that begin so."""
    assert complete("flask-ctl ") == sorted(COMMANDS)
    assert complete("flask-ctl st") == [name for name in sorted(COMMANDS) if name.startswith("st")]


def test_options_and_choices_are_offered() -> None:
    """Those of the command, the common ones included."""
    assert {"--mode", "--grace", "--no-wait", "--socket", "--json"} <= set(complete("flask-ctl stop --"))
    assert complete("flask-ctl stop --mode f") == ["fast"]


def test_the_apps_own_commands_are_offered(shared: Server) -> None:
    """By hyphenated name, with their options, and for `call`."""
    path = shared.socket
    assert complete(f"flask-ctl -s {path} g") == ["greet"]
    assert complete(f"flask-ctl -s {path} wait-") == ["wait-for"]
    assert complete(f"flask-ctl -s {path} call gr") == ["greet"]
    assert complete(f"flask-ctl -s {path} greet --t") == ["--times", "--timeout"]
    assert complete(f"flask-ctl greet -s {path} --na") == ["--name"]


def test_the_instance_of_this_directory_offers_its_commands(serve: Serve) -> None:
    """Nothing is said of having found it."""
    serve(ready=False, env={"FLASK_CTL_SOCKET": ""})
    assert run_cli("ping", "--wait", "30", cwd=APPS).returncode == 0
    assert complete("flask-ctl gr", cwd=APPS) == ["greet"]


def test_live_sockets_are_offered(serve: Serve, short_path: pathlib.Path) -> None:
    """Those in the default directories, and files."""
    serve(ready=False, env={"FLASK_CTL_SOCKET": ""})
    found = run_cli("ping", "--wait", "30", cwd=APPS).stderr.removeprefix("using ").strip()
    for line in (f"flask-ctl stop -s {short_path}/", f"flask-ctl --socket {short_path}/"):
        assert complete(line) == [found, f"file,{short_path}/"]
    assert complete("flask-ctl stop -s sam") == [found, "file,sam"], "by the name of the app"


@pytest.mark.parametrize(
    "line", first_quick(["flask-ctl -s {} greet --q", "flask-ctl -s {} s", "flask-ctl -s {} call s"])
)
def test_an_instance_that_does_not_answer_spoils_nothing(serve: Serve, line: str) -> None:
    """What is known without it is offered, and no error shows."""
    server = serve()
    server.suspend()
    assert set(complete(line.format(server.socket))) <= {*COMMANDS, "--quiet"}


def test_servers_are_offered() -> None:
    assert complete("flask-ctl run --server g") == ["gunicorn", "granian"]


DESCRIBED = {
    "parameters": {
        "properties": {
            "name": {"type": "string"},
            "loud": {"type": "boolean"},
            "kind": {"anyOf": [{"enum": ["big", "small"]}, {"type": "null"}]},
        }
    }
}


@pytest.mark.parametrize(
    ("incomplete", "words"),
    [
        ("", ["name=", "loud=", "kind="]),
        ("l", ["loud="]),
        ("loud=", ["loud=true", "loud=false"]),
        ("kind=s", ["kind=small"]),
        ("name=", []),
        ("unknown=", []),
    ],
)
def test_parameters_of_a_command_and_their_values_are_offered(incomplete: str, words: list[str]) -> None:
    assert [item.value for item in assignments(DESCRIBED, incomplete)] == words
    assert assignments({}, incomplete) == []


@pytest.mark.parametrize("name", SHELLS)
def test_a_word_of_a_server_that_a_shell_would_not_take_as_it_is_is_left_out(name: str) -> None:
    """No text of a server is run, and none is taken for another word."""
    unsafe = ["x=`id`", "x=$(id)", "x=a;id", "x=a b", "x=a\nplain,b", "x=*", "x='", "~", ""]
    items = [CompletionItem(word) for word in ["x=a-1.5,b:c/@%+", *unsafe]]
    items[0].help = "one\nplain,two"
    argument = click.Argument(["word"], shell_complete=lambda *_: [*items, CompletionItem("a b", type="file")])
    found = SHELLS[name](click.Command("x", params=[argument]), {}, "x", "_X_COMPLETE").get_completions([], "")
    assert [(item.type, item.value, item.help) for item in found] == [
        ("plain", "x=a-1.5,b:c/@%+", "one plain,two"),
        ("file", "a b", None),
    ]


def test_parameters_are_offered_behind_the_name_of_the_command(serve: Serve) -> None:
    assert complete(f"flask-ctl -s {serve().socket} call greet ") == ["name=", "times="]


@pytest.mark.full
def test_many_instances_that_do_not_answer_take_no_longer_than_one(serve: Serve, short_path: pathlib.Path) -> None:
    """Each of them is offered, and the program ends within its limit."""
    directory = pathlib.Path(os.environ["XDG_RUNTIME_DIR"]) / "flask-ctl"
    directory.mkdir(mode=0o700)
    found = []
    for number in range(4):
        server = serve(socket=directory / f"a{number}-01234567.sock")
        found.append(server.suspend().socket)
    assert complete(f"flask-ctl stop -s {directory}/") == [*found, f"file,{directory}/"]


def test_the_program_ends_in_time_whatever_it_waits_for(short_path: pathlib.Path) -> None:
    """By a timer, without a word: here it waits for a pipe that nobody writes to."""
    os.mkfifo(short_path / ".env")
    program = f"""
from flask_ctl_cli.completion import begin
begin("bash_complete")
print("waits", flush=True)
open("{short_path}/.env")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "waits\n", "")


# In a real shell; others are in tests/system


def test_bash_completes_by_the_tab_key(serve: Serve, short_path: pathlib.Path) -> None:
    server = serve()
    with shell("bash", short_path) as bash:
        bash.press("flask-ctl pi\t", "flask-ctl ping ")
        bash.press("--wa\t", "--wait ")
        bash.clear()
        bash.press("flask-ctl st\t\t", r"status +stop")
        bash.clear()
        bash.press(f"flask-ctl -s {server.socket} call gre\t", "greet ")
        bash.press("na\t", "name=$")
        bash.clear()
        bash.press("echo opt''ions:$-\r", "options:(?!f)[a-eg-zA-Z]+\r")
        server.suspend()
        bash.press(f"flask-ctl -s {server.socket} call gre\t\x15echo don''e\r", "done")
        assert "Error" not in bash.shown
        assert "Traceback" not in bash.shown


def test_bash_shows_no_error_where_the_program_is_gone(short_path: pathlib.Path) -> None:
    with shell("bash", short_path) as bash:
        bash.press("PATH=/usr/bin:/bin; echo pa''th\r", "path")
        bash.press("flask-ctl st\t\x15echo don''e\r", "done")
        assert "No such file" not in bash.shown
