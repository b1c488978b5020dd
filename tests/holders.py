"""Processes that hold locks on a file, for the tests."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

from harness import Child

HOLDER = """
import os, sys
from flask_ctl.system import locks
from flask_ctl.workers.agent import presence
path, todo = sys.argv[1], sys.argv[2]
descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
exec(todo)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Holder:
    """A process that runs some code with `descriptor` of a lock file, and more when it is told."""

    def __init__(self, path: str | pathlib.Path, todo: str) -> None:
        self.process = Child(sys.executable, "-c", HOLDER, str(path), todo)
        self.pid = self.process.pid
        assert self.process.stdout.readline() == "ready\n"

    def do(self, line: str) -> None:
        self.process.say(line)
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


Hold = Callable[..., Holder]
"""Starts a holder, which ends with the test."""
