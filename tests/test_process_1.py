"""Process 1 of a PID namespace, as in a container: signals, orphans, exit codes. Real namespaces."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import psutil
import pytest
from harness import APPS, MODES, PYTHON, TIMEOUT, Done, Pending, Program, Serve, Server, run_cli, until

from flask_ctl import ControlError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace")

INSIDE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

PARENT = """
import subprocess
from sample import app, control

@control.command
def orphans() -> list[int]:
    for _ in range(100):
        subprocess.run(["sh", "-c", "true & exit 3"], check=False)
    return [subprocess.run(["sh", "-c", f"exit {code}"]).returncode for code in range(3)]
"""


def init_of(server: Server) -> psutil.Process:
    """Process 1 of the namespace, with the pid that it has here."""
    return psutil.Process(server.pid).children()[0]


def run_inside(server: Server, *arguments: str) -> Done:
    """`flask-ctl` in the namespace, as by docker exec."""
    command = ["nsenter", "-t", str(init_of(server).pid), "-p", "-m", sys.executable, "-m", "flask_ctl_cli"]
    return subprocess.run(
        [*command, *arguments, "--socket", server.socket], capture_output=True, text=True, timeout=TIMEOUT
    )


def test_flask_ctl_run_leaves_a_small_process_1_that_passes_signals_on_and_reaps(
    serve: Serve, short_path: pathlib.Path
) -> None:
    (short_path / "parent.py").write_text(PARENT)
    command = [*INSIDE, *PYTHON, "-m", "flask_ctl_cli", "run", "--app", "parent", "--port", "0"]
    server = serve(command=command, cwd=short_path, env={"PYTHONPATH": str(APPS), "container": "test"})
    init = init_of(server)
    (child,) = init.children()
    status = server.status()
    assert status["pid"] not in (1, init.pid)
    assert status["supervisor"] == {"kind": "container", "restart": "unknown"}
    # Neither Flask nor what flask-ctl needs has been imported there.
    maps = {path.path for path in child.memory_maps()} - {path.path for path in init.memory_maps()}
    assert any("markupsafe" in path for path in maps)

    assert server.call("orphans") == [0, 1, 2]
    until(lambda: init.children(recursive=True) == [child], "the end of the orphans")

    done = run_inside(server, "stop", "--for-good")
    assert (done.returncode, done.stdout) == (2, "")
    assert "docker stop" in done.stderr
    held = server.begin("/hold/a")
    init.send_signal(signal.SIGTERM)
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


LINGERING = """
import sys
from flask_ctl_cli import init
init.LINGER, sys.argv[0] = 60, "flask-ctl"
init.fork_as_init()
from flask_ctl_cli.main import main
main()
"""
"""The program, with time for a client on a busy machine."""


def test_a_client_in_the_container_prints_the_result_before_process_1_ends(serve: Serve) -> None:
    options = ["run", "--app", "sample", "--port", "0"]
    server = serve(command=[*INSIDE, *PYTHON, "-c", LINGERING, *options], env={"container": "test"})
    done = run_inside(server, "stop")
    assert done.returncode == 0
    assert "stopped: 0 requests finished" in done.stdout
    assert "container may start it again" in done.stdout
    assert server.wait() == 0


AS_INIT = """
import os, signal, sys
sys.argv = ["flask-ctl", "run"]
from flask_ctl_cli.init import fork_as_init
assert os.getpid() != 1
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(1, signal.SIGTERM); signal.pause()", 143),
        ("os.kill(1, signal.SIGHUP); signal.pause()", 129),
        ("os.kill(os.getpid(), signal.SIGTSTP); sys.exit(4)", 4),
        ("signal.signal(signal.SIGINT, lambda *_: os._exit(7)); os.kill(1, signal.SIGINT); signal.pause()", 7),
    ],
)
def test_process_1_ends_with_the_exit_code_of_the_program(code: str, expected: int) -> None:
    """A signal that kills it is 128 and its number, as in a shell."""
    done = subprocess.run([*INSIDE, sys.executable, "-c", AS_INIT + code], timeout=TIMEOUT)
    assert done.returncode == expected


def test_process_1_ends_with_the_exit_code_of_the_program_without_proc() -> None:
    """Where nothing is known of clients in the container."""
    missing = "import os\ndef missing(path): raise FileNotFoundError\nos.listdir = missing"
    done = subprocess.run([*INSIDE, sys.executable, "-c", missing + AS_INIT + "sys.exit(3)"], timeout=TIMEOUT)
    assert done.returncode == 3


@pytest.mark.parametrize("argv", [["flask", "run"], ["flask-ctl", "status"], ["python", "run"]])
def test_another_program_is_process_1_itself(argv: list[str]) -> None:
    code = f"import os, sys; sys.argv = {argv}; import flask_ctl_cli; sys.exit(os.getpid())"
    assert subprocess.run([*INSIDE, sys.executable, "-c", code], timeout=TIMEOUT).returncode == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_an_app_that_is_process_1_stops_by_a_signal(serve: Serve, signum: signal.Signals) -> None:
    server = serve(command=[*INSIDE, *PYTHON, "sample.py"])
    held = server.begin("/hold/a")
    init_of(server).send_signal(signum)
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


HELPER = """
import subprocess
code = subprocess.run(["sh", "-c", "kill -TERM $$; exit 5"]).returncode
os.write(1, f"helper ended: {code}\\n".encode())
"""

GATE = """
os.write(1, b"imports\\n")
open("gate").read()
"""


def test_a_signal_while_the_new_code_of_process_1_is_imported_is_not_lost(serve: Serve, program: Program) -> None:
    """The kernel drops what process 1 has no handler for; docker stop would kill it after ten seconds."""
    server = serve(command=[*INSIDE, *PYTHON, "sample.py"], cwd=program.directory)
    os.mkfifo(program.directory / "gate")
    program.edit("new", HELPER + GATE)
    reload = Pending.call(lambda: server.reload(preflight=False))
    until(lambda: "imports" in server.lines, "the import of the new code")
    init_of(server).send_signal(signal.SIGTERM)
    (program.directory / "gate").write_text("")
    assert reload.result()["generation"] == 2
    assert server.wait() == 0
    assert "helper ended: -15" in server.lines, "what the new code starts ends by TERM"


@pytest.mark.full
def test_a_signal_during_the_preflight_of_a_container_calls_the_reload_off(serve: Serve, program: Program) -> None:
    server = serve(command=[*INSIDE, *MODES["flask-ctl run"]], cwd=program.directory)
    os.mkfifo(program.directory / "gate")
    program.edit("new", GATE)
    reload = Pending.call(server.reload)
    until(lambda: server.status()["state"] == "reloading", "the preflight")
    init_of(server).send_signal(signal.SIGTERM)
    with pytest.raises(ControlError):
        reload.result()
    assert server.wait() == 0
    assert run_cli("status", "--socket", server.socket).returncode == 3
