"""The registry of instances: who is in it, from its start to its end, however that comes."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import Serve, Server, until
from holders import Hold, Holder
from manyworkers import hub, workers
from servers import SERVERS

from flask_ctl.transports.registration import Registration
from flask_ctl.transports.registry import (
    MAX_APPS,
    MAX_TEXT,
    Claims,
    Entry,
    RegisteredApp,
    holder_of,
    read_entries,
    remove_dead,
)

SHOP = Claims([RegisteredApp("shop", "/srv/shop", ["/tmp/shop.sock"])], "/srv/shop", "werkzeug")

REGISTER = """
from flask_ctl.transports.registration import Registration
from flask_ctl.transports.registry import Claims, RegisteredApp
entry = Registration(path)
entry.renew(Claims([RegisteredApp("shop", "/srv/shop", ["/tmp/shop.sock"])], "/srv/shop", "werkzeug"))
"""

HUB = """
from flask_ctl.transports.registration import Registration
from flask_ctl.transports.registry import Claims, RegisteredApp
entry = Registration(path, os.getppid())
entry.renew(Claims([RegisteredApp("shop", "/srv/shop", ["/tmp/shop.sock"])], "/srv/shop", "werkzeug"))
"""


@pytest.fixture
def runtime() -> pathlib.Path:
    directory = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "flask-ctl")
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def path(runtime: pathlib.Path) -> pathlib.Path:
    return runtime / "1-2.instance"


@pytest.fixture
def hold(path: pathlib.Path) -> Iterator[Hold]:
    """Start processes that hold locks of the entry; they end with the test."""
    holders: list[Holder] = []

    def start(todo: str) -> Holder:
        holders.append(Holder(path, todo))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()


def entries(directory: pathlib.Path) -> list[Entry]:
    return read_entries(str(directory), os.geteuid())


def the_entry(server: Server) -> Entry:
    """The only entry in the registry of the tests, by the server's own socket."""
    (found,) = entries(pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "flask-ctl"))
    assert [app.sockets for app in found.claims.apps] == [[server.socket]]
    return found


def test_an_instance_is_found_by_its_entry_until_it_closes_it() -> None:
    """Its pid is the kernel's, also for the process itself; the file is for the owner alone."""
    registration = Registration()
    registration.renew(SHOP)
    assert registration.path is not None
    directory = pathlib.Path(registration.path).parent
    assert stat.S_IMODE(os.stat(registration.path).st_mode) == 0o600
    assert entries(directory) == [Entry(registration.path, os.geteuid(), os.getpid(), SHOP)]
    assert holder_of(registration.path) == os.getpid()
    registration.close()
    assert not list(directory.iterdir())
    registration.renew(SHOP)
    assert not list(directory.iterdir()), "after its end it does not register again"


def test_another_process_sees_the_pid_that_the_kernel_names(path: pathlib.Path, hold: Hold) -> None:
    holder = hold(REGISTER)
    assert entries(path.parent) == [Entry(str(path), os.geteuid(), holder.pid, SHOP)]
    assert holder_of(str(path)) == holder.pid


def test_a_killed_instance_is_not_found_and_its_file_goes_with_the_next_start(path: pathlib.Path, hold: Hold) -> None:
    holder = hold(REGISTER)
    assert remove_dead(str(path.parent)) == []
    holder.process.kill()
    holder.process.wait()
    assert (entries(path.parent), holder_of(str(path))) == ([], None)
    assert path.exists()
    registration = Registration()
    registration.renew(SHOP)
    assert not path.exists()
    registration.close()


def test_a_forked_child_neither_keeps_nor_ends_the_entry(path: pathlib.Path, hold: Hold) -> None:
    holder = hold(REGISTER)
    holder.do("child = os.fork(); child or os._exit(0); os.waitpid(child, 0)")
    assert [entry.pid for entry in entries(path.parent)] == [holder.pid]


def test_a_removed_file_is_put_back(path: pathlib.Path, hold: Hold) -> None:
    holder = hold(REGISTER)
    path.unlink()
    assert entries(path.parent) == []
    holder.do("entry.renew(Claims([RegisteredApp('shop', '/', ['/tmp/new.sock'])]))")
    assert entries(path.parent)[0].claims.apps[0].sockets == ["/tmp/new.sock"]


def test_a_shorter_text_replaces_a_longer_one(path: pathlib.Path) -> None:
    registration = Registration(str(path))
    registration.renew(SHOP)
    registration.renew(Claims([]))
    assert entries(path.parent)[0].claims == Claims([])
    registration.close()


