"""Names and numbers on the command line: commands that are not there, `help`, and a certain worker."""

import json
import os
import pathlib
import re
import shlex

import click
import pytest
from harness import PYTHON, Serve, Server, raw, read_all, run_cli
from servers import SERVERS

from flask_ctl import SETTINGS
from flask_ctl_cli.main import cli
from flask_ctl_cli.settings import ControlCommand
from flask_ctl_cli.suggestions import one_edit_from, similar_names
from flask_ctl_cli.topics import ERROR_CODES, EXIT_CODES, meaning_of

ROOT = pathlib.Path(__file__).parent.parent
OWN = ["call", "help", "keygen", "ping", "reload", "run", "status", "stop"]

EDITS = {
    "sto": "stop",
    "stopp": "stop",
    "sttop": "stop",
    "stob": "stop",
    "sotp": "stop",
    "tsop": "stop",
    "xstop": "stop",
    "relod": "reload",
    "statsu": "status",
    "stop": None,
    "st": None,
    "spot": None,
    "clear-cache": None,
    "": None,
}


@pytest.mark.parametrize("name", EDITS)
def test_one_edit_adds_removes_replaces_or_swaps(name: str) -> None:
    assert one_edit_from(name, OWN) == EDITS[name]


def test_near_names_are_the_nearest_first_and_few() -> None:
    assert similar_names("statsu", [*OWN, "stats", "statue", "stat"])[0] in ("stats", "status")
    assert len(similar_names("statsu", [*OWN, "stats", "statue", "stat"])) == 3
    assert similar_names("xyz", OWN) == []


def test_a_name_that_neither_side_knows_is_exit_2_with_near_names_of_both(shared_typed: Server) -> None:
    """scalar is near to scalars of the app, statsu to our own status; xyzzy to none."""
    for name, near in {"scalar": "scalars", "statsu": "status", "xyzzy": "--help lists"}.items():
        done = run_cli(name, "-s", shared_typed.socket)
        assert (done.returncode, done.stdout) == (2, ""), name
        assert f"there is no command {name!r}, neither here nor in the app" in done.stderr
        assert near in done.stderr


def test_with_nothing_running_one_edit_from_our_own_is_exit_2_and_the_rest_exit_3() -> None:
    done = run_cli("stpo", "-s", "/nowhere/x.sock")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no command 'stpo', and nothing is running that could have one; did you mean stop?" in done.stderr
    done = run_cli("greet", "-s", "/nowhere/x.sock")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nothing is running at /nowhere/x.sock" in done.stderr


def test_a_mistake_is_a_document_too() -> None:
    done = run_cli("stpo", "--json", "-s", "/nowhere/x.sock")
    assert json.loads(done.stdout)["exit"] == done.returncode == 2


def test_a_near_name_of_our_own_that_the_app_has_is_the_apps(serve: Serve) -> None:
    code = "import sample; sample.control.command(name='stp')(lambda: 'mine'); sample.app.run(port=0)"
    assert run_cli("stp", "-s", serve(command=[*PYTHON, "-c", code]).socket).stdout == "mine\n"


@pytest.mark.parametrize("name", OWN)
def test_help_of_a_command_is_its_own_help(name: str) -> None:
    assert run_cli("help", name).stdout == run_cli(name, "--help").stdout != ""


@pytest.mark.parametrize("name", OWN)
def test_the_help_of_a_command_ends_with_examples_that_it_understands(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, ControlCommand)
    assert command.examples
    for example in command.examples:
        program, given, *arguments = shlex.split(example.replace("$!", "4242"))
        assert (program, given) == ("flask-ctl", name)
        command.make_context(name, arguments)
    assert run_cli(name, "--help").stdout.endswith(f"{command.examples[-1]}\n")


def test_help_alone_is_the_programs_help() -> None:
    assert run_cli("help").stdout == run_cli("--help").stdout != ""


def test_help_of_the_apps_commands_asks_the_app(shared_typed: Server) -> None:
    assert (
        run_cli("help", "scalars", "-s", shared_typed.socket).stdout
        == run_cli("scalars", "--help", "-s", shared_typed.socket).stdout
    )
    assert run_cli("help", "scalar", "-s", shared_typed.socket).returncode == 2
    assert run_cli("help", "stpo", "-s", "/nowhere/x.sock").returncode == 2
    assert run_cli("help", "scalars", "-s", "/nowhere/x.sock").returncode == 3


@pytest.mark.parametrize("number", [*EXIT_CODES, *ERROR_CODES])
def test_help_of_a_code_is_its_row(number: int) -> None:
    kind = "exit code" if number in EXIT_CODES else "error code"
    text = (EXIT_CODES | ERROR_CODES)[number]
    assert meaning_of(str(number)) == (kind, number, text)
    if number < 0:
        assert meaning_of(str(-number)) == (kind, number, text)


