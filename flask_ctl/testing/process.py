"""`AppProcess`: a real process that serves the app, stopped over its control socket."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from ..client.client import ControlClient
from ..errors import ControlError, NotRunning, ServerDied

START_TIMEOUT = 30.0
"""Seconds for a process to be ready."""

END_TIMEOUT = 10.0
"""Seconds beyond the grace for the end of a process."""

DUMP_TIMEOUT = 1.0
"""Seconds for a worker to write its stacks and end."""

POLL = 0.02
"""Seconds between two looks at a process that starts."""

SHOWN = 20_000
"""Characters of the output in an error."""


class ProcessFailed(AssertionError):
    """A process did not start, or did not end as it should; the message has its output."""


class AppProcess:
    """A process that serves a Flask app with a control socket; a context manager.

    It runs `command`, or with `app` (such as ``shop:create_app()``) ``flask-ctl run`` with `server`, at a free port.
    `env` is added to the environment, a value of None takes a variable away; `cwd` is the directory. The process has to
    listen at FLASK_CTL_SOCKET, as an app with a Control does.

    At the end of the block it is stopped over its control socket, so that exit handlers run and coverage is saved;
    ProcessFailed is raised if requests were cut after `grace` seconds (default: the app's), or if its exit code is not
    0.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        app: str | None = None,
        server: str = "werkzeug",
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = START_TIMEOUT,
        grace: float | None = None,
    ) -> None:
        if (command is None) == (app is None):
            raise TypeError("give either a command or an app")
        run = [sys.executable, "-m", "flask_ctl_cli", "run", "--port", "0", "--server", server, "--app", str(app)]
        self.command = run if command is None else list(command)
        self._env = env or {}
        self._cwd = cwd
        self._timeout = timeout
        self._grace = grace
        self._directory: pathlib.Path | None = None
        self._output = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._result: dict[str, Any] | None = None
        self.url = ""
        """The URL of its first listener, such as ``http://127.0.0.1:54321``."""

    @property
    def pid(self) -> int:
        """The pid of the process that was started. Raises RuntimeError before the start."""
        return self._started().pid

    @property
    def socket(self) -> str:
        """The path of its control socket. Raises RuntimeError before the start."""
        if self._directory is None:
            raise RuntimeError("the process is not started")
        return str(self._directory / "ctl.sock")

    @property
    def output(self) -> str:
        """What it has written to stdout and stderr up to now, also after its end."""
        if self._directory is not None:
            with contextlib.suppress(FileNotFoundError):
                return (self._directory / "output").read_text(errors="replace")
        return self._output

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and has not ended."""
        return self._process is not None and self._process.returncode is None and not self._has_exited()

    def __str__(self) -> str:
        return self.url

    def __add__(self, path: str) -> str:
        return self.url + path

    def client(self) -> ControlClient:
        """A new client of its control socket, for the caller to close."""
        return ControlClient(self.socket)

    def start(self) -> None:
        """Start it; its app serves when this returns. Raises ProcessFailed, with its output, if it does not.

        A process that is not ready in time is ended, with its stacks in the output.
        """
        # Of pytest: its report begins at the test.
        __tracebackhide__ = True
        if self._process is not None:
            raise RuntimeError("the process is started already")
        # A short path: that of a Unix socket has 107 bytes at most.
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="ctl-"))
        env = {**os.environ, "PYTHONFAULTHANDLER": "1", "FLASK_CTL_SOCKET": self.socket, **self._env}
        try:
            with open(self._directory / "output", "wb") as output:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=self._cwd,
                    env={name: value for name, value in env.items() if value is not None},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> dict[str, Any]:
        """Stop it gracefully; the result of `ControlClient.stop` with ``exit_code``. More than once is fine.

        Raises ProcessFailed, with the output, if requests were cut or the exit code is not 0.
        """
        __tracebackhide__ = True
        if self._result is None:
            self._result = self._stop()
        return self._result

    def wait(self, timeout: float = END_TIMEOUT) -> int:
        """The exit code of a process that ends by itself, as it should. Raises subprocess.TimeoutExpired."""
        code = self._reap(timeout)
        self._result = self._result or {"outcome": "ended", "cut": 0, "exit_code": code}
        self._close()
        return code

    def kill(self) -> None:
        """End it at once, with the processes that it has started; more than once is fine."""
        if self._process is not None and self._process.returncode is None:
            # Not by Popen, which would reap it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            code = self._reap(END_TIMEOUT)
            self._result = self._result or {"outcome": "killed", "exit_code": code}
        self._close()

    def __enter__(self) -> AppProcess:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except ProcessFailed:
            # What the block has raised says more.
            if exc_type is None:
                raise
        finally:
            self.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the process is not started")
        return self._process

    def _await_ready(self) -> None:
        __tracebackhide__ = True
        deadline = time.monotonic() + self._timeout
        while not self._has_exited():
            try:
                with self.client() as client:
                    status = client.status(timeout=1.0)
            except ControlError:
                status = {}
            if status.get("state", "starting") != "starting":
                self.url = next(iter(status["server"]["listeners"]), "")
                return
            if time.monotonic() > deadline:
                self._dump_stacks()
                raise self._failed(f"was not ready after {self._timeout:g} s")
            time.sleep(POLL)
        raise self._failed(f"ended with exit code {self._reap(END_TIMEOUT)} at its start")

    def _has_exited(self) -> bool:
        """Without reaping it: its pid stays its own."""
        process = self._started()
        if process.returncode is not None:
            return True
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reap(self, timeout: float) -> int:
        """The exit code, after at most `timeout` seconds; what it has left of its process group is killed.

        Raises subprocess.TimeoutExpired.
        """
        process = self._started()
        deadline = time.monotonic() + timeout
        while not self._has_exited():
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.command, timeout)
            time.sleep(POLL)
        if process.returncode is None:
            # Before it is reaped, because the number of the group is free for another one from then on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _dump_stacks(self) -> None:
        """Have it and its workers write the stacks of their threads, one after the other, which ends them.

        The signal is one for which no server has a handler of its own, so it is `faulthandler` that handles it.
        """
        if self._has_exited():
            return
        pid = self._started().pid
        workers = ""
        with contextlib.suppress(OSError):
            workers = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
        for worker in map(int, workers.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGBUS)
            # Its parent reaps it. What two of them write at once could not be read.
            deadline = time.monotonic() + DUMP_TIMEOUT
            while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
                time.sleep(POLL)
        os.kill(pid, signal.SIGBUS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._reap(END_TIMEOUT)

    def _stop(self) -> dict[str, Any]:
        __tracebackhide__ = True
        self._started()
        try:
            with self.client() as client:
                result = client.stop(grace=self._grace)
            code = self._reap(END_TIMEOUT)
        except (NotRunning, ServerDied) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._reap(1.0)
                raise self._failed(f"had ended with exit code {code} before it was stopped") from None
            raise self._failed(f"can't be stopped: {error.message}") from None
        except (ControlError, subprocess.TimeoutExpired) as error:
            self._dump_stacks()
            raise self._failed(f"has not ended: {error}") from None
        if code != 0:
            raise self._failed(f"ended with exit code {code}")
        if result.get("cut"):
            raise self._failed(f"was stopped with {result['cut']} of its requests cut: {result.get('cut_requests')}")
        self._close()
        return {**result, "exit_code": code}

    def _failed(self, what: str) -> ProcessFailed:
        text = self.output[-SHOWN:]
        return ProcessFailed(f"{' '.join(self.command)} {what}; its output:\n{text or '(nothing)'}")

    def _close(self) -> None:
        """Keep the output, remove the directory."""
        if self._directory is not None:
            self._output = self.output
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
