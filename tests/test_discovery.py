"""Where a client looks that was not told: nothing is stopped by guess."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
from harness import Serve, Server, run_cli

from flask_ctl import AmbiguousTarget, ControlClient, NotRunning, find_instance, live_instances
from flask_ctl.client.instances import LiveInstance
from flask_ctl.system.addresses import default_directories, default_path

NAMED = """
import os
from flask import Flask
from flask_ctl import Control
app = Flask(os.environ["NAME"])
Control(app)
app.run(port=0)
"""


@pytest.fixture
def project(short_path: pathlib.Path) -> pathlib.Path:
    """A directory for apps to run in; also the directory that the client is in."""
    directory = short_path / "project"
    directory.mkdir()
    return directory


@pytest.fixture
def serve_in(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Start an app in a directory, listening at its default socket."""

    def start(directory: pathlib.Path, name: str = "one_app", runtime: str = os.environ["XDG_RUNTIME_DIR"]) -> Server:
        env = {"FLASK_CTL_SOCKET": "", "NAME": name, "XDG_RUNTIME_DIR": runtime}
        server = serve(command=[sys.executable, "-c", NAMED], ready=False, cwd=directory, env=env)
        with monkeypatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", runtime)
            server.socket = default_path(name, str(directory))
        return server.ready()

    return start


def test_none_alive_is_exit_3_with_the_places(project: pathlib.Path) -> None:
    """Both default directories are listed."""
    done = run_cli("stop", cwd=project)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(default_directories()) == 2
    for directory in default_directories():
        assert directory in done.stderr


