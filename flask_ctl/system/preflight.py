"""A preflight: the program's command in a process of its own, up to where it would bind its HTTP socket."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Collection
from typing import IO, Any, Protocol

from ..errors import ConfigurationError, ReloadFailed
from .activation import activation
from .native import select, start_thread, subprocess
from .reserve import reserve
from .sd_notify import without_manager
from .waiting import Waker, wait_readable

ENVIRONMENT = "FLASK_CTL_PREFLIGHT"
SERVED = "FLASK_CTL_PREFLIGHT_SERVED"
_PASSED = b"passed"

MAX_OUTPUT = 64 * 1024
"""Bytes at the end of its output that the caller gets; a traceback is shorter."""

_report_to = int(os.environ.pop(ENVIRONMENT, "-1"))

preflighting = _report_to >= 0
"""Whether this process is a preflight."""

served: list[str] = json.loads(os.environ.pop(SERVED, "[]"))
"""In a preflight: the requested HTTP addresses that the running server has already."""


def _end_with_parent() -> None:
    """End this process and its children as soon as the report's pipe has no reader: the server was killed."""
    poll = select.poll()
    # POLLERR is reported without being requested: poll(2).
    poll.register(_report_to, 0)
    poll.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if preflighting:
    # In a thread, because the program may hang in the main thread.
    start_thread(_end_with_parent)


def end_if_preflighting(check: Callable[[], Any]) -> None:
    """In a preflight: end it successfully, because the program would serve now.

    `check` raises ConfigurationError if the program would not start with its settings, which fails the preflight.
    """
    if preflighting:
        check()
        os.write(_report_to, _PASSED)
        try:
            # They remove temporary directories of the import. An atexit function might deregister the running server.
            _run_finalizers()
        finally:
            os._exit(0)


def _run_finalizers() -> None:
    """Call what `weakref.finalize` would call at the end of Python, which has no public function for that alone."""
    run: Callable[[], Any] | None = getattr(weakref.finalize, "_exitfunc", None)
    if run is not None:
        run()


def check_at_exit(check: Callable[[], Any]) -> None:
    """In a preflight that only loads the code: call `check` at its end, and fail if that raises."""
    if preflighting:
        atexit.unregister(_check)
        atexit.register(_check, check)


def _check(check: Callable[[], Any]) -> None:
    try:
        check()
    except (ConfigurationError, OSError) as error:
        print(error, file=sys.stderr, flush=True)
        # In atexit an exception does not change the exit code.
        os._exit(1)


class PreflightProgram(Protocol):
    """A program of which a preflight can be started."""

    @property
    def command(self) -> list[str]: ...

    @property
    def directory(self) -> str: ...

    def environment_for_preflight(self) -> dict[str, str]: ...


class Preflight:
    """One preflight; `cancel` may be called by another thread.

    With `by_exit` the program only loads the code, and passes by ending with exit code 0.
    """

    def __init__(
        self, program: PreflightProgram, limit: float, *, served: Collection[str] = (), by_exit: bool = False
    ) -> None:
        """`served` are the HTTP addresses that the program inherits, and does not have to bind."""
        self._served = served
        self._program = program
        self._limit = limit
        self._by_exit = by_exit
        self._cancelled = False
        self._waker: Waker | None = None

    def cancel(self) -> None:
        """End the preflight, even before it has begun."""
        self._cancelled = True
        waker = self._waker
        if waker is not None:
            waker.wake()

    def run(self) -> None:
        """Return if the program would serve, or if the preflight was cancelled.

        Raises ReloadFailed with the output in `data` if the program ended before that, or took too long.
        """
        try:
            stack, waker, report, output, process = reserve.retry(self._open)
        except OSError as error:
            message = f"the program can't be started: {error}"
            raise ReloadFailed(message, {"traceback": message}) from None
        with stack:
            began = time.monotonic()
            try:
                # It may have been cancelled before the waker existed.
                if not self._cancelled:
                    wait_readable([report, waker.fileno()], self._limit)
                os.set_blocking(report, False)
                passed = _read(report) == _PASSED
            finally:
                _end(process, wait=time.monotonic() - began < self._limit and not self._cancelled)
            if self._by_exit:
                passed = process.returncode == 0
            if not passed and not self._cancelled:
                raise self._failure(process, output, time.monotonic() - began >= self._limit)

    def _open(self) -> tuple[contextlib.ExitStack, Waker, int, IO[bytes], subprocess.Popen[bytes]]:
        """Start the process. If OSError is raised, nothing stays open."""
        with contextlib.ExitStack() as stack:
            waker = self._waker = Waker()
            stack.callback(waker.close)
            report, report_to = os.pipe()
            stack.callback(os.close, report)
            try:
                output = stack.enter_context(tempfile.TemporaryFile())
                process = self._start(report_to, output)
            finally:
                os.close(report_to)
            return stack.pop_all(), waker, report, output, process

    def _start(self, report_to: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._program.command,
            cwd=self._program.directory,
            env=self._environment(report_to),
            pass_fds=[report_to],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def _environment(self, report_to: int) -> dict[str, str]:
        served = {SERVED: json.dumps(list(self._served))} if self._served else {}
        environment = without_manager(self._program.environment_for_preflight())
        return {**served, **environment, **activation.for_preflight(), ENVIRONMENT: str(report_to)}

    def _failure(self, process: subprocess.Popen[bytes], output: IO[bytes], timed_out: bool) -> ReloadFailed:
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - MAX_OUTPUT))
        text = output.read().decode(errors="replace")
        lines = text.strip().splitlines()
        if timed_out:
            problem = f"it did not get ready to serve within {self._limit:g} s"
        else:
            problem = f"it ended with exit code {process.returncode} before it served"
        message = f"the new code was refused: {problem}{': ' + lines[-1] if lines else ''}"
        return ReloadFailed(
            message, {"traceback": text or problem, "directory": os.path.realpath(self._program.directory)}
        )


def _read(report: int) -> bytes:
    """The report so far."""
    try:
        return os.read(report, len(_PASSED))
    except BlockingIOError:
        return b""


def _end(process: subprocess.Popen[bytes], *, wait: bool) -> None:
    """Reap the process and kill its children; with `wait` it has a second to end by itself."""
    if wait:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
