"""Flask's own example application, with nothing but `Control(app)` added, under each server."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from urllib.parse import urlencode

import flaskr
import pytest
from harness import PYTHON, TIMEOUT, Serve, Server, first_quick, until
from servers import FINDS_ITSELF, granian, gunicorn, uwsgi

CONTROLLED = "    from flask_ctl import Control\n\n    Control(app)\n    return app\n"
SERVE = {
    "cheroot": "from cheroot.wsgi import Server; Server(('127.0.0.1', 0), create_app()).start()",
    "pywsgi": "from gevent.pywsgi import WSGIServer; WSGIServer(('127.0.0.1', 0), create_app()).serve_forever()",
}
PATCH = "from gevent import monkey; monkey.patch_all(); "
WAITRESS = str(pathlib.Path(sys.executable).with_name("waitress-serve"))

COMMANDS = {
    "werkzeug": [*PYTHON, "-m", "flask", "--app", "flaskr", "run", "--port", "0"],
    "waitress": [WAITRESS, "--listen", "127.0.0.1:0", "--call", "flaskr:create_app"],
    "cheroot": [*PYTHON, "-c", f"from flaskr import create_app; {SERVE['cheroot']}"],
    "pywsgi": [*PYTHON, "-c", f"{PATCH}from flaskr import create_app; {SERVE['pywsgi']}"],
    "gunicorn": gunicorn(2, target="flaskr:create_app()").command,
    "uwsgi": uwsgi("--module", "flaskr:create_app()").command,
    "granian": granian(2, "--factory", target="flaskr:create_app").command,
}
"""By the names that `status` shows; as Flask's documentation on deploying says, where it says so."""

WORKERS = {"gunicorn": 2, "uwsgi": 2, "granian": 2}


@pytest.fixture
def directory(flask_distribution: pathlib.Path, short_path: pathlib.Path) -> pathlib.Path:
    """A copy of flaskr with its database, under control."""
    directory = short_path / "flaskr"
    flaskr.unpack(flask_distribution, directory)
    edit(directory / "flaskr" / "__init__.py", "    return app\n", CONTROLLED)
    command = [sys.executable, "-m", "flask", "--app", "flaskr", "init-db"]
    subprocess.run(command, check=True, cwd=directory, timeout=TIMEOUT, stdout=subprocess.DEVNULL)
    return directory


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def register(server: Server, name: str) -> int:
    """Sign up by the form; the status of the answer."""
    from http.client import HTTPConnection

    connection = HTTPConnection(*server.address, timeout=TIMEOUT)
    try:
        form = urlencode({"username": name, "password": "x"})
        connection.request("POST", "/auth/register", form, {"Content-Type": "application/x-www-form-urlencoded"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("name", first_quick(COMMANDS))
def test_it_is_served_shown_reloaded_and_stopped(
    no_hubs_left: None, serve: Serve, directory: pathlib.Path, free_port: int, name: str
) -> None:
    command = [word.replace("{port}", str(free_port)) for word in COMMANDS[name]]
    server = serve(command=command, cwd=directory, env=FINDS_ITSELF if name == "uwsgi" else {})
    workers = WORKERS.get(name, 0)
    until(lambda: len(server.status()["workers"]) == workers, f"{workers} workers")
    status = server.status()
    assert (status["app"], status["server"]["name"], status["state"]) == ("flaskr", name, "running")
    assert register(server, "ann") == 302
    assert server.get("/hello") == (200, b"Hello, World!")

    edit(directory / "flaskr" / "__init__.py", "Hello, World!", "Hello, again!")
    assert server.reload()["generation"] == 2
    assert server.get("/hello") == (200, b"Hello, again!")
    assert server.get("/")[0] == 200
    assert server.status()["requests"]["total"] == 4

    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert not os.path.exists(server.socket)


@pytest.mark.full
def test_its_own_tests_pass(directory: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=3 * TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
