"""Record locks: what the kernel tells of the holders of a socket's lock file. Each holder is a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from harness import Serve, until
from holders import HOLDER, Hold, Holder
from manyworkers import hub, workers
from servers import SERVERS

from flask_ctl import ConfigurationError
from flask_ctl.system import locks
from flask_ctl.system.locks import LockFile, Member
from flask_ctl.transports.socketfile import SocketFile
from flask_ctl.workers.agent.presence import Presence

ASKER = """
import json, sys
from flask_ctl.system.locks import LockFile
with LockFile(sys.argv[1]) as lock:
    print(json.dumps([lock.server(), lock.members(), lock.is_held()]))
"""


@pytest.fixture
def path(short_path: pathlib.Path) -> pathlib.Path:
    return short_path / "x.sock.lock"


@pytest.fixture
def hold(path: pathlib.Path) -> Iterator[Hold]:
    """Start processes that hold locks; they end with the test."""
    holders = []

    def start(todo: str) -> Holder:
        holders.append(Holder(path, todo))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()


def ask(path: str | pathlib.Path) -> tuple[int | None, list[Member], bool]:
    """Server, members and whether anything is held, as another process sees it."""
    done = subprocess.run([sys.executable, "-c", ASKER, str(path)], capture_output=True, text=True, check=True)
    server, members, held = json.loads(done.stdout)
    return server, [Member(*member) for member in members], held


def test_nobody_holds_a_file_that_was_left_behind(path: pathlib.Path) -> None:
    path.touch()
    assert ask(path) == (None, [], False)


def test_the_listener_is_named(path: pathlib.Path, hold: Hold) -> None:
    holder = hold("locks.take(descriptor, locks.SERVER)")
    with LockFile(str(path)) as lock:
        assert (lock.server(), lock.members(), lock.is_held()) == (holder.pid, [], True)
        assert lock.owner == os.geteuid()


def test_a_hub_and_its_workers_are_named_with_the_master_that_they_tell(path: pathlib.Path, hold: Hold) -> None:
    hub = hold("locks.take(descriptor, 0), locks.take(descriptor, locks.hub_byte(4711))")
    workers = [hold("p = presence.Presence(4711); p.be_at([path.removesuffix('.lock')])") for _ in range(3)]
    with LockFile(str(path)) as lock:
        assert lock.server() == hub.pid
        found = lock.members()
        assert found[0] == Member(hub.pid, 4711, 0)
        assert {member.pid for member in found[1:]} == {worker.pid for worker in workers}
        assert {member.master for member in found} == {4711}
        assert all(lock.holds(member) for member in found)
        assert not lock.holds(found[1]._replace(pid=hub.pid))


def test_a_lock_ends_with_its_process(path: pathlib.Path, hold: Hold) -> None:
    holder = hold("locks.take(descriptor, 0)")
    holder.process.kill()
    holder.process.wait()
    assert ask(path) == (None, [], False)


def test_a_lock_stays_over_an_exec(path: pathlib.Path, hold: Hold) -> None:
    holder = hold("locks.take(descriptor, 0)")
    again = [sys.executable, "-c", HOLDER, str(path).replace(".lock", ".other"), "1"]
    holder.process.stdin.write(f"os.set_inheritable(descriptor, True); os.execv({sys.executable!r}, {again!r})\n")
    holder.process.stdin.flush()
    assert holder.process.stdout.readline() == "ready\n"
    assert ask(path)[0] == holder.pid


def test_a_forked_child_neither_holds_the_lock_nor_releases_it(path: pathlib.Path, hold: Hold) -> None:
    holder = hold("locks.take(descriptor, 0)")
    holder.do("child = os.fork(); child or (locks.close(descriptor), os._exit(0)); os.waitpid(child, 0)")
    assert ask(path)[0] == holder.pid


def test_bytes_of_others_can_not_be_taken(path: pathlib.Path, hold: Hold) -> None:
    hold("locks.take(descriptor, 0)")
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert not locks.take(descriptor, 0)
        assert locks.take(descriptor, 1)
    finally:
        locks.close(descriptor)


def test_what_this_process_holds_it_must_not_open_again(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    assert not locks.is_ours(str(path))
    locks.take(descriptor, 0)
    assert locks.is_ours(str(path))
    locks.close(descriptor)
    assert not locks.is_ours(str(path))


def test_a_reader_that_had_opened_the_file_before_does_not_release_the_lock(path: pathlib.Path) -> None:
    """Its descriptor stays open as long as the lock, and no longer."""
    path.touch()
    reader, descriptor = LockFile(str(path)), os.open(path, os.O_RDWR)
    assert locks.take(descriptor, 0)
    reader.close()
    assert ask(path)[0] == os.getpid()
    locks.close(descriptor)
    assert ask(path) == (None, [], False)


def test_many_threads_that_read_and_one_that_locks_never_lose_the_lock(path: pathlib.Path, hold: Hold) -> None:
    """What each of them finds of the file's state decides what it does, and another may have changed it since."""
    path.touch()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            if not locks.is_ours(str(path)):
                with LockFile(str(path)) as file:
                    file.is_held()

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    asker = hold("pass")
    try:
        for _ in range(100):
            descriptor = os.open(path, os.O_RDWR)
            assert locks.take(descriptor, 0)
            asker.do("with locks.LockFile(path) as file: assert file.server() == os.getppid()")
            locks.close(descriptor)
    finally:
        ended.set()
        for reader in readers:
            reader.join()


