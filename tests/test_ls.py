"""`flask-ctl ls`: what runs on this machine, however its sockets are named."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from harness import APPS, Program, Serve, run_cli, until
from holders import Hold, Holder

from flask_ctl import NotRunning, live_instances
from flask_ctl.client.instances import LiveInstance
from flask_ctl.protocol.screen import render_for_terminal
from flask_ctl.protocol.text import render_result
from flask_ctl.transports.registry import read_entries

REGISTER = """
from flask_ctl.transports.registration import Registration
from flask_ctl.transports.registry import Claims, RegisteredApp
entry = Registration(path)
entry.renew(Claims([RegisteredApp(%r, "/srv/shop", [%r])], "/srv/shop", "werkzeug"))
"""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def runtime() -> pathlib.Path:
    directory = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "flask-ctl")
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Start processes that hold locks of an entry; they end with the test."""
    holders: list[Holder] = []

    def start(path: pathlib.Path, todo: str) -> Holder:
        holders.append(Holder(path, todo))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()


def ls(*options: str) -> list[dict[str, Any]]:
    done = run_cli("ls", "--json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [one for one in found if one["owner"] == os.geteuid()]


def entries(runtime: pathlib.Path) -> list[str]:
    return [entry.path for entry in read_entries(str(runtime), os.geteuid())]


def test_an_instance_with_an_address_of_its_own_is_listed_until_it_ends(serve: Serve, runtime: pathlib.Path) -> None:
    server = serve("app.run")
    [found] = ls()
    assert found.pop("age") > 0
    assert found == {
        "name": "sample",
        "pid": server.pid,
        "state": "running",
        "problem": None,
        "generation": 1,
        "server": "werkzeug",
        "workers": 0,
        "in_flight": 0,
        "socket": server.socket,
        "sockets": [server.socket],
        "directory": str(APPS),
        "cwd": str(APPS),
        "root_path": found["root_path"],
        "owner": os.geteuid(),
    }
    shown = run_cli("ls", "--name", "sam*").stdout.splitlines()
    assert shown[0].startswith("name    ")
    assert shown[0].endswith("socket" + " " * (len(server.socket) - 4) + "directory")
    assert shown[1].split()[:5] == ["sample", str(server.pid), "running", "1", "werkzeug"]
    with server.client() as client:
        client.stop()
    assert ls() == []
    assert run_cli("ls", "--name", "sam*").returncode == 3
    assert not list(runtime.iterdir())


def test_one_that_does_not_answer_is_listed_with_what_it_said_before(serve: Serve, runtime: pathlib.Path) -> None:
    """And one that has been killed is not."""
    server = serve("app.run").suspend()
    [found] = ls("--timeout", "0.2")
    assert (found["pid"], found["state"], found["problem"]) == (server.pid, None, "does not answer")
    assert (found["name"], found["socket"], found["cwd"]) == ("sample", server.socket, str(APPS))
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert ls() == []
    assert len(list(runtime.iterdir())) == 1
    done = run_cli("ls", "--prune", "--all")
    assert done.returncode == 3
    assert done.stderr.startswith("removed 1 file of instances that have ended\n")
    assert not list(runtime.iterdir())


def test_directories_select_by_where_it_runs_and_where_its_code_is(serve: Serve, program: Program) -> None:
    place = program.directory
    server = serve("app.run", cwd=place)
    for directory in (place, place.parent):
        assert [one["pid"] for one in ls("--dir", str(directory))] == [server.pid]
    assert run_cli("ls", "--dir", str(place)[:-1]).returncode == 3
    [found] = live_instances(directory=place)
    assert found.name == "sample"


def test_the_socket_of_another_instance_in_an_entry_leads_nowhere(
    serve: Serve, runtime: pathlib.Path, hold: Hold
) -> None:
    """Only the process that holds the entry's lock is asked, and by a selection only that one is stopped."""
    server = serve("app.run")
    [path] = entries(runtime)
    holder = hold(runtime / "1-2.instance", REGISTER % ("liar", server.socket))
    found = {one["name"]: one for one in ls()}
    assert (found["sample"]["pid"], found["sample"]["state"]) == (server.pid, "running")
    assert (found["liar"]["pid"], found["liar"]["problem"]) == (holder.pid, "nothing listens at its socket")
    [liar, sample] = live_instances()
    assert (liar.name, sample.entry) == ("liar", path)
    with liar.client() as client, pytest.raises(NotRunning, match="does not listen"):
        client.stop()
    with liar.client() as client, pytest.raises(NotRunning, match="does not listen"):
        client.stop(kill_after=0)
    with sample.client() as client:
        assert client.ping()["pid"] == server.pid


def test_a_server_that_has_not_registered_is_found_by_its_default_socket(serve: Serve, runtime: pathlib.Path) -> None:
    """Such as one of an older version."""
    server = serve("app.run", socket=runtime / "shop-01234567.sock")
    [path] = entries(runtime)
    os.chmod(path, 0)
    os.unlink(path)
    [found] = ls()
    assert (found["pid"], found["state"], found["sockets"]) == (server.pid, "running", [server.socket])
    until(lambda: entries(runtime), "it registers again")
    assert [one["pid"] for one in ls()] == [server.pid]


@only_root
def test_root_sees_the_instances_of_others_and_selects_them_by_their_owner(hold: Hold) -> None:
    place = pathlib.Path(os.environ["TMPDIR"], "flask-ctl-54321")
    place.mkdir(mode=0o700)
    hold(place / "1-2.instance", REGISTER % ("theirs", "/none.sock"))
    os.chown(place, 54321, 54321)
    assert "theirs" not in run_cli("ls", "--owner", "54321").stdout, "the file does not belong to the directory's owner"
    os.chown(place / "1-2.instance", 54321, 54321)
    for options in ([], ["--owner", "54321"], ["--owner", "54321", "--all"]):
        done = run_cli("ls", *options)
        assert (done.returncode, "theirs" in done.stdout) == (0, True), options
    assert run_cli("ls", "--all").returncode == 3
    assert run_cli("ls", "--owner", "54322", "--all").returncode == 3
    place.chmod(0o777)
    assert "theirs" not in run_cli("ls").stdout


def test_a_user_that_does_not_exist_is_a_usage_error() -> None:
    assert run_cli("ls", "--owner", "nobody-has-this-name").returncode == 2


def test_what_an_instance_says_can_not_write_to_the_terminal() -> None:
    """And a table keeps the name, the pid and the state on the narrowest terminal."""
    status = {"app": "a\x1b[2J\nb", "server": [], "workers": 3, "requests": None, "uptime": "x", "cwd": 7}
    row = LiveInstance("/run/a.sock", status, 4242, 0).as_dict()
    text = render_result("ls", [row])
    assert len(text.splitlines()) == 2
    assert "a\\x1b[2J b  4242" in text
    from datetime import datetime, timezone

    narrow = render_for_terminal("ls", [row], 20, datetime.now(timezone.utc))
    assert narrow.splitlines()[0].split() == ["name", "pid"]
    assert render_result("ls", []) == "no instance is running\n"
