"""How this process was started, so that it can be started again."""

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
from .directory import Origin
from .preflight import Preflight
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
        """Where it is started anew, symlinks unresolved."""
        return self.start_directory.path

    def start_in(self, directory: str) -> None:
        """Start it anew in this directory, by whatever name that was given."""
        self.start_directory = self.origin.for_program(directory)
        # As a shell has it; what it was at the start leads elsewhere.
        self._variables = {"PWD": directory}

    @property
    def command(self) -> list[str]:
        """Interpreter, its options and the program's arguments."""
        return [sys.executable, *sys.orig_argv[1:]]

    def obstacle(self) -> str | None:
        """Why it can't be started again, None if it can."""
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
        """Without what makes a program believe that it is the reloader's child."""
        environment = {**self.environment, **self._variables}
        return {name: value for name, value in environment.items() if name not in _RELOADER}

    def start_preflight(self, limit: float, served: Collection[str]) -> Preflight:
        """A preflight of this program, which may take `limit` seconds, while the HTTP addresses are `served`."""
        return Preflight(self, limit, served=served)

    def check(self) -> None:
        """Raises OSError, naming what is missing, if the program can't be executed anew."""
        if not os.access(sys.executable, os.X_OK):
            raise PermissionError(errno.EACCES, "the interpreter can't be executed", sys.executable)
        os.stat(self.directory)

    def execute(self, variables: dict[str, str]) -> None:
        """Become the program anew, in this very process. Raises OSError if that fails."""
        os.chdir(self.directory)
        os.execve(sys.executable, self.command, {**self.environment, **self._variables, **variables})

    def background_threads(self, but: Collection[threading.Thread]) -> list[str]:
        """See `threads.background_threads`."""
        return background_threads(but)

    def busy_executor_threads(self) -> list[str]:
        """See `threads.busy_executor_threads`."""
        return busy_executor_threads()

    def at_exit(self, function: Callable[[], Any]) -> None:
        """Call `function` when this program has unwound: what is registered last is called first."""

        def once() -> None:
            atexit.unregister(once)
            function()

        self._at_exit = once
        atexit.register(once)

    def run_exit_functions(self) -> None:
        """Call all exit functions but ours."""
        atexit.unregister(self._at_exit)
        atexit._run_exitfuncs()

    def flush(self) -> None:
        """Write what the log and the standard streams hold back."""
        if not logs.flush():
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()

    def terminate(self, exit_code: int) -> None:
        """End the process at once, but for what the log holds back."""
        logs.flush()
        os._exit(exit_code)


def _environment_of_start() -> dict[str, str]:
    # os.environ has by now what flask run, .env files and the program itself have put there.
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0") if b"=" in entry]
    except OSError:
        return dict(os.environ)
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    environment.pop(handover.ENVIRONMENT, None)
    return environment


def _is_multiprocessing_child() -> bool:
    module = sys.modules.get("multiprocessing")
    return module is not None and module.parent_process() is not None


program = Program()
"""This process's own, looked at when the package is imported."""
