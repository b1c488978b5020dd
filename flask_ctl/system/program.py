"""How this process was started: the command, environment and directory for starting it again."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from . import handover, logs
from .activation import activation
from .directory import Origin
from .preflight import Preflight
from .signals import keep_for_next_image, note_kept
from .threads import background_threads, busy_executor_threads

if TYPE_CHECKING:
    import threading

_RELOADER = ("WERKZEUG_RUN_MAIN", "WERKZEUG_SERVER_FD")


class Program:
    """The command, the environment and the directory of the start, as they were before the program changed them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loaded_at = time.monotonic()
        self.environment = _environment_of_start()
        self.origin = Origin(self.environment.get("PWD"))
        self.start_directory = self.origin.for_program()
        self._variables: dict[str, str] = {}

    @property
    def directory(self) -> str:
        """Where it is started again, symlinks unresolved."""
        return self.start_directory.path

    def start_in(self, directory: str) -> None:
        """Start it again in this directory, under this name, symlinks unresolved."""
        self.start_directory = self.origin.for_program(directory)
        # As a shell sets it; the PWD of the start names another directory.
        self._variables = {"PWD": directory}

    @property
    def command(self) -> list[str]:
        """The interpreter, its options, and the program's arguments."""
        return [sys.executable, *sys.orig_argv[1:]]

    def obstacle(self) -> str | None:
        """The reason why it can't be started again, None if it can."""
        if os.getpid() != self.pid or _is_multiprocessing_child():
            return "this process was forked from another program"
        if getattr(sys, "frozen", False) or not sys.executable:
            return "there is no interpreter to start again"
        if sys.flags.interactive or hasattr(sys, "ps1"):
            return "the interpreter is interactive"
        if len(sys.orig_argv) < 2 or sys.orig_argv[-1] == "-":
            return "the program came from standard input"
        return None

    def environment_for_preflight(self) -> dict[str, str]:
        """The environment of the start, without the variables that mark a child of Werkzeug's reloader."""
        environment = {**self.environment, **self._variables}
        return {name: value for name, value in environment.items() if name not in _RELOADER}

    def start_preflight(self, limit: float, served: Collection[str]) -> Preflight:
        """A preflight that may take `limit` seconds, and need not bind the HTTP addresses in `served`."""
        return Preflight(self, limit, served=served)

    def check(self) -> None:
        """Raises OSError, with the missing file, if the program can't be executed again."""
        if not os.access(sys.executable, os.X_OK):
            raise PermissionError(errno.EACCES, "the interpreter can't be executed", sys.executable)
        os.stat(self.directory)

    def execute(self, variables: dict[str, str]) -> None:
        """Execute the program again in this process (execve(2)). Raises OSError if that fails."""
        os.chdir(self.directory)
        activation.keep()
        keep_for_next_image()
        os.execve(sys.executable, self.command, {**self.environment, **self._variables, **variables})

    def background_threads(self, but: Collection[threading.Thread]) -> list[str]:
        """See `threads.background_threads`."""
        return background_threads(but)

    def busy_executor_threads(self) -> list[str]:
        """Names of the threads of executors that have work; see `threads.busy_executor_threads`."""
        return busy_executor_threads()

    def at_exit(self, function: Callable[[], Any]) -> None:
        """Call `function` when the program has unwound, before the exit functions registered so far."""

        def once() -> None:
            atexit.unregister(once)
            function()

        self._at_exit = once
        atexit.register(once)

    def run_exit_functions(self) -> None:
        """Call all exit functions but the one given to `at_exit`."""
        atexit.unregister(self._at_exit)
        atexit._run_exitfuncs()

    def flush(self) -> None:
        """Flush the log and the standard streams."""
        if not logs.flush():
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()

    def terminate(self, exit_code: int) -> None:
        """Flush the log and end the process at once, without exit functions."""
        logs.flush()
        os._exit(exit_code)


def _environment_of_start() -> dict[str, str]:
    # os.environ has been changed by flask run, .env files and the program itself.
    try:
        with open("/proc/self/environ", "rb") as file:
            environment = variables_in(file.read())
    except OSError:
        environment = None
    environment = dict(os.environ) if environment is None else environment
    environment.pop(handover.ENVIRONMENT, None)
    return environment


def variables_in(text: bytes) -> dict[str, str] | None:
    """The variables in a text of ``/proc/PID/environ``; None if the process has written something else there.

    Who sets a title of a process, as the package setproctitle, does so in the memory that has held the command line and
    the environment, and fills the rest with NULs or spaces.
    """
    *entries, rest = text.split(b"\0")
    if not entries or rest or any(entry.find(b"=") <= 0 for entry in entries):
        return None
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, _, value in pairs}


def _is_multiprocessing_child() -> bool:
    module = sys.modules.get("multiprocessing")
    return module is not None and module.parent_process() is not None


program = Program()
"""The program of this process, recorded when the package is imported."""

if handover.inherited.is_there:
    note_kept()
