"""While the program can't be imported, Werkzeug's reloader waits for a change, and `status` says so."""

import json
import os
import pathlib
import sys

import pytest
from harness import PYTHON, Serve, Server, run_cli, until

from flask_ctl.client.absence import reloader_at
from flask_ctl.client.trust import Trust
from flask_ctl.system import locks
from flask_ctl.system.processes import start_time

PROGRAM = "import flask, flask_ctl; app = flask.Flask('edited'); flask_ctl.Control(app)\n"
DEBUG = [*PYTHON, "-m", "flask", "--app", "edited", "run", "--debug", "--port", "0"]


class Edited:
    """A program under the reloader, which a test breaks."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.file = directory / "edited.py"
        self.file.write_text(PROGRAM)

    def break_it(self, server: Server) -> None:
        """Have the reloader restart it with code that can't be imported; returns when that has failed."""
        self.file.write_text(PROGRAM + "raise RuntimeError('broken')\n")
        until(lambda: "RuntimeError: broken" in server.output, "the import has failed")


@pytest.fixture
def edited(short_path: pathlib.Path) -> Edited:
    directory = short_path / "edited"
    directory.mkdir()
    return Edited(directory)


def test_status_is_exit_3_and_tells_of_the_reloader(serve: Serve, edited: Edited) -> None:
    """With an address; when the program is whole again it serves."""
    server = serve(command=DEBUG, cwd=edited.directory)
    edited.break_it(server)
    done = run_cli("status", "-s", server.socket)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"the reloader, pid {server.pid}, waits for a change of the program" in done.stderr
    assert json.loads(run_cli("status", "--json", "-s", server.socket).stdout)["error"]["data"]["reloaders"] == [
        server.pid
    ]
    edited.file.write_text(PROGRAM + "# mended\n")
    server.ready()
    assert run_cli("stop", "-s", server.socket).returncode == 0
    server.wait()
    assert "reloader" not in run_cli("status", "-s", server.socket).stderr


@pytest.mark.full
def test_it_is_found_by_its_directory_too(serve: Serve, edited: Edited, short_path: pathlib.Path) -> None:
    """In another directory the client does not find it."""
    server = serve(command=DEBUG, cwd=edited.directory, env={"FLASK_CTL_SOCKET": ""}, ready=False)
    assert run_cli("ping", "--wait", "30", cwd=edited.directory).returncode == 0
    edited.break_it(server)
    done = run_cli("status", cwd=edited.directory)
    assert done.returncode == 3
    assert f"the reloader, pid {server.pid}, waits for a change of the program" in done.stderr
    elsewhere = short_path / "elsewhere"
    elsewhere.mkdir()
    done = run_cli("status", cwd=elsewhere)
    assert done.returncode == 3
    assert "reloader" not in done.stderr


ME = locks.Starter(os.getpid(), start_time(os.getpid()))

TEXTS = {
    "this process": (b"reloader %d %d\n" % ME, os.getpid()),
    "a later process with the pid": (b"reloader %d %d\n" % (ME.pid, ME.started + 1), None),
    "one that has ended": (b"reloader %d 5\n" % 2**22, None),
    "no text": (b"", None),
    "another text": (b"reloader me\n", None),
    "signs": (b"reloader -1 +1\n", None),
    "bytes": (b"\xff" * 100, None),
    "a number of many digits": (b"reloader 1 " + b"9" * 5000, None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_lock_file_names_a_reloader_that_runs(short_path: pathlib.Path, name: str) -> None:
    text, pid = TEXTS[name]
    path = short_path / "x.sock.lock"
    path.write_bytes(text)
    assert reloader_at(str(path), Trust()) == pid


def test_a_server_without_a_reloader_names_none(serve: Serve) -> None:
    server = serve()
    assert pathlib.Path(f"{server.socket}.lock").read_bytes() == b""


def test_nobody_is_named_where_there_is_no_lock_file(short_path: pathlib.Path) -> None:
    assert reloader_at(str(short_path / "x.sock.lock"), Trust()) is None
    assert sys.platform != "linux" or start_time(os.getpid()) > 0
