"""flask-ctl run, and flask ctl: the two that import the app."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import pytest
from harness import APPS, PYTHON, TIMEOUT, Done, Pending, Program, Serve, Server, first_quick, run_cli, until

from flask_ctl import ControlError

RUN = [*PYTHON, "-m", "flask_ctl_cli", "run", "--port", "0"]
PLAIN = """
from flask import Flask
app = Flask(__name__)
@app.get("/")
def index():
    return "plain"
"""
CONFIGURED = """
import os
from flask import Flask
from flask_ctl import Control
app = Flask("configured")
app.config["CTL_SOCKET"] = os.environ["CONFIGURED_SOCKET"]
Control(app)
"""


def flask(*arguments: str, cwd: pathlib.Path = APPS, **env: str) -> Done:
    """`flask` with these arguments, as a process."""
    command = [sys.executable, "-m", "flask", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=cwd, env={**os.environ, **env})


def test_run_serves_the_app_and_shows_where_it_listens(serve: Serve) -> None:
    """INFO is shown, with the path of the socket."""
    server = serve("flask-ctl run")
    assert server.get("/") == (200, b"hello")
    until(lambda: f"sample listens for control at {server.socket}" in server.output, "what the log's thread writes")
    assert run_cli("stop", "-s", server.socket).returncode == 0
    assert server.wait() == 0
    assert "atexit" in server.lines


LISTENING = " * Listening for control at {}"


def test_flask_run_says_once_where_it_listens(serve: Serve) -> None:
    """Not again after a reload, and not at all where the app's logging shows it, or `flask-ctl run` does."""
    server = serve("flask run")
    server.reload()
    assert server.output.count("listens for control") == 0
    assert server.lines.count(LISTENING.format(server.socket)) == 1
    server = serve("flask-ctl run")
    server.reload()
    assert server.output.count("listens for control at") == 1
    assert "Listening" not in server.output


def test_flask_run_says_once_where_it_listens_under_the_reloader(serve: Serve, program: Program) -> None:
    """Neither the parent says it, nor each new child."""
    command = [sys.executable, "-m", "flask", "--app", "sample", "run", "--port", "0", "--debug"]
    server = serve(command=command, cwd=program.directory)
    before = server.status()["pid"]
    program.edit("new")
    until(lambda: version(server) == "new", "a new child")
    assert server.status()["pid"] != before
    assert server.lines.count(LISTENING.format(server.socket)) == 1


def version(server: Server) -> str:
    try:
        return server.get("/version")[1].decode()
    except (ControlError, OSError):
        return ""


def test_flask_run_leaves_it_to_the_logging_of_the_app(serve: Serve, program: Program) -> None:
    for level, listening in (("INFO", True), ("ERROR", False)):
        code = f"import logging; logging.basicConfig(); logging.getLogger('flask_ctl').setLevel(logging.{level})"
        program.edit("new", code)
        server = serve("flask run", cwd=program.directory)
        assert ("listens for control" in server.output) is listening
        assert "Listening" not in server.output


def test_run_finds_an_app_without_control(serve: Serve, short_path: pathlib.Path) -> None:
    """app.py in the current directory, as `flask run` does; it gets a Control."""
    (short_path / "app.py").write_text(PLAIN)
    server = serve(command=RUN, cwd=short_path)
    assert server.get("/") == (200, b"plain")
    assert run_cli("stop", "-s", server.socket).returncode == 0


def test_run_takes_the_app_from_the_environment_and_quiet_shows_no_info(serve: Serve) -> None:
    """FLASK_APP; only warnings are shown."""
    server = serve(command=[*RUN, "--quiet"], env={"FLASK_APP": "typed:app"})
    assert server.status()["app"] == "typed"
    assert "listens for control" not in server.output


def test_run_ignores_a_run_at_the_end_of_the_module(serve: Serve, short_path: pathlib.Path) -> None:
    """As `flask run` does: the options given here count."""
    (short_path / "app.py").write_text(PLAIN + "app.run(port=1)\n")
    assert serve(command=RUN, cwd=short_path).address[1] != 1


def test_runs_socket_comes_before_the_environments(serve: Serve, short_path: pathlib.Path) -> None:
    """`run --socket` has the first word."""
    path = str(short_path / "given.sock")
    command = [*RUN, "--app", "sample", "--socket", path]
    server = serve(command=command, ready=False, env={"FLASK_CTL_SOCKET": "/nowhere/x"})
    server.socket = path
    assert server.ready().status()["app"] == "sample"


