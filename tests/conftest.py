"""Fixtures, and the rule that nothing outlives its test: no thread, descriptor, process or socket file."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import flaskr
import ports
import psutil
import pytest
from harness import MODES, PYTHON, SITES, TIMEOUT, Program, Serve, Server, SharedServer, Site, until
from hypothesis import settings
from manyworkers import all_there, hubs_of
from natsserver import NatsServer, StartNats
from servers import Row

from flask_ctl.system import logs


def _descriptors() -> set[str]:
    return {
        f"{name} -> {target}"
        for name in os.listdir("/proc/self/fd")
        if (target := _target(name)) is not None and not target.startswith("/proc")
    }


def _target(name: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return None


def _threads() -> set[threading.Thread]:
    """All but the one that hands over log records, which lives as long as the process."""
    return {thread for thread in threading.enumerate() if thread.name != "flask-ctl-log"}


class _Written:
    """`caplog`, in which everything stands that has been logged up to now."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __getattr__(self, name: str) -> Any:
        assert logs.flush(TIMEOUT)
        return getattr(self._caplog, name)


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[_Written]:
    """Our records get to their handlers by a thread of their own, which this one waits for.

    Before the test it waits for those of the test before.
    """
    logs.flush(TIMEOUT)
    yield _Written(caplog)
    logs.flush(TIMEOUT)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor or a process."""
    threads, descriptors = _threads(), _descriptors()
    yield
    gc.collect()
    # What is still there is not looked at again after each of the thousands of tests to come.
    gc.freeze()
    until(lambda: not _threads() - threads, lambda: f"ends: {_threads() - threads}")
    until(lambda: not _descriptors() - descriptors, lambda: f"closes: {_descriptors() - descriptors}")
    until(_childless, lambda: f"ends: {psutil.Process().children()}")


def _childless() -> bool:
    """Whether this process has no child, not even one that has ended and that nobody has waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


@pytest.fixture
def short_path() -> Iterator[pathlib.Path]:
    """A directory whose path leaves room for a Unix socket's 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        yield pathlib.Path(name)


@pytest.fixture(scope="session")
def _common_directory() -> Iterator[pathlib.Path]:
    """For all tests without a `short_path`: to make directories takes longer than most of them."""
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        yield pathlib.Path(name)


@pytest.fixture(autouse=True)
def _no_stray_settings(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _common_directory: pathlib.Path
) -> Iterator[None]:
    """Every test's first app is the first of all, and what it starts knows only directories of the test."""
    monkeypatch.setattr("flask_ctl.extension.registry.registry._first", None)
    if "short_path" in request.fixturenames:
        _isolate(monkeypatch, request.getfixturevalue("short_path"))
        yield
    else:
        places = _isolate(monkeypatch, _common_directory)
        yield
        for place in places:
            if any(place.iterdir()):
                shutil.rmtree(place)