def test_the_master_of_workers_is_named_by_the_kernel(path: pathlib.Path, hold: Hold) -> None:
    """As the parent of a worker; what the hub says of its master does not count."""
    hub = hold(HUB)
    assert [entry.pid for entry in entries(path.parent)] == [None]
    worker = hold("p = presence.Presence(os.getppid(), path); p.be_at([])")
    assert [entry.pid for entry in entries(path.parent)] == [os.getpid()]
    hub.process.kill()
    hub.process.wait()
    assert [entry.pid for entry in entries(path.parent)] == [os.getpid()], "the workers keep it"
    worker.process.kill()
    worker.process.wait()
    assert entries(path.parent) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]\n",
        '{"apps": 1}\n',
        '{"apps": [{"sockets": "x"}]}\n',
        "[" * 60000 + "\n",
        '{"cwd": "/' + MAX_TEXT * "x" + '"}\n',
        '{"cwd": "srv"}\n',
        '{"cwd": "/srv\\u0000"}\n',
        '{"cwd": "/srv\\ud800"}\n',
        '{"apps": [{"root_path": "srv"}]}\n',
        '{"apps": [{"sockets": ["\\ud800"]}]}\n',
        '{"apps": [{"sockets": ["/tmp/\\u0000"]}]}\n',
        '{"apps": [{"sockets": ["mail:x"]}]}\n',
    ],
)
def test_an_instance_whose_entry_can_not_be_read_runs_all_the_same(path: pathlib.Path, hold: Hold, text: str) -> None:
    """The kernel tells its pid."""
    holder = hold("locks.take(descriptor, 0)")
    path.write_text(text)
    assert entries(path.parent) == [Entry(str(path), os.geteuid(), holder.pid, Claims())]
    holder.end()
    assert entries(path.parent) == []


