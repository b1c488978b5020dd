"""Several instances of one app: each has a socket, nobody is stopped by guess, and the default name finds an heir."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import pytest
from harness import Serve, Server, first_quick, run_cli, until
from holders import Holder
from manyworkers import all_there, hub, kill

import flask_ctl.client.client as client
import flask_ctl.client.stopping as stopping
from flask_ctl import AmbiguousTarget, ControlClient, find_instance, find_instance_of, live_instances
from flask_ctl.client.discovery import is_common
from flask_ctl.client.instances import LiveInstance
from flask_ctl.client.stop import Unanswered
from flask_ctl.client.targets import Targets
from flask_ctl.errors import AddressInUse, ConfigurationError
from flask_ctl.system.addresses import default_path, other_names, own_path
from flask_ctl.system.locks import held_by_others, lock_path
from flask_ctl.system.platform import MAX_SOCKET_PATH
from flask_ctl.transports.defaultname import DefaultName
from flask_ctl.transports.socketfile import SocketFile, remove_dead

APP = """
import os
from flask import Flask
from flask_ctl import Control
app = Flask("shop")
control = Control(app)

@control.command(role="observe")
def look():
    return "seen"

if __name__ == "__main__":
    app.run(port=0)
"""


@pytest.fixture
def project(short_path: pathlib.Path) -> pathlib.Path:
    """A directory with an app, and nothing else."""
    directory = pathlib.Path(os.path.realpath(short_path)) / "top" / "shop"
    directory.mkdir(parents=True)
    (directory / "shop.py").write_text(APP)
    return directory


@pytest.fixture
def plain(project: pathlib.Path) -> str:
    """The default socket of that app."""
    return default_path("shop", str(project))


@pytest.fixture
def start(serve: Serve, project: pathlib.Path, plain: str) -> Serve:
    """Start one more instance of the app, and wait until it listens."""
    started: list[Server] = []

    def start() -> Server:
        server = serve(command=[sys.executable, "shop.py"], cwd=project, ready=False, env={"FLASK_CTL_SOCKET": ""})
        server.socket = own_path(plain, server.pid) if started else plain
        started.append(server)
        return server.ready()

    return start


def files(plain: str) -> list[str]:
    """What is in the directory of default sockets, but for locks."""
    return sorted(name for name in os.listdir(os.path.dirname(plain)) if name.endswith(".sock"))


def listens_at(path: str, server: Server) -> bool:
    """Whether that server answers at the path."""
    return any(found.status and found.status["pid"] == server.pid and path in found.status["control"]["sockets"]
               for found in live_instances())  # fmt: skip


# Names


def test_an_own_name_has_the_pid_before_the_suffix() -> None:
    assert own_path("/run/shop-01234567.sock", 4711) == "/run/shop-01234567-4711.sock"


@pytest.mark.parametrize("length", range(MAX_SOCKET_PATH - 20, MAX_SOCKET_PATH + 1))
def test_an_own_name_is_never_too_long_for_a_socket(length: int) -> None:
    plain = "/run/" + "é" * 20 + "/" + "a" * (length - 60) + "-01234567.sock"
    assert len(os.fsencode(plain)) == length
    own = own_path(plain, 4194304)
    assert len(os.fsencode(own)) <= MAX_SOCKET_PATH
    assert own.endswith("-01234567-4194304.sock")


def test_other_instances_of_the_app_are_told_by_their_names(tmp_path: pathlib.Path) -> None:
    plain = str(tmp_path / "shop-01234567.sock")
    others = [own_path(plain, pid) for pid in (1, 4711)]
    for path in (*others, plain, plain + ".lock"):
        pathlib.Path(path).touch()
    for name in (
        "shop-01234568-4711.sock",
        "shopping-01234567-4711.sock",
        "shop-01234567-x.sock",
        "shop-01234567-.sock",
        "shop-01234567-٣.sock",
        "shop-01234567-4711.sock.lock",
    ):
        (tmp_path / name).touch()
    assert other_names(plain) == others
    assert other_names(str(tmp_path / "none" / "shop-01234567.sock")) == []


# Who has the default name


class Listening:
    """The paths at which somebody listens, and what else is in the way."""

    def __init__(self, taken: Iterable[str] = (), broken: Collection[str] = ()) -> None:
        self.taken = set(taken)
        self.broken = broken
        self.ours: list[str] = []

    def __call__(self, path: str) -> None:
        if path in self.broken:
            raise ConfigurationError("it is broken")
        if path in self.taken:
            raise AddressInUse("it is taken")
        self.taken.add(path)
        self.ours.append(path)


@pytest.fixture
def path(short_path: pathlib.Path) -> str:
    return str(short_path / "shop-01234567.sock")


def test_the_first_instance_has_the_plain_name_only(path: str) -> None:
    listen = Listening()
    name = DefaultName(path, 4711)
    name.open(listen)
    assert listen.ours == [path]
    assert not name.tend(listen)


def test_the_next_one_has_its_own_until_the_plain_name_is_free_and_keeps_it(path: str) -> None:
    listen = Listening(taken=[path])
    name = DefaultName(path, 4711)
    name.open(listen)
    assert listen.ours == [own_path(path, 4711)]
    assert not name.tend(listen)
    listen.taken.remove(path)
    assert name.tend(listen)
    assert not name.tend(listen)
    assert listen.ours == [own_path(path, 4711), path]


def test_what_else_is_wrong_with_the_plain_name_is_told_and_no_other_is_taken(path: str) -> None:
    listen = Listening(broken=[path])
    with pytest.raises(ConfigurationError, match="broken"):
        DefaultName(path, 4711).open(listen)
    assert listen.ours == []


def test_what_is_wrong_with_the_plain_name_later_is_in_nobodys_way(path: str) -> None:
    listen = Listening(taken=[path])
    name = DefaultName(path, 4711)
    name.open(listen)
    listen.broken = [path]
    assert not name.tend(listen)


@pytest.fixture
def hold(path: str) -> Iterator[Callable[[int], None]]:
    """Have another process hold a byte of the lock's file."""
    holders = []

    def hold(byte: int) -> None:
        holders.append(Holder(lock_path(path), f"assert locks.take(descriptor, {byte})"))

    yield hold
    for holder in holders:
        holder.end()


