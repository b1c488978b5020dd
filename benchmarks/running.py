"""Starting processes for a measurement, and ending them whatever happens to it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from flask_ctl import ControlClient

START_TIMEOUT = 30.0
"""Seconds for a process to be ready, and for one that was asked to end to be gone."""

HERE = pathlib.Path(__file__).parent
PROGRAMS = str(HERE / "programs.py")
TOOL = str(pathlib.Path(sys.executable).parent / "flask-ctl")


def clean_environment() -> dict[str, str]:
    """The environment without what would change how Flask, Werkzeug, gunicorn or flask-ctl run."""
    unwanted = ("FLASK_", "WERKZEUG_", "GUNICORN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


@contextlib.contextmanager
def scratch_directory() -> Iterator[pathlib.Path]:
    """A directory for sockets and logs, with a short path, that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory:
        yield pathlib.Path(directory)


class Program:
    """A process in a group of its own, all of which is gone when the `with` block ends."""

    def __init__(self, *arguments: str, log: pathlib.Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=log.parent,
                env=clean_environment(),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def wait_until_ready(self) -> str:
        """Wait for the line on stdout that begins with ``ready``; what follows in it."""
        assert self._process.stdout is not None
        with self._limited():
            word, _, rest = self._process.stdout.readline().decode().strip().partition(" ")
        if word != "ready":
            raise RuntimeError(self._failure())
        return rest

    def wait_until(self, answers: Callable[[], object]) -> None:
        """Call `answers` until it raises nothing."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                answers()
                return
            except Exception:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(self._failure()) from None
            time.sleep(0.02)

    def tell(self, line: bytes) -> None:
        """Write to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def wait(self) -> None:
        """Wait in the kernel until it has ended, so that its end is seen at once."""
        with self._limited():
            self._process.wait()

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        timer = threading.Timer(START_TIMEOUT, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _failure(self) -> str:
        return f"{self._process.args!r} is not ready; it wrote:\n{self._log.read_text(errors='replace')}"


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Have this process, and those that it starts, share a processor.

    Else it is the scheduler that is measured: a processor that sleeps between two messages takes longer to wake up than
    an answer takes, and which pair of processes is spread over two of them changes from run to run.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def controlled(
    stack: contextlib.ExitStack,
    scratch: pathlib.Path,
    address: str | None = None,
    *arguments: str,
    program: str = "controlled",
) -> tuple[ControlClient, Program]:
    """A Flask app under control that answers at `address`, and a connected client of it."""
    address = address or str(scratch / "app")
    server = stack.enter_context(Program(PROGRAMS, program, address, *arguments, log=scratch / "app.log"))
    client = stack.enter_context(ControlClient(address))
    server.wait_until(client.ping)
    return client, server


def gunicorn_server(scratch: pathlib.Path, target: str, workers: int, *options: str) -> Program:
    """gunicorn with an app of programs.py; its own control socket is off, unless `options` turn it on."""
    arguments = ["-m", "gunicorn", "-b", "127.0.0.1:0", "-w", str(workers), "--worker-tmp-dir", str(scratch)]
    arguments += [*options, "--pythonpath", str(HERE.parent), f"benchmarks.programs:{target}"]
    if "--control-socket" not in options and _has_control_socket():
        arguments.insert(2, "--no-control-socket")
    return Program(*arguments, log=scratch / "log")


def _has_control_socket() -> bool:
    """Whether this version of gunicorn has a control socket of its own."""
    return importlib.util.find_spec("gunicorn.ctl") is not None


def workers_of(client: ControlClient, count: int) -> set[int]:
    """The pids of the workers. Raises RuntimeError if there are not `count` of them."""
    pids = {worker["pid"] for worker in client.status()["workers"]}
    if len(pids) != count:
        raise RuntimeError("not all workers are there")
    return pids


def process(scratch: pathlib.Path, *arguments: str) -> Callable[[], object]:
    """Runs a command; once it has run, with everything compiled, as an installed package is."""
    environment = {**clean_environment(), "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Without a timeout, which would make it poll.
    return lambda: subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, check=True)


def free_port() -> int:
    """A TCP port of the loopback interface at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