def test_help_of_a_code_is_one_line_or_a_document() -> None:
    """An error code looks like an option, and is none."""
    assert run_cli("help", "3").stdout == f"exit code 3: {EXIT_CODES[3]}\n"
    assert run_cli("help", "-32005").stdout == f"error code -32005: {ERROR_CODES[-32005]}\n"
    means = ERROR_CODES[-32602]
    assert json.loads(run_cli("help", "-32602", "--json").stdout) == {
        "kind": "error code",
        "code": -32602,
        "means": means,
    }


def test_help_of_a_setting_is_its_default_and_meaning() -> None:
    """In any case of letters; of all by `settings`."""
    assert run_cli("help", "ctl_grace").stdout.startswith("CTL_GRACE (default: 30.0): seconds that a stop waits")
    assert run_cli("help", "FLASK_CTL_OWNER").stdout.startswith("FLASK_CTL_OWNER: user whose sockets")
    assert json.loads(run_cli("help", "CTL_SIGNALS", "--json").stdout)[0]["default"] is True
    assert len(run_cli("help", "settings").stdout.splitlines()) == len(SETTINGS)


@pytest.mark.parametrize("topic", ["9", "-1", "-32099"])
def test_help_of_a_number_that_is_no_code_is_exit_2_with_those_that_there_are(topic: str) -> None:
    done = run_cli("help", topic)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a code; exit codes are 0, 1" in done.stderr


def rows_of(text: str, number: str) -> dict[int, str]:
    """The rows of a table that begin with such a number, and have one more column."""
    return {int(code): means for code, means in re.findall(rf"^\| ({number}) \| (.*) \|$", text, re.MULTILINE)}


def test_the_documents_have_the_codes_that_help_knows_word_for_word() -> None:
    readme, protocol = ((ROOT / name).read_text() for name in ("README.md", "docs/protocol.md"))
    assert rows_of(readme, r"\d+") == EXIT_CODES
    assert rows_of(protocol, r"-\d+") == ERROR_CODES


def test_every_command_of_the_apps_takes_a_worker_which_a_single_process_refuses_unless_it_is_that(
    shared_typed: Server,
) -> None:
    """By the option, by `call`, by _pid= in text and in JSON."""
    pid, other = str(shared_typed.pid), str(os.getpid())
    for words in (["text", "--worker", "{}"], ["call", "text", "--worker", "{}"], ["call", "text", "_pid={}"]):
        done = run_cli(*(word.format(pid) for word in words), "-s", shared_typed.socket)
        assert (done.returncode, done.stdout) == (0, "grüße\n"), words
        done = run_cli(*(word.format(other) for word in words), "-s", shared_typed.socket)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert f"no worker has the pid {other}; there is only this process, {pid}" in done.stderr
    for line, answer in {
        f"text _pid={pid}": "grüße\n",
        f"text _pid={other}": f"error: _pid: no worker has the pid {other}",
    }.items():
        with raw(shared_typed.socket) as sock:
            sock.sendall(f"{line}\n".encode())
            assert read_all(sock).decode().startswith(answer)


def test_a_worker_that_is_no_number_is_exit_2(shared_typed: Server) -> None:
    for words in (["text", "--worker", "x"], ["text", "--worker", "0"], ["call", "text", "--worker", "x"]):
        assert run_cli(*words, "-s", shared_typed.socket).returncode == 2, words


def test_a_parameter_called_worker_wins(serve: Serve) -> None:
    code = (
        "import sample\n"
        "@sample.control.command\n"
        "def hire(worker: str) -> str: return f'hello {worker}'\n"
        "sample.app.run(port=0)"
    )
    server = serve(command=[*PYTHON, "-c", code])
    assert run_cli("hire", "--worker", "ann", "-s", server.socket).stdout == "hello ann\n"
    words = ["call", "hire", "worker=ann"]
    assert run_cli(*words, f"_pid={server.pid}", "-s", server.socket).stdout == "hello ann\n"
    assert run_cli(*words, "--worker", str(server.pid), "-s", server.socket).stdout == "hello ann\n"


def test_what_is_for_the_whole_server_takes_no_worker(shared_typed: Server) -> None:
    for name in ("ping", "status", "stop", "reload", "commands"):
        assert run_cli("call", name, "--worker", str(shared_typed.pid), "-s", shared_typed.socket).returncode == 2, name
        assert run_cli("call", name, f"_pid={shared_typed.pid}", "-s", shared_typed.socket).returncode == 2, name
        assert shared_typed.status()["state"] == "running", name


def test_one_of_several_workers_is_asked(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync"])
    pid = server.status()["workers"][-1]["pid"]
    for words in (["greet", "--name", "ann"], ["call", "greet", "name=ann"]):
        done = run_cli(*words, "--worker", str(pid), "--json", "-s", server.socket)
        assert json.loads(done.stdout) == [{"pid": pid, "result": {"greeting": "hello ann"}}]
        assert run_cli(*words, "--worker", "1", "-s", server.socket).returncode == 1