def test_a_server_whose_hub_has_died_keeps_its_name(path: str, hold: Callable[[int], None]) -> None:
    """Its workers bring the hub back, and nobody else is to be stopped in their place meanwhile."""
    hold(4711 * (1 << 16) + 3)
    assert held_by_others(path)
    assert held_by_others(path, 4712)
    assert not held_by_others(path, 4711), "its own next hub"
    listen = Listening()
    DefaultName(path, 4712, hub=True).open(listen)
    DefaultName(path, 4711, hub=True).open(listen)
    assert listen.ours == [own_path(path, 4712), path]


def test_who_listens_holds_the_name(path: str, hold: Callable[[int], None]) -> None:
    assert not held_by_others(path), "there is no lock yet"
    hold(0)
    assert held_by_others(path)
    assert held_by_others(path, 4711)


def test_what_a_dead_instance_has_left_is_removed_and_what_lives_is_not(path: str, hold: Callable[[int], None]) -> None:
    dead, alive = own_path(path, 1), own_path(path, 2)
    pathlib.Path(lock_path(dead)).touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(dead)
    file = SocketFile(alive)
    with file.acquire():
        DefaultName(path, 3).open(Listening())
        assert other_names(path) == [alive]
        assert not os.path.exists(lock_path(dead))
    file.release()


def test_nothing_stays_of_an_own_name(path: str) -> None:
    file = SocketFile(own_path(path, os.getpid()))
    name = DefaultName(path, os.getpid())
    listen = Listening(taken=[path])
    with file.acquire():
        name.open(lambda where: listen(where))
    file.release()
    name.close()
    assert not other_names(path)
    assert not os.path.exists(lock_path(own_path(path, os.getpid())))