def test_stale_sockets_are_listed_but_not_alive(project: pathlib.Path) -> None:
    """A dead process's socket is no instance."""
    stale = default_path("dead", str(project))
    os.mkdir(os.path.dirname(stale), 0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(stale)
    assert live_instances() == []
    done = run_cli("stop", "--json", cwd=project)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["data"] == {"tried": [stale]}


def test_the_one_instance_of_this_directory_is_used_and_named(serve_in: Serve, project: pathlib.Path) -> None:
    """On stderr, so that stdout holds the result only; --quiet leaves it out."""
    server = serve_in(project)
    done = run_cli("status", "--json", cwd=project)
    assert done.returncode == 0
    assert json.loads(done.stdout)["pid"] == server.pid
    assert done.stderr == f"using {server.socket}\n"
    assert run_cli("status", "--json", "--quiet", cwd=project).stderr == ""


def test_an_instance_below_this_directory_is_used(serve_in: Serve, project: pathlib.Path) -> None:
    """Its cwd or its code lies below; through a symbolic link, too."""
    server = serve_in(project)
    link = project.parent / "link"
    link.symlink_to(project.parent)
    for directory in (project.parent, link):
        assert find_instance(str(directory)) == server.socket
    with pytest.raises(AmbiguousTarget):
        find_instance(f"{project}-b")


def test_an_apps_own_command_finds_the_instance_once(serve_in: Serve, project: pathlib.Path) -> None:
    """It is asked for its commands and then called, but named once."""
    server = serve_in(project)
    done = run_cli("commands", cwd=project)
    assert done.returncode == 0
    assert done.stderr == f"using {server.socket}\n"


def test_an_instance_elsewhere_is_not_used(serve_in: Serve, project: pathlib.Path) -> None:
    """Exit 2, with the list, and it still runs."""
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    server = serve_in(elsewhere)
    done = run_cli("stop", cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert server.socket in done.stderr
    assert f"pid {server.pid}" in done.stderr
    assert "--socket" in done.stderr
    assert server.status()["state"] == "running"
    # To wait it is as if nothing ran.
    assert run_cli("wait", "gone", cwd=project).returncode == 0
    done = run_cli("wait", "ready", "--timeout", "0.1", cwd=project)
    assert (done.returncode, server.socket in done.stderr) == (3, True)
    # Beside one here the other directory's does not matter.
    here = serve_in(project, "other_app")
    assert run_cli("stop", cwd=project).returncode == 0
    assert here.wait() == 0
    assert server.status()["state"] == "running"


def test_two_instances_here_are_ambiguous(serve_in: Serve, project: pathlib.Path) -> None:
    """Exit 2 with both; none of them is stopped."""
    servers = [serve_in(project, "one_app"), serve_in(project, "other_app")]
    done = run_cli("stop", "--json", cwd=project)
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["error"]["data"] == {"sockets": [server.socket for server in servers], "matching": 2}
    assert "2 instances run in" in told["error"]["message"]
    assert [server.status()["state"] for server in servers] == ["running", "running"]


def test_an_instance_that_does_not_answer_is_meant_if_no_other_one_is_here(
    serve_in: Serve, project: pathlib.Path
) -> None:
    """With another one here it is exit 2, until --socket says which one."""
    silent = serve_in(project, "silent_app")
    silent.suspend()
    done = run_cli("stop", "--timeout", "0.3", cwd=project)
    assert (done.returncode, silent.socket in done.stderr) == (4, True)
    other = serve_in(project)
    done = run_cli("stop", "--timeout", "0.3", cwd=project)
    assert done.returncode == 2
    assert f"{silent.socket}  (does not answer)" in done.stderr
    assert run_cli("stop", "-s", other.socket, cwd=project).returncode == 0
    done = run_cli("stop", "--grace", "0.1", "--kill-after", "0.2", cwd=project)
    assert (done.returncode, silent.wait()) == (6, -signal.SIGKILL)


def test_the_second_default_directory_is_searched_too(serve_in: Serve, project: pathlib.Path) -> None:
    """A server without XDG_RUNTIME_DIR is found by a client that has it."""
    server = serve_in(project, runtime="")
    assert server.socket.startswith(os.environ["TMPDIR"])
    assert run_cli("stop", cwd=project).returncode == 0
    assert server.wait() == 0


def test_a_directory_that_others_may_write_to_is_not_searched(serve_in: Serve, project: pathlib.Path) -> None:
    """Somebody else's socket could lie there."""
    server = serve_in(project)
    os.chmod(os.path.dirname(server.socket), 0o777)
    assert run_cli("stop", cwd=project).returncode == 3


def test_in_a_directory_that_is_gone_nothing_is_guessed(project: pathlib.Path) -> None:
    """Exit 2 without a traceback."""
    command = f'rmdir {project} && exec "$0" -m flask_ctl_cli stop'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=project, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "Error: the current directory is gone; say which instance is meant by --socket\n"


def test_the_library_looks_in_the_same_places(
    serve_in: Serve, project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ControlClient() without an address."""
    monkeypatch.chdir(project)
    with pytest.raises(NotRunning):
        ControlClient().ping()
    server = serve_in(project)
    with ControlClient() as client:
        assert client.ping()["pid"] == server.pid
        assert client.endpoint == server.socket


def known(place: str, *, answers: bool = True) -> LiveInstance:
    """An instance whose entry tells its directory, if it has one, and that answers or not."""
    status = {"cwd": place, "root_path": place} if answers else None
    return LiveInstance(f"/run{place or '/unknown'}.sock", status, cwd=place)


HERE, SILENT_HERE = known("/srv/shop"), known("/srv/shop", answers=False)
ELSEWHERE, UNKNOWN = known("/srv/other", answers=False), known("", answers=False)


@pytest.mark.parametrize(
    ("live", "problem"),
    [
        ([HERE], None),
        ([HERE, ELSEWHERE], None),
        ([HERE, UNKNOWN], "whose directory is not known, may run there, too"),
        ([SILENT_HERE], None),
        ([HERE, SILENT_HERE], "2 instances run in /srv/shop"),
        ([ELSEWHERE], "no running instance is known to belong to /srv/shop"),
        ([UNKNOWN], "no running instance is known to belong to /srv/shop"),
    ],
)
def test_only_an_instance_that_may_run_here_makes_it_unclear_which_one_is_meant(
    monkeypatch: pytest.MonkeyPatch, live: list[LiveInstance], problem: str | None
) -> None:
    monkeypatch.setattr("flask_ctl.client.discovery.live_instances", lambda timeout: live)
    if problem is None:
        assert find_instance("/srv/shop") == HERE.socket
        return
    with pytest.raises(AmbiguousTarget, match=problem):
        find_instance("/srv/shop")
