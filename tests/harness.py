"""Real servers in real processes, for the tests."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pathlib
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest
from flask import Flask
from forkedcli import ForkedCli

import flask_ctl
import flask_ctl_cli
from flask_ctl import ControlClient, ControlError
from flask_ctl.transports.zeromq.curve import write_key_pair

APPS = pathlib.Path(__file__).parent / "apps"
TIMEOUT = 60.0
"""Seconds after which a test has failed; never a time that it waits for."""

PYTHON = [sys.executable]
FLASK = [sys.executable, "-m", "flask", "--app", "sample", "run", "--port", "0"]

MODES: dict[str, list[str]] = {
    "app.run": [*PYTHON, "sample.py"],
    "app.run unthreaded": [*PYTHON, "sample.py", "unthreaded"],
    "app.run debug": [*PYTHON, "sample.py", "debug"],
    "control.run": [*PYTHON, "sample.py", "control"],
    "make_server": [*PYTHON, "sample.py", "make_server"],
    "flask run": FLASK,
    "flask run --debug": [*FLASK, "--debug", "--exclude-patterns", "*"],
    "flask-ctl run": [*PYTHON, "-m", "flask_ctl_cli", "run", "--app", "sample", "--port", "0"],
}
"""Every way to serve by Werkzeug that comes under control from `Control(app)` alone.

Under the reloader no file is watched: it would restart the child whenever a test edits the program.
"""

RELOADING = [mode for mode in MODES if "debug" in mode]
SINGLE = [mode for mode in MODES if "debug" not in mode]
THREADED = [mode for mode in MODES if "unthreaded" not in mode]


def suspend(pid: int) -> None:
    """SIGSTOP a process; every thread of it has stopped when this returns."""

    def has_stopped() -> bool:
        # A thread may have ended just before.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stats = [(task / "stat").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
            return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
        return False

    os.kill(pid, signal.SIGSTOP)
    until(has_stopped, f"the effect of SIGSTOP on {pid}")


def until(condition: Callable[[], Any], what: str | Callable[[], str]) -> Any:
    """The first true value of `condition`; AssertionError if there is none in time, with what was waited for."""
    deadline = time.monotonic() + TIMEOUT
    pause = 0.002
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what() if callable(what) else what}"
        # Looking costs more than waiting, on few processors the very processes that are waited for.
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return value


def first_quick(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of which `make test` takes the first `count`; the others go the same way through our code."""
    every = list(values)
    return [*every[:count], *(pytest.param(value, marks=pytest.mark.full) for value in every[count:])]


class Keys(NamedTuple):
    """A server's CURVE key pair and one client's, who may operate; `options` are for a ControlClient."""

    server: str
    server_public: str
    clients: pathlib.Path
    client: str

    @property
    def options(self) -> dict[str, Any]:
        return {"client_key": self.client, "server_key": self.server_public}

    @property
    def server_env(self) -> dict[str, str]:
        allow = json.dumps({"operate": ["key:me"]})
        return {
            "FLASK_CTL_CURVE_KEY": self.server,
            "FLASK_CTL_CURVE_CLIENTS": str(self.clients),
            "FLASK_CTL_ALLOW": allow,
        }

    @property
    def client_env(self) -> dict[str, str]:
        return {"FLASK_CTL_CLIENT_KEY": self.client, "FLASK_CTL_SERVER_KEY": self.server_public}

    def new_client(self, name: str, *, allowed: bool) -> str:
        """The file of another client's pair, which the server lets in if it is `allowed`."""
        path = self.clients.with_name(f"{name}.key")
        public = pathlib.Path(write_key_pair(str(path), "client"))
        if allowed:
            public.rename(self.clients / public.name)
        return str(path)


def make_keys(directory: pathlib.Path) -> Keys:
    """New keys, in a new directory."""
    directory.mkdir(mode=0o700)
    clients = directory / "clients"
    clients.mkdir(mode=0o700)
    server = str(directory / "server.key")
    keys = Keys(server, write_key_pair(server, "server"), clients, str(directory / "me.key"))
    keys.new_client("me", allowed=True)
    return keys