def _isolate(monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """No default socket of the machine is found, none is left there, but in the directories that are returned."""
    ours = [name for name in os.environ if name.startswith("FLASK_CTL_")]
    for name in (*ours, "FLASK_APP", "FLASK_DEBUG", "WERKZEUG_RUN_MAIN"):
        monkeypatch.delenv(name, raising=False)
    runtime, temporary = directory / "run", directory / "tmp"
    runtime.mkdir(mode=0o700, exist_ok=True)
    temporary.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return runtime, temporary


@pytest.fixture
def serve(short_path: pathlib.Path) -> Iterator[Serve]:
    """Start servers: `serve("app.run")` by a mode of MODES, `serve(command=[…])` by a command line."""
    servers: list[Server] = []

    def start(mode: str = "app.run", *, command: list[str] | None = None, ready: bool = True, **options: Any) -> Server:
        path = options.pop("socket", short_path / f"{len(servers)}.sock")
        output = short_path / f"{len(servers)}.out"
        if isinstance(path, Site):
            options["env"] = {**path.env, **options.get("env", {})}
            options["options"], path = path.options, path.socket
        server = Server(command or MODES[mode], path, output=output, **options)
        servers.append(server)
        return server.ready() if ready else server

    yield start
    for server in servers:
        server.kill()
        print(f"$ {' '.join(server.command)}\n{server.output}")  # shown if the test has failed


@contextlib.contextmanager
def isolated(directory: pathlib.Path) -> Iterator[None]:
    """What is started in the block finds nothing of the machine, and leaves nothing there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _isolate(monkeypatch, directory)
        yield


@contextlib.contextmanager
def _shared(program: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        with isolated(pathlib.Path(name)):
            server = SharedServer([*PYTHON, program], pathlib.Path(name))
        yield server
        server.kill()


@pytest.fixture(scope="session")
def shared() -> Iterator[Server]:
    """A server of `sample` for all tests that only ask it."""
    with _shared("sample.py") as server:
        yield server


@pytest.fixture(scope="session")
def shared_typed() -> Iterator[Server]:
    """A server of `typed` for all tests that only ask it."""
    with _shared("typed.py") as server:
        yield server


@pytest.fixture
def program(short_path: pathlib.Path) -> Program:
    """A copy of `sample` that can be edited; servers that run it are started with ``cwd=program.directory``."""
    return Program(short_path / "program")


@pytest.fixture
def start(no_hubs_left: None, serve: Serve, program: Program, free_port: int) -> Serve:
    """Serve the program that can be edited by a row of SERVERS; when this returns, all workers are there."""

    def start(row: Row, *options: str, **more: Any) -> Server:
        command = [word.replace("{port}", str(free_port)) for word in (*row.command, *options)]
        more["env"] = {**row.env, **more.get("env", {})}
        return all_there(serve(command=command, cwd=program.directory, **more), row.workers)

    return start


@pytest.fixture
def start_nats(short_path: pathlib.Path) -> Iterator[StartNats]:
    """Start NATS servers, which end after the servers of `serve` if that comes later: `start_nats(config="…")`."""
    started: list[NatsServer] = []

    def start(*options: str, **more: Any) -> NatsServer:
        server = NatsServer(short_path / f"nats{len(started)}", *options, **more)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()
        print(f"$ nats-server, port {server.port}\n{server.output}")  # shown if the test has failed


@pytest.fixture
def nats_server(start_nats: StartNats) -> NatsServer:
    """A NATS server with JetStream, without TLS and authentication."""
    return start_nats()


@pytest.fixture(scope="session")
def flask_distribution(request: pytest.FixtureRequest) -> pathlib.Path:
    """The source distribution of the installed Flask."""
    return flaskr.download(pathlib.Path(request.config.cache.mkdir("flask-sdist")))


@pytest.fixture
def no_hubs_left(short_path: pathlib.Path) -> Iterator[None]:
    """When a test's servers have ended, so have their hubs."""
    yield
    until(lambda: not hubs_of(short_path), lambda: f"the end of the hubs: {hubs_of(short_path)}")


@pytest.fixture
def site(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Site:
    """A place to listen at, by a name of SITES: ``@pytest.mark.parametrize("site", …, indirect=True)``."""
    return SITES[request.param](short_path, free_port)


@pytest.fixture
def free_port() -> int:
    """A TCP port for a server of this test."""
    return ports.free_port()


@pytest.fixture
def other_free_port(free_port: int) -> int:
    """Another one."""
    while (port := ports.free_port()) == free_port:
        """It is free, too."""
    return port


@pytest.fixture(scope="session")
def stride(pytestconfig: pytest.Config) -> int:
    """Of calls that are to fail, `make test` takes every fifth, from the first one on; `make test-all` each of them."""
    return 5 if "not full" in pytestconfig.option.markexpr else 1


# How long an example takes says nothing on a machine that is shared.
settings.register_profile("all", max_examples=50, deadline=None)
settings.register_profile("quick", max_examples=25, deadline=None)
settings.load_profile("all")


def pytest_xdist_auto_num_workers() -> int:
    """Half of its time a test waits for another process, so there are more of them than processors, within reason."""
    return min(2 * (os.cpu_count() or 1), 16)


def pytest_configure() -> None:
    """Keep what pytest compiles of these files, even where Python writes no bytecode: each worker would do it anew."""
    sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """Keep the test suite itself out of the collections that look for what a test has left."""
    gc.collect()
    gc.freeze()