@pytest.mark.full
def test_runs_host_and_threads_are_passed_on(serve: Serve) -> None:
    """127.0.0.2 is loopback, too."""
    server = serve(command=[*RUN, "--app", "sample", "--host", "127.0.0.2", "--threads", "2"])
    assert server.address[0] == "127.0.0.2"


def test_run_with_a_socket_that_cannot_be_used_is_exit_1(shared: Server, short_path: pathlib.Path) -> None:
    """In use, no such directory, no address, too long: it does not serve."""
    for path in (shared.socket, "/nowhere/x.sock", "carrier-pigeon:x", str(short_path / ("x" * 107))):
        done = run_cli("run", "--app", "sample", "--port", "0", "--socket", path, cwd=APPS)
        assert done.returncode == 1, path
        assert path in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", first_quick(["waitress", "werkzeug", "cheroot", "pywsgi"]))
def test_run_serves_by_the_server_that_is_named(serve: Serve, name: str) -> None:
    """Where it is told, with so many threads, and it ends and reloads like any other."""
    command = [*RUN, "--app", "sample", "--server", name, "--host", "127.0.0.2", "--threads", "2"]
    server = serve(command=command)
    assert server.status()["server"]["name"] == name
    assert server.address[0] == "127.0.0.2"
    held = [server.begin("/hold/a") for _ in range(2)]
    third = Pending(server.address, "/")
    assert server.status()["requests"]["total"] == 2
    server.release("a")
    assert [pending.result()[0] for pending in (*held, third)] == [200, 200, 200]
    assert server.reload()["generation"] == 2
    assert run_cli("stop", "-s", server.socket).returncode == 0
    assert server.wait() == 0


@pytest.mark.parametrize("name", first_quick(["waitress", "werkzeug", "cheroot", "pywsgi"]))
def test_no_server_serves_where_the_socket_is_required_and_cannot_be_had(name: str) -> None:
    """Exit 1, at once."""
    command = ["run", "--app", "sample", "--port", "0", "--server", name, "--socket", "/nowhere/x.sock"]
    done = run_cli(*command, cwd=APPS)
    assert done.returncode == 1
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", first_quick(["gunicorn", "uwsgi", "granian"]))
def test_run_becomes_the_program_of_a_server_that_starts_processes(
    serve: Serve, short_path: pathlib.Path, free_port: int, name: str
) -> None:
    """The app needs no Control; `--socket` counts, and where the socket is, is shown."""
    (short_path / "app.py").write_text(PLAIN)
    socket = short_path / "given.sock"
    command = [*PYTHON, "-m", "flask_ctl_cli", "run", "--server", name, "--host", "127.0.0.2", "--threads", "2"]
    server = serve(command=[*command, "--port", str(free_port), "-s", str(socket)], ready=False, cwd=short_path)
    server.socket = str(socket)
    status = server.ready().status()
    assert (status["server"]["name"], status["pid"], len(status["workers"])) == (name, server.pid, 1)
    until(lambda: server.status()["server"]["listeners"] == [f"http://127.0.0.2:{free_port}"], "it listens")
    assert server.get("/") == (200, b"plain")
    assert f"listens for control at {socket}" in server.output
    (short_path / "app.py").write_text(PLAIN.replace("plain", "new"))
    assert server.reload()["generation"] == 2
    assert server.get("/") == (200, b"new")
    assert run_cli("stop", "-s", server.socket).returncode == 0
    assert server.wait() == 0


@pytest.mark.full
@pytest.mark.parametrize("name", ["gunicorn", "uwsgi", "granian"])
def test_such_a_server_ends_where_the_socket_is_required_and_cannot_be_had(name: str, free_port: int) -> None:
    """With what is wrong."""
    command = ["run", "--app", "sample", "--port", str(free_port), "--server", name, "--socket", "/nowhere/x.sock"]
    done = run_cli(*command, cwd=APPS)
    assert name == "uwsgi" or done.returncode != 0, "uWSGI's own exit code"
    assert "/nowhere" in done.stderr + done.stdout


