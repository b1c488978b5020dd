"""Shell completion: commands, the app's own included, options, and sockets."""

import os
import pathlib
import signal

import pytest
from harness import APPS, Serve, first_quick, run_cli


def complete(line: str, cwd: pathlib.Path | None = None) -> list[str]:
    """The words that bash offers at the end of a line, and what was printed beside them."""
    words = line.split(" ")
    env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_FLASK_CTL_COMPLETE": "bash_complete"}
    done = run_cli(env=env, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return [word.removeprefix("plain,") for word in done.stdout.split()]


def test_our_own_commands_are_offered_without_an_instance() -> None:
    """All, or those that begin so."""
    assert complete("flask-ctl ") == ["call", "help", "keygen", "ping", "reload", "run", "status", "stop"]
    assert complete("flask-ctl st") == ["status", "stop"]


def test_options_and_choices_are_offered() -> None:
    """Those of the command, the common ones included."""
    assert {"--mode", "--grace", "--no-wait", "--socket", "--json"} <= set(complete("flask-ctl stop --"))
    assert complete("flask-ctl stop --mode f") == ["fast"]


def test_the_apps_own_commands_are_offered(serve: Serve) -> None:
    """By hyphenated name, with their options, and for `call`."""
    path = serve().socket
    assert complete(f"flask-ctl -s {path} g") == ["greet"]
    assert complete(f"flask-ctl -s {path} wa") == ["wait-for"]
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


@pytest.mark.parametrize(
    "line", first_quick(["flask-ctl -s {} greet --q", "flask-ctl -s {} s", "flask-ctl -s {} call s"])
)
def test_an_instance_that_does_not_answer_spoils_nothing(serve: Serve, line: str) -> None:
    """What is known without it is offered, and no error shows."""
    server = serve()
    os.kill(server.pid, signal.SIGSTOP)
    assert set(complete(line.format(server.socket))) <= {"status", "stop", "--quiet"}
