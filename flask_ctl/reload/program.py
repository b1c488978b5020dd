"""How this process was started, so that it can be started again."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .. import handover

_RELOADER = ("WERKZEUG_RUN_MAIN", "WERKZEUG_SERVER_FD")

logger = logging.getLogger("flask_ctl")


class Program:
    """The command, the environment and the directory of the start, as they were before the program changed them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loaded_at = time.monotonic()
        self.environment = _environment_of_start()
        self.directory = _directory_of_start(self.environment.get("PWD"))

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
        return {name: value for name, value in self.environment.items() if name not in _RELOADER}

    def replace_at_exit(self, hand_over: Callable[[], dict[str, Any]]) -> None:
        """When this process is about to end, with everything else done, let it execute the program anew instead.

        `hand_over` gives the state for the next image at that last moment.
        """

        def replace() -> None:
            atexit.unregister(replace)
            # Those that were registered before this would come after it.
            atexit._run_exitfuncs()
            try:
                self._execute(hand_over())
            except BaseException:
                logger.exception("the new code could not be started; this process ends")
                raise

        atexit.register(replace)

    def _execute(self, state: dict[str, Any]) -> None:
        environment = {**self.environment, handover.ENVIRONMENT: handover.write(state)}
        os.chdir(self.directory)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()
        os.execve(sys.executable, self.command, environment)


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


def _directory_of_start(pwd: str | None) -> str:
    # The shell's name for it: after a release's symlink was switched, getcwd() would lead to the old one.
    try:
        if pwd and os.path.samefile(pwd, os.getcwd()):
            return pwd
        return os.getcwd()
    except OSError:
        return pwd or os.sep


def _is_multiprocessing_child() -> bool:
    module = sys.modules.get("multiprocessing")
    return module is not None and module.parent_process() is not None


program = Program()
"""This process's own, looked at when the package is imported."""