class Site(NamedTuple):
    """An address, and the keys that are needed there."""

    socket: str
    keys: Keys | None = None

    @property
    def env(self) -> dict[str, str]:
        """What the server finds in its environment."""
        return {} if self.keys is None else self.keys.server_env

    @property
    def options(self) -> dict[str, Any]:
        """For a ControlClient."""
        return {} if self.keys is None else self.keys.options

    @property
    def client_env(self) -> dict[str, str]:
        """What the command line finds in its environment."""
        return {} if self.keys is None else self.keys.client_env


def _unix_site(directory: pathlib.Path, port: int) -> Site:
    return Site(str(directory / "site.sock"))


def _ipc_site(directory: pathlib.Path, port: int) -> Site:
    return Site(f"ipc://{directory / 'site.zmq'}")


def _curve_site(directory: pathlib.Path, port: int) -> Site:
    return Site(f"tcp://127.0.0.1:{port}", make_keys(directory / "keys"))


SITES = {"unix": _unix_site, "ipc": _ipc_site, "tcp with CURVE": _curve_site}


class Server:
    """A program that serves `sample`, with its control socket, output and end."""

    def __init__(
        self,
        command: list[str],
        socket_path: pathlib.Path | str,
        *,
        output: pathlib.Path | None = None,
        env: dict[str, str] | None = None,
        options: dict[str, Any] | None = None,
        **popen: Any,
    ) -> None:
        self.command = command
        self.socket = str(socket_path)
        self.options = options or {}
        self.output_path = output or pathlib.Path(f"{socket_path}.out")
        environ = {**os.environ, "FLASK_CTL_SOCKET": self.socket, "PYTHONUNBUFFERED": "1", **(env or {})}
        with self.output_path.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=popen.pop("cwd", APPS), env=environ, stdout=file, stderr=file,
                stdin=popen.pop("stdin", subprocess.DEVNULL), start_new_session=True, **popen,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    def said(self, *lines: str) -> list[str]:
        """Those of these lines that it has written, in order. What flask-ctl logs may come before or after."""
        return [line for line in self.lines if line in lines]

    def client(self, **options: Any) -> ControlClient:
        return ControlClient(self.socket, **{**self.options, **options})

    def ready(self) -> Server:
        """Wait until it serves; `status` then tells the HTTP address."""
        until(self._answers, f"an answer at {self.socket}; the output was: {self.output}")
        return self

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.status(timeout=TIMEOUT)

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.status()["server"]["listeners"][0])
        assert url.hostname is not None
        assert url.port is not None
        return url.hostname, url.port

    def get(self, path: str, address: tuple[str, int] | None = None) -> tuple[int, bytes]:
        return get(address or self.address, path)

    def begin(self, path: str) -> Pending:
        """A request that is in flight when this returns."""
        before = self.status()["requests"]["total"]
        pending = Pending(self.address, path)
        until(lambda: self.status()["requests"]["total"] > before, f"{path} in flight")
        return pending

    def call(self, name: str, /, **params: Any) -> Any:
        with self.client() as client:
            return client.call(name, **params)

    def reload(self, **options: Any) -> dict[str, Any]:
        with self.client() as client:
            return client.reload(**options)

    def release(self, name: str) -> None:
        self.call("release", name=name)

    def suspend(self) -> Server:
        """SIGSTOP it; every thread of it has stopped when this returns."""
        suspend(self.pid)
        return self

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """End it, and what it started in its session, whatever its state."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.output}"
        return self._serves()

    def _serves(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.status(timeout=1.0)["state"] != "starting")
        except ControlError:
            return False


class SharedServer(Server):
    """A server that tests only ask. It is no child of this process, so no test seems to leave it behind."""

    def __init__(self, command: list[str], directory: pathlib.Path, **options: Any) -> None:
        super().__init__(["sh", "-c", '"$@" &', "sh", *command], directory / "shared.sock", **options)
        self._group = self.pid
        assert self.wait() == 0
        until(self._serves, lambda: f"an answer of {command}; the output was: {self.output}")
        self.pid = self.status()["pid"]

    def kill(self) -> None:
        os.killpg(self._group, signal.SIGKILL)


Serve = Callable[..., Server]
"""Starts a server, and returns it when it answers; a fixture's docstring tells what it takes."""