def test_such_a_server_is_not_run_in_a_process_that_has_the_app(short_path: pathlib.Path) -> None:
    """It says what to do instead."""
    (short_path / "app.py").write_text(PLAIN + "from flask_ctl import Control\nControl(app).run(server='gunicorn')\n")
    done = subprocess.run([*PYTHON, "app.py"], cwd=short_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 1
    assert "flask-ctl run --server gunicorn" in done.stderr


def test_a_server_that_is_not_installed_is_exit_1_with_the_remedy(short_path: pathlib.Path) -> None:
    """Before the app is imported."""
    (short_path / "waitress.py").write_text("raise ModuleNotFoundError('no waitress', name='waitress')")
    done = run_cli("run", "--server", "waitress", "--app", "no_such", env={"PYTHONPATH": str(short_path)})
    assert done.returncode == 1
    assert "pip install waitress" in done.stderr


def test_a_server_that_is_not_known_is_exit_2_with_the_list() -> None:
    """Before the app is imported."""
    done = run_cli("run", "--server", "nonsense", "--app", "no_such_module")
    assert done.returncode == 2
    assert "werkzeug" in done.stderr


def serve_typed_at_its_default(serve: Serve) -> Server:
    """The default path is only the server's and `flask ctl`'s to know."""
    server = serve(command=[*PYTHON, "typed.py"], ready=False, env={"FLASK_CTL_SOCKET": ""})
    found = run_cli("ping", "--wait", str(TIMEOUT), "--json", cwd=APPS)
    assert found.returncode == 0, found.stderr
    server.socket = found.stderr.removeprefix("using ").strip()
    return server


def test_flask_ctl_takes_the_socket_from_the_app(serve: Serve, short_path: pathlib.Path) -> None:
    """Its default, wherever the client is: the same path by name and root. `--help` lists the app's own commands."""
    server = serve_typed_at_its_default(serve)
    done = flask("--app", str(APPS / "typed.py"), "ctl", "status", "--json", cwd=short_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pid"] == server.pid
    assert "scalars" in flask("--app", str(APPS / "typed.py"), "ctl", "--help", cwd=short_path).stdout


@pytest.mark.full
def test_flask_ctl_takes_the_socket_from_the_config(serve: Serve, short_path: pathlib.Path) -> None:
    """CTL_SOCKET."""
    (short_path / "app.py").write_text(CONFIGURED)
    path = str(short_path / "configured.sock")
    env = {"CONFIGURED_SOCKET": path, "FLASK_CTL_SOCKET": ""}
    server = serve(command=[*PYTHON, "-m", "flask", "run", "--port", "0"], ready=False, cwd=short_path, env=env)
    server.socket = path
    server.ready()
    assert json.loads(flask("ctl", "ping", "--json", cwd=short_path, **env).stdout)["pid"] == server.pid
    assert flask("ctl", "stop", cwd=short_path, **env).returncode == 0
    assert server.wait() == 0


def test_flask_ctl_has_the_same_exit_codes(serve: Serve) -> None:
    """Of commands, of the app's own, of wrong usage, and as JSON documents."""
    server = serve()
    held = server.begin("/hold/a")
    env: dict[str, Any] = {"FLASK_CTL_SOCKET": server.socket}
    assert flask("--app", "sample", "ctl", "greet", "--name", "x", **env).returncode == 0
    assert flask("--app", "sample", "ctl", "fail", **env).returncode == 1
    usage = flask("--app", "sample", "ctl", "ping", "--nonsense", "--json", **env)
    assert usage.returncode == json.loads(usage.stdout)["exit"] == 2
    assert flask("--app", "sample", "ctl", "stop", "--grace", "0", **env).returncode == 6
    assert flask("--app", "sample", "ctl", "ping", **env).returncode == 3
    with pytest.raises(ConnectionError):
        held.result()


def test_flask_ctl_of_an_app_that_is_off_is_exit_2() -> None:
    """Nothing listens, nothing is guessed."""
    done = flask("--app", "sample", "ctl", "stop", FLASK_CTL_SOCKET="off")
    assert (done.returncode, done.stdout) == (2, "")


def test_flask_ctl_without_an_app_or_without_control_is_exit_2(short_path: pathlib.Path) -> None:
    """--help is there all the same."""
    without_app = flask("ctl", "ping", cwd=short_path)
    (short_path / "app.py").write_text(PLAIN)
    without_control = flask("ctl", "ping", cwd=short_path)
    assert [without_app.returncode, without_control.returncode] == [2, 2]
    assert "Control(app)" in without_control.stderr
    assert flask("ctl", "--help", cwd=short_path).returncode == 0


def test_a_client_does_not_import_the_app(short_path: pathlib.Path) -> None:
    """Only `run` does."""
    (short_path / "app.py").write_text("raise SystemExit(99)")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_path / "stale.sock"))
    done = run_cli("status", "-s", "stale.sock", cwd=short_path, env={"FLASK_APP": "app"})
    assert done.returncode == 3
    assert run_cli("run", cwd=short_path).returncode == 99
