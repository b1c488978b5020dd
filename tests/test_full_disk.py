"""When nothing can be written under the temporary directory, every process still finds the same sockets."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys

import pytest
from harness import TIMEOUT, Program, Serve, Server, run_cli, until
from manyworkers import hub, hubs_of, kill, workers
from servers import SERVERS

from flask_ctl.system.addresses import default_directories, default_path
from flask_ctl.workers.agent.spawn import private_path

NOTHING_WRITABLE = (0, resource.RLIM_INFINITY)
"""As RLIMIT_FSIZE, a stand-in for a full disk: files can be made, and not one byte be written to them."""


def fill_the_disk(pid: int = 0) -> None:
    """For a process and those that it starts from now on; 0 is the calling one."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, NOTHING_WRITABLE)


def test_the_default_directories_do_not_depend_on_what_can_be_written() -> None:
    code = "from flask_ctl.system.addresses import default_directories; print(*default_directories(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, preexec_fn=fill_the_disk
    )
    assert done.stdout.splitlines() == default_directories()


@pytest.mark.parametrize("value", ["", "relative", "/no/such/directory"])
def test_what_cannot_be_the_temporary_directory_is_passed_over(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("TMPDIR", value)
    [directory] = default_directories()
    assert directory.startswith("/tmp/flask-ctl-")


def test_a_hub_stays_where_it_is_when_a_preferred_directory_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = os.environ["XDG_RUNTIME_DIR"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    before = private_path(os.getpid())
    pathlib.Path(before).touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert private_path(os.getpid()) == before
    os.unlink(before)
    assert private_path(os.getpid()).startswith(runtime)


@pytest.fixture
def full(start: Serve, program: Program, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A gunicorn that listens at its default socket under TMPDIR, and whose disk is full since it has started."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    env = {"FLASK_CTL_SOCKET": "", "FLASK_CTL_GRACE": "5"}
    server = start(SERVERS["gunicorn sync"], env=env, socket=default_path("sample", str(program.directory)))
    fill_the_disk(server.pid)
    return server


def test_a_server_whose_disk_has_filled_up_is_found(full: Server, program: Program) -> None:
    done = run_cli("status", cwd=program.directory, preexec_fn=fill_the_disk)
    assert (done.returncode, str(full.pid) in done.stdout) == (0, True), done.stderr


def test_new_workers_find_the_hub_of_those_before_them(full: Server, short_path: pathlib.Path) -> None:
    before, former = hub(full), workers(full)
    kill(former[0])
    until(lambda: len(set(workers(full)) - set(former)) == 1, "a new worker")
    assert hub(full) == before
    assert len(hubs_of(short_path)) == 1


def test_a_reload_on_a_full_disk_works(full: Server, program: Program, short_path: pathlib.Path) -> None:
    program.edit("new")
    assert full.reload()["generation"] == 2
    assert full.get("/version") == (200, b"new")
    assert len(hubs_of(short_path)) == 1
