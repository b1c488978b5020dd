"""A preflight ends with the server that has started it, and leaves nothing behind, however it ends."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
from typing import Any

import psutil
import pytest
from harness import Pending, Program, Serve, until

from flask_ctl import ReloadFailed, ServerDied
from flask_ctl.system import preflight as preflight_module
from flask_ctl.system.preflight import Preflight


class Rehearsed:
    """A program of a few lines."""

    def __init__(self, code: str, directory: str = "/") -> None:
        self.command = [sys.executable, "-c", code]
        self.directory = directory

    def environment_for_preflight(self) -> dict[str, str]:
        return dict(os.environ)


@pytest.mark.parametrize("hangs", ["while it loads its code", "in a child of its own"])
def test_a_preflight_that_hangs_ends_with_its_server_when_that_is_killed(
    serve: Serve, program: Program, tmp_path: pathlib.Path, hangs: str
) -> None:
    told = tmp_path / "pids"
    hang = "time.sleep(1000)" if "loads" in hangs else "subprocess.run(['sleep', '1000'])"
    server = serve(cwd=program.directory)
    program.edit(
        "new",
        textwrap.dedent(f"""
        import os, subprocess, time
        with open({str(told)!r}, "w") as file:
            file.write(str(os.getpid()))
        {hang}
    """),
    )
    reload = Pending.call(server.reload)
    pid = int(until(lambda: told.exists() and told.read_text(), "the preflight has begun"))
    preflight = psutil.Process(pid)
    if "child" in hangs:
        until(preflight.children, "its child")
    processes = [preflight, *preflight.children()]
    server.process.kill()
    server.wait()
    with pytest.raises(ServerDied):
        reload.result()
    until(lambda: not any(_lives(process) for process in processes), "the preflight has ended")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("failing", ["pipe", "file", "popen", "waker"])
def test_a_start_that_fails_is_refused_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    places: dict[str, tuple[Any, str]] = {
        "pipe": (os, "pipe"),
        "file": (tempfile, "TemporaryFile"),
        "popen": (subprocess, "Popen"),
        "waker": (preflight_module, "Waker"),
    }
    before = descriptors()
    place, name = places[failing]
    target = subprocess if failing == "popen" else place
    with monkeypatch.context() as patched:
        patched.setattr(target, name, fail)
        with pytest.raises(ReloadFailed, match="can't be started"):
            Preflight(Rehearsed("pass"), 10).run()
    assert descriptors() == before


def test_a_directory_that_is_gone_is_told_and_leaves_nothing_open(tmp_path: pathlib.Path) -> None:
    before = descriptors()
    for _ in range(5):
        with pytest.raises(ReloadFailed, match="can't be started"):
            Preflight(Rehearsed("pass", str(tmp_path / "gone")), 10).run()
    assert descriptors() == before


def test_one_that_is_never_run_has_nothing_open() -> None:
    before = descriptors()
    Preflight(Rehearsed("pass"), 10).cancel()
    assert descriptors() == before


def test_one_that_was_called_off_before_it_began_does_not_wait() -> None:
    preflight = Preflight(Rehearsed("import time; time.sleep(1000)"), 1000)
    preflight.cancel()
    preflight.run()


MADE_AT_IMPORT = """
import atexit, tempfile, weakref
scratch = tempfile.TemporaryDirectory(prefix="scratch-")
{more}
"""


@pytest.mark.full
def test_a_temporary_directory_of_the_import_goes_with_the_preflight(
    serve: Serve, program: Program, tmp_path: pathlib.Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server = serve(cwd=program.directory, env={"TMPDIR": str(temporary)})
    generations = []
    for version in ("new", "newer"):
        program.edit(version, MADE_AT_IMPORT.format(more=""))
        server.reload()
        assert server.get("/version") == (200, version.encode())
        generations.append({path.name for path in temporary.glob("scratch-*")})
    first, second = generations
    assert (len(first), len(second), first & second) == (1, 1, set())
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert not list(temporary.glob("scratch-*"))


def test_its_exit_functions_are_not_called_and_a_finalizer_that_exits_does_not_fail_it(
    serve: Serve, program: Program
) -> None:
    """An exit function may take back what the serving process has registered elsewhere, under the same name."""
    server = serve(cwd=program.directory)
    called = program.directory / "called"
    program.edit(
        "new",
        MADE_AT_IMPORT.format(
            more=f"""
import flask_ctl
def call(text):
    with open({str(called)!r}, "a") as file:
        print(text, file=file)
    raise SystemExit(3)
if flask_ctl.preflighting:
    atexit.register(call, "exit function")
    finalizer = weakref.finalize(scratch, call, "finalizer")
"""
        ),
    )
    server.reload()
    assert server.get("/version") == (200, b"new")
    assert called.read_text().splitlines() == ["finalizer"]