def test_a_symlink_and_what_is_no_file_are_refused(short_path: pathlib.Path, path: pathlib.Path) -> None:
    path.symlink_to(short_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        LockFile(str(path))
    os.mkfifo(short_path / "fifo")
    with pytest.raises(PermissionError):
        LockFile(str(short_path / "fifo"))


def test_a_worker_follows_a_lock_file_that_was_replaced(path: pathlib.Path) -> None:
    path.touch()
    presence = Presence(7)
    presence.be_at([str(path).removesuffix(".lock")])
    assert len(ask(path)[1]) == 1
    path.unlink()
    presence.renew()
    path.touch()
    assert ask(path)[1] == []
    presence.renew()
    assert [member.pid for member in ask(path)[1]] == [os.getpid()]
    presence.be_at([])
    assert ask(path)[1] == []
    presence.close()


def lose(path: pathlib.Path) -> None:
    """Close a descriptor of the file, as a program may, and so lose this process's locks."""
    os.close(os.open(path, os.O_RDONLY))
    assert ask(path) == (None, [], False)


def test_a_worker_that_lost_its_lock_takes_it_again(path: pathlib.Path) -> None:
    path.touch()
    presence = Presence(7)
    presence.be_at([str(path).removesuffix(".lock")])
    before = ask(path)
    assert len(before[1]) == 1
    presence.renew()
    assert ask(path) == before
    lose(path)
    presence.renew()
    assert ask(path) == before
    presence.close()


def test_a_worker_whose_byte_another_one_has_taken_meanwhile_takes_the_next(path: pathlib.Path, hold: Hold) -> None:
    path.touch()
    presence = Presence(7)
    presence.be_at([str(path).removesuffix(".lock")])
    [mine] = ask(path)[1]
    lose(path)
    other = hold(f"assert locks.take(descriptor, locks.hub_byte(7) + {mine.number})")
    presence.renew()
    assert [member.pid for member in ask(path)[1]] == [other.pid, os.getpid()]
    presence.close()


def test_a_worker_makes_no_lock_file(path: pathlib.Path) -> None:
    presence = Presence(7)
    presence.be_at([str(path).removesuffix(".lock")])
    assert not path.exists()
    presence.close()


# The listener's own


@pytest.fixture
def file(path: pathlib.Path) -> Iterator[SocketFile]:
    file = SocketFile(str(path).removesuffix(".lock"))
    with file.acquire():
        yield file
    file.release()


def test_the_listener_holds_byte_0(path: pathlib.Path, file: SocketFile) -> None:
    assert ask(path)[0] == os.getpid()
    file.release()
    assert ask(path) == (None, [], False)


def test_a_second_try_in_the_same_process_does_not_release_the_first_ones_lock(
    path: pathlib.Path, file: SocketFile
) -> None:
    with pytest.raises(ConfigurationError, match=f"in use by pid {os.getpid()}"):
        SocketFile(file.path).acquire()
    assert ask(path)[0] == os.getpid()


def test_a_hub_tells_its_master(path: pathlib.Path) -> None:
    file = SocketFile(str(path).removesuffix(".lock"), master=4711)
    with file.acquire():
        assert ask(path) == (os.getpid(), [Member(os.getpid(), 4711, 0)], True)
    file.release()


def test_a_lock_file_that_was_removed_is_back_and_locked(path: pathlib.Path, file: SocketFile) -> None:
    path.unlink()
    file.keep_lock()
    assert ask(path)[0] == os.getpid()


def test_a_lost_lock_is_back_with_the_next_tick(path: pathlib.Path, file: SocketFile) -> None:
    lose(path)
    file.keep_lock()
    assert ask(path)[0] == os.getpid()


def test_a_lock_file_of_somebody_else_is_left_alone_until_it_is_free(
    path: pathlib.Path, file: SocketFile, hold: Hold
) -> None:
    path.unlink()
    other = hold("import fcntl; fcntl.flock(descriptor, fcntl.LOCK_EX)")
    file.keep_lock()
    assert ask(path)[0] is None
    other.process.kill()
    other.process.wait()
    file.keep_lock()
    assert ask(path)[0] == os.getpid()


# Servers


def test_a_server_keeps_its_lock_through_a_reload_and_gets_it_back_where_it_was_removed(serve: Serve) -> None:
    server = serve()
    path = server.socket + ".lock"
    assert ask(path)[0] == server.pid
    server.reload()
    assert ask(path)[0] == server.pid
    os.unlink(path)
    until(lambda: os.path.exists(path) and ask(path)[0] == server.pid, "the lock is back")
    assert server.client().stop()["outcome"] == "drained"


def test_hub_and_workers_follow_a_lock_file_that_was_removed(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync"])
    path = server.socket + ".lock"
    before = ask(path)
    assert before[0] == hub(server)
    assert {member.pid for member in before[1]} == {hub(server), *workers(server)}
    assert {member.master for member in before[1]} == {server.pid}
    os.unlink(path)
    until(lambda: os.path.exists(path) and ask(path) == before, "all of them hold the new one")


def test_who_uses_a_hubs_address_is_told_by_the_pid_of_its_master(path: pathlib.Path, hold: Hold) -> None:
    """Which is the one to stop; another hub would follow the hub."""
    code = "import fcntl; fcntl.flock(descriptor, fcntl.LOCK_EX); locks.take(descriptor, 0)"
    hold(f"{code}; locks.take(descriptor, locks.hub_byte({os.getpid()}))")
    with pytest.raises(ConfigurationError, match=f"in use by pid {os.getpid()}"):
        SocketFile(str(path).removesuffix(".lock")).acquire()


def test_a_lock_whose_descriptor_somebody_else_has_closed_keeps_no_other_one_open(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock"
    locked, reader = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert locks.take(locked, locks.SERVER)
    os.close(locked)
    locks.close(reader)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


def test_a_file_whose_descriptor_somebody_else_has_closed_is_not_ours(tmp_path: pathlib.Path) -> None:
    """The number of its inode may be that of another file by now."""
    path = str(tmp_path / "x.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    assert locks.take(descriptor, 0)
    assert locks.is_ours(path)
    os.close(descriptor)
    assert not locks.is_ours(path)