class Program:
    """A directory with a copy of `sample.py`."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.file = directory / "sample.py"
        self.file.write_text((APPS / "sample.py").read_text())

    def edit(self, version: str, code: str = "") -> None:
        """Give it another version, and more code to run at its import."""
        text = (APPS / "sample.py").read_text()
        self.file.write_text(text.replace('VERSION = "old"', f"VERSION = {version!r}\n{code}\n"))


@functools.cache
def import_client() -> None:
    """Import all that a client and the command line import late.

    Whoever becomes another user has to do so first: that user may not be able to enter the directory of the sources.
    """
    servers = ("flask_ctl.servers", "flask_ctl.workers", "flask_ctl_cli.wsgi")
    for package in (flask_ctl, flask_ctl_cli):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name in servers or module.name.endswith("__main__"):
                continue
            imported = importlib.import_module(module.name)
            if module.ispkg:
                for part in pkgutil.iter_modules(imported.__path__, f"{module.name}."):
                    importlib.import_module(part.name)


def as_user(uid: int, gid: int, groups: tuple[int, ...], act: Callable[[], bytes]) -> bytes:
    """What `act` returns in a child that has become another user; only root can do that."""
    import_client()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            os.write(write, act())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def get(address: tuple[str, int], path: str) -> tuple[int, bytes]:
    """Status and body of one request."""
    connection = HTTPConnection(*address, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def connections(pid: int | None = None, kind: str = "inet") -> list[Any]:
    """The connections of a process, by default of this one."""
    process = psutil.Process(pid)
    # Before version 6 of psutil it has another name.
    found: list[Any] = getattr(process, "net_connections" if hasattr(process, "net_connections") else "connections")(
        kind
    )
    return found


def is_connected(address: tuple[str, int]) -> bool:
    """Whether this process has a connection there, whether that has been accepted or not."""
    found = connections(kind="tcp4")
    return any(each.raddr == address and each.status == psutil.CONN_ESTABLISHED for each in found)


def add_hold(app: Flask, gate: threading.Event) -> threading.Event:
    """Serve /hold, which waits for the gate; an event that is set when a request has got there."""
    entered = threading.Event()

    @app.get("/hold")
    def hold() -> str:
        entered.set()
        gate.wait()
        return "held"

    return entered


class Pending:
    """Something that goes on in a thread; `result` waits for it, and raises what it raised."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self._outcome: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(lambda: get(address, path),), name=f"GET {path}")
        self._thread.start()

    @classmethod
    def call(cls, function: Callable[[], Any]) -> Pending:
        pending = cls.__new__(cls)
        pending._outcome = []
        pending._thread = threading.Thread(target=pending._run, args=(function,), name="pending call")
        pending._thread.start()
        return pending

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(TIMEOUT)
        assert self._outcome, "not in time"
        kind, value = self._outcome[0]
        if kind == "error":
            raise value
        return value

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._outcome.append(("result", function()))
        except BaseException as error:
            self._outcome.append(("error", error))


Done = subprocess.CompletedProcess[str]
"""What `run_cli` returns: `returncode`, `stdout` and `stderr`."""


class Child(subprocess.Popen[str]):
    """A program that reads lines and writes lines."""

    stdin: IO[str]
    stdout: IO[str]

    def __init__(self, *command: str) -> None:
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: str) -> None:
        self.stdin.write(line + "\n")
        self.stdin.flush()


forked_cli = ForkedCli()


def run_cli(
    *arguments: str,
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = TIMEOUT,
    **options: Any,
) -> Done:
    """`flask-ctl` with these arguments, as a process of its own; `run` and what has options are started anew."""
    environ = {**os.environ, **(env or {})}
    if "run" not in arguments and not options:
        return forked_cli.run(arguments, environ, os.fspath(cwd or os.getcwd()), timeout)
    return subprocess.run(
        [sys.executable, "-m", "flask_ctl_cli", *arguments],
        capture_output=True, text=True, timeout=timeout, env=environ, cwd=cwd, **options,
    )  # fmt: skip


@contextlib.contextmanager
def raw(path: str | pathlib.Path) -> Iterator[socket.socket]:
    """A connected Unix socket, for what no client would send."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(str(path))
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """What comes until the end of the stream."""
    pieces = []
    while data := sock.recv(65536):
        pieces.append(data)
    return b"".join(pieces)