def test_more_apps_than_an_entry_has_room_for_are_left_out_with_a_warning(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for long, shown in (("x", MAX_APPS), (2000 * "x", MAX_APPS // 4)):
        apps = [RegisteredApp(f"{long}{number}") for number in range(MAX_APPS + 1)]
        registration = Registration(str(path))
        for _ in range(2):
            registration.renew(Claims(apps, "/srv"))
        assert entries(path.parent)[0].claims == Claims(apps[:shown], "/srv")
        assert caplog.text.count(f"shows only {shown} of the {MAX_APPS + 1} apps") == 1
        registration.close()


def test_a_hub_is_listed_with_its_directory_before_its_first_worker(path: pathlib.Path) -> None:
    """And a later hub leaves the text as it is."""
    registration = Registration(str(path), os.getppid())
    registration.renew()
    assert entries(path.parent)[0].claims == Claims(cwd=os.getcwd())
    registration.renew(SHOP)
    registration.close(remove=False)
    registration = Registration(str(path), os.getppid())
    registration.renew()
    assert entries(path.parent)[0].claims == SHOP
    registration.close()


def test_an_instance_whose_directory_was_removed_registers_anew(runtime: pathlib.Path) -> None:
    registration = Registration()
    registration.renew(SHOP)
    for gone in (runtime, runtime.parent):
        shutil.rmtree(gone)
        registration.renew(SHOP)
        assert registration.path is not None
        [found] = entries(pathlib.Path(registration.path).parent)
        assert found.claims == SHOP
    registration.close()
    runtime.parent.mkdir(mode=0o700, exist_ok=True)


def test_a_lock_that_the_program_has_lost_is_taken_again(path: pathlib.Path, hold: Hold) -> None:
    """Closing any descriptor of the file releases it."""
    holder = hold(REGISTER)
    holder.do("os.close(os.open(path, os.O_RDONLY))")
    assert entries(path.parent) == []
    holder.do("entry.renew()")
    assert [entry.pid for entry in entries(path.parent)] == [holder.pid]


def test_an_entry_of_the_previous_image_that_is_locked_by_another_process_is_no_reason_to_fail(
    path: pathlib.Path, hold: Hold
) -> None:
    hold("locks.take(descriptor, 0)")
    registration = Registration()
    registration.inherit({"path": str(path), "lock": os.open(path, os.O_RDWR)})
    registration.renew(SHOP)
    registration.close()


def test_hundreds_of_files_of_killed_instances_hide_none_that_runs(runtime: pathlib.Path, hold: Hold) -> None:
    """They are removed all at once, also by a hub, whose path is given."""
    last = runtime / "9-9.instance"
    holder = hold(f"path = {str(last)!r}\n{REGISTER}")
    for number in range(1100):
        (runtime / f"1-{number}.instance").touch()
    (runtime / "notes").touch()
    assert [entry.pid for entry in entries(runtime)] == [holder.pid]
    hub = Registration(str(runtime / "2-3.instance"), os.getppid())
    hub.renew(SHOP)
    assert sorted(path.name for path in runtime.iterdir()) == ["2-3.instance", "9-9.instance", "notes"]
    hub.close()


def test_more_instances_than_are_listed_cost_a_warning(
    runtime: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flask_ctl.transports.registry.MAX_ENTRIES", 2)
    held = [Registration(str(runtime / f"{number}.instance")) for number in range(3)]
    for registration in held[:2]:
        registration.renew(SHOP)
    assert len(entries(runtime)) == 2
    assert not caplog.text
    held[2].renew(SHOP)
    assert len(entries(runtime)) == 2
    assert "more than 2 instances run" in caplog.text
    for registration in held:
        registration.close()


def test_files_of_others_and_files_behind_a_link_are_not_removed(tmp_path: pathlib.Path, runtime: pathlib.Path) -> None:
    """What a user puts in place of the directory while root cleans up is not touched."""
    precious = tmp_path / "precious.instance"
    precious.touch()
    link = runtime.parent / "link"
    link.symlink_to(tmp_path)
    assert remove_dead(str(link)) == []
    assert remove_dead(str(tmp_path), os.geteuid() + 1) == []
    assert precious.exists()
    (runtime / "link.instance").symlink_to(precious)
    assert remove_dead(str(runtime)) == []
    assert remove_dead(str(tmp_path)) == [str(precious)]


def test_what_is_no_file_of_the_owner_does_not_count(runtime: pathlib.Path, path: pathlib.Path, hold: Hold) -> None:
    hold(REGISTER)
    (runtime / "link.instance").symlink_to(path)
    os.mkfifo(runtime / "fifo.instance")
    (runtime / "directory.instance").mkdir()
    assert [entry.path for entry in entries(runtime)] == [str(path)]
    assert read_entries(str(runtime), os.geteuid() + 1) == []
    assert remove_dead(str(runtime)) == []
    assert read_entries(str(runtime / "none"), os.geteuid()) == []


def test_what_locks_the_file_for_good_costs_the_entry_only(
    path: pathlib.Path, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """The instance serves on, and registers when the lock is free."""
    holder = hold("import fcntl; fcntl.flock(descriptor, fcntl.LOCK_EX)")
    registration = Registration(str(path))
    caplog.set_level("INFO", "flask_ctl")
    registration.renew(SHOP)
    assert "ls does not show this instance" in caplog.text
    holder.do("os.close(descriptor)")
    registration.renew(SHOP)
    assert len(entries(path.parent)) == 1
    registration.close()


def test_a_server_is_registered_over_a_reload_until_its_end(serve: Serve) -> None:
    """The file stays the same over the exec, so there is no moment without it."""
    server = serve("app.run")
    before = the_entry(server)
    inode = os.stat(before.path).st_ino
    assert before.pid == server.pid
    server.reload()
    assert the_entry(server) == before
    assert os.stat(before.path).st_ino == inode
    with server.client() as client:
        client.stop()
    assert not os.path.exists(before.path)


def test_a_server_with_workers_is_registered_as_long_as_its_master_runs(start: Serve) -> None:
    """Whatever becomes of its hub."""
    server = start(SERVERS["gunicorn sync"])
    before = the_entry(server)
    assert before.pid == server.pid
    first = hub(server)
    os.kill(first, 9)
    assert the_entry(server) == before
    until(lambda: hub(server) != first, "another hub")
    assert the_entry(server) == before
    assert holder_of(before.path) == hub(server)
    worker = workers(server)[0]
    server.reload()
    assert worker not in workers(server)
    assert the_entry(server) == before
    with server.client() as client:
        client.stop()
    until(lambda: not os.path.exists(before.path), "the end of the entry")


def test_the_registry_needs_no_record_lock_of_its_reader(path: pathlib.Path, hold: Hold) -> None:
    """Nor does a reader release the locks that it holds itself."""
    registration = Registration(str(path))
    registration.renew(SHOP)
    for _ in range(2):
        assert len(entries(path.parent)) == 1
    ask = "import sys; from flask_ctl.transports.registry import holder_of; print(holder_of(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", ask, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == os.getpid()
    registration.close()