def test_a_missing_lock_is_no_reason_to_fail(path: str) -> None:
    remove_dead(path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    remove_dead(path)
    assert os.path.exists(path), "whose it is nobody can tell"


# Real instances


def test_each_instance_is_reached_and_none_is_stopped_by_guess(start: Serve, project: pathlib.Path, plain: str) -> None:
    first, second = start(), start()
    done = run_cli("stop", cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"2 instances run in {project}" in done.stderr
    for server in (first, second):
        host, port = server.address
        line = f"{server.socket}  shop, pid {server.pid}, on http://{host}:{port}, in {project}"
        assert line in done.stderr
    assert run_cli("stop", "--missing-ok", cwd=project).returncode == 2
    assert run_cli("stop", "--socket", second.socket).returncode == 0
    assert second.wait() == 0
    assert files(plain) == [os.path.basename(plain)]
    assert not os.path.exists(lock_path(second.socket))
    assert first.status()["control"]["sockets"] == [plain]
    assert "control socket" not in second.output


def test_the_apps_own_command_line_lists_them_too(start: Serve, project: pathlib.Path) -> None:
    flask = [sys.executable, "-m", "flask", "--app", "shop", "ctl"]
    servers = [start()]
    done = subprocess.run([*flask, "status"], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    servers.append(start())
    done = subprocess.run([*flask, "stop"], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 instances of this app run" in done.stderr
    assert all(server.socket in done.stderr for server in servers)


@pytest.mark.parametrize("how", first_quick(["kill", "stop"]))
def test_when_the_holder_ends_one_of_the_others_has_the_default_name_too(
    start: Serve, project: pathlib.Path, plain: str, how: str
) -> None:
    first, *others = start(), start(), start()
    if how == "stop":
        assert run_cli("stop", "--socket", plain).returncode == 0
    else:
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    heir = until(lambda: next((server for server in others if listens_at(plain, server)), None), "an heir")
    assert heir.status()["control"]["sockets"] == [heir.socket, plain]
    assert len(live_instances()) == 2, "one that listens twice is one"
    others.remove(heir)
    [other] = others
    assert find_instance_of(own_path(plain, 1)) == own_path(plain, 1)
    with pytest.raises(AmbiguousTarget):
        find_instance_of(plain)
    assert run_cli("stop", "--socket", other.socket).returncode == 0
    assert find_instance_of(plain) == plain
    assert find_instance(str(project)) == plain
    done = run_cli("stop", cwd=project)
    assert done.returncode == 0
    assert f"using {plain}\n" in done.stderr
    assert heir.wait() == 0
    assert files(plain) == []


@pytest.mark.full
def test_a_reload_keeps_the_names(start: Serve, plain: str) -> None:
    first, second = start(), start()
    assert second.reload()["generation"] == 2
    assert second.status()["control"]["sockets"] == [second.socket]
    first.client().stop()
    until(lambda: listens_at(plain, second), "the default name")
    assert second.reload()["generation"] == 3
    assert sorted(second.status()["control"]["sockets"]) == sorted([second.socket, plain])
    with ControlClient(plain) as heir:
        assert heir.reload()["generation"] == 4
        assert heir.status()["pid"] == second.pid


def test_what_killed_instances_have_left_goes_with_the_next_one(start: Serve, plain: str) -> None:
    start()
    second = start()
    second.kill()
    assert os.path.exists(second.socket)
    third = start()
    assert files(plain) == sorted(map(os.path.basename, (plain, third.socket)))


GUNICORN = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-w", "2", "-b", "127.0.0.1:0", "shop:app"]


@pytest.mark.full
def test_a_server_with_workers_has_a_name_of_its_own_and_inherits(
    no_hubs_left: None, serve: Serve, project: pathlib.Path, plain: str
) -> None:
    def start(socket_of: Callable[[int], str]) -> Server:
        server = serve(command=GUNICORN, cwd=project, ready=False, env={"FLASK_CTL_SOCKET": ""})
        server.socket = socket_of(server.pid)
        return all_there(server.ready(), 2)

    first = start(lambda pid: plain)
    second = start(lambda pid: own_path(plain, pid))
    assert second.status()["control"]["sockets"] == [second.socket]
    # The first one's hub comes back, and the second one does not take its place.
    kill(hub(first))
    until(lambda: listens_at(plain, first), "the first one's next hub")
    assert second.status()["control"]["sockets"] == [second.socket]
    kill(hub(second))
    until(lambda: listens_at(second.socket, second), "the second one's next hub")
    assert run_cli("stop", "--socket", plain).returncode == 0
    assert first.wait() == 0
    until(lambda: listens_at(plain, second), "the default name")
    assert second.status()["control"]["sockets"] == [second.socket, plain]
    assert run_cli("stop", "--socket", plain).returncode == 0
    assert second.wait() == 0
    until(lambda: files(plain) == [], "no socket")


class Asked:
    """A connection to the process that listens at the time."""

    endpoint, ended = "/run/shop.sock", False

    def close(self) -> None:
        """There is nothing to close."""


@pytest.mark.parametrize(("pids", "asked"), [([1, 2], 1), ([1, 1], 2)], ids=["an heir", "its next hub"])
def test_a_stop_is_not_asked_of_the_heir_of_a_server_that_has_died(
    monkeypatch: pytest.MonkeyPatch, pids: list[int], asked: int
) -> None:
    """The hub died before the stop began; who listens there afterwards may be another instance."""
    died = {"outcome": "died"}
    calls = []

    class Call:
        def __init__(self, connection: Asked, targets: Targets, times: Any, on_progress: Any, *, told: bool) -> None:
            self.times = times
            calls.append(targets.pid)

        def ask(self, params: Any) -> None:
            if len(calls) == 1:
                raise Unanswered("the hub has died", None, accepted=False, outcome=died)

        def until_gone(self) -> dict[str, Any]:
            return {"outcome": "drained"}

    answers = iter(pids)
    monkeypatch.setattr(client, "connect", lambda target, timeout, trust: Asked())
    monkeypatch.setattr(stopping, "targets_of", lambda connection: Targets(next(answers)))
    monkeypatch.setattr(stopping, "StopWaiter", Call)
    assert ControlClient("/run/shop.sock").stop() == (died if asked == 1 else {"outcome": "drained"})
    assert len(calls) == asked


# Which one is meant


def test_what_holds_more_than_one_project_is_known(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    for name in ("home", "tmp", "project", "home/project"):
        (tmp_path / name).mkdir()
    for common in ("/", "/srv", "/no", "/proc", str(tmp_path / "home"), str(tmp_path / "tmp")):
        assert is_common(common), common
    for own in ("project", "home/project", "gone"):
        assert not is_common(str(tmp_path / own)), own


def found(cwd: str | pathlib.Path, root_path: str = "/usr/lib/shop", **more: Any) -> LiveInstance:
    return LiveInstance("/run/a.sock", {"cwd": str(cwd), "root_path": root_path, "pid": 1, "app": "shop", **more})


def test_exactly_there_is_not_below(tmp_path: pathlib.Path) -> None:
    here = os.path.realpath(tmp_path)
    assert found(f"{here}/shop").belongs_to(here)
    assert not found(f"{here}/shop").belongs_to(here, exactly=True)
    assert found(here).belongs_to(here, exactly=True)
    assert found("/", root_path=here).belongs_to(here, exactly=True)
    assert not LiveInstance("/run/a.sock", None).belongs_to(here)


@pytest.mark.parametrize("control", [None, {}, {"sockets": None}, {"sockets": 3}, [], "x"])
def test_what_tells_no_sockets_is_the_same_as_nobody(control: Any) -> None:
    assert not found("/srv", control=control).is_same(found("/srv", control=control))


@pytest.fixture
def home(project: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The project is the only one in its user's home directory."""
    monkeypatch.setenv("HOME", str(project.parent))
    return project.parent


def test_in_a_common_directory_an_instance_below_is_looked_at_and_not_touched(start: Serve, home: pathlib.Path) -> None:
    server = start()
    for look in (["status"], ["ping"], ["commands"], ["call", "commands"], ["call", "status"]):
        done = run_cli(*look, cwd=home)
        assert (done.returncode, done.stderr) == (0, f"using {server.socket}\n"), look
    for touch in (["stop"], ["stop", "--missing-ok"], ["reload"], ["look"], ["call", "look"], ["call", "stop"]):
        done = run_cli(*touch, cwd=home)
        assert (done.returncode, done.stdout) == (2, ""), touch
        assert f"to have {home} itself as its directory" in done.stderr
        assert f"pid {server.pid}" in done.stderr
    assert json.loads(run_cli("stop", "--json", cwd=home).stdout)["exit"] == 2
    assert server.status()["state"] == "running"
    done = run_cli("look", cwd=home / "shop")
    assert (done.returncode, done.stderr) == (0, f"using {server.socket}\n")


def test_an_instance_that_runs_in_the_common_directory_itself_is_meant(
    start: Serve, project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project))
    server = start()
    assert run_cli("look", cwd=project).returncode == 0
    assert run_cli("stop", cwd=project).returncode == 0
    assert server.wait() == 0


def test_the_library_has_the_same_rule(start: Serve, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    monkeypatch.chdir(home)
    with ControlClient() as here:
        assert here.ping()["pid"] == server.pid
        for touch in (here.stop, here.reload, lambda: here.call("look"), lambda: here.call("stop")):
            with pytest.raises(AmbiguousTarget, match="itself as its directory"):
                touch()
        assert here.status()["state"] == "running"
    monkeypatch.chdir(home / "shop")
    with ControlClient() as here:
        assert here.ping()["pid"] == server.pid
        assert here.call("look") == "seen"
        assert here.stop()["outcome"] == "drained"


def test_nothing_at_all_is_still_exit_3(home: pathlib.Path) -> None:
    assert run_cli("stop", cwd=home).returncode == 3
    assert run_cli("stop", "--missing-ok", cwd=home).returncode == 0
