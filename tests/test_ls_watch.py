"""`flask-ctl ls --watch` while instances come and go."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from flask import Flask
from harness import Child, until

from flask_ctl import BackgroundServer, Control

INSTANCES = 50
AT_ONCE = 5


class Watcher:
    """A running `ls --watch --json`, whose lines are checked as they are read."""

    def __init__(self) -> None:
        words = ["ls", "--all", "--watch", "60", "--json"]
        self.process = Child(sys.executable, "-m", "flask_ctl_cli", *words)

    def read(self) -> list[dict[str, Any]]:
        """The next list; no instance is in it twice."""
        found: list[dict[str, Any]] = json.loads(self.process.stdout.readline())
        names = [one["name"] for one in found]
        assert len(set(names)) == len(names), names
        assert {one["pid"] for one in found} <= {os.getpid()}
        return found

    def wait_for(self, names: set[str]) -> None:
        """Read on until just these are listed."""
        while {one["name"] for one in self.read()} != names:
            pass


@contextlib.contextmanager
def watcher() -> Iterator[Watcher]:
    watching = Watcher()
    yield watching
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait() == 0
    watching.process.stdin.close()
    watching.process.stdout.close()


def test_each_of_fifty_instances_is_listed_when_it_comes_and_not_when_it_has_gone(short_path: pathlib.Path) -> None:
    """Nobody waits for the next time that the list is due: that would be after a minute. No file is left."""
    with watcher() as watching:
        for first in range(0, INSTANCES, AT_ONCE):
            servers = {}
            for number in range(first, first + AT_ONCE):
                app = Flask(f"app-{number}")
                Control(app)
                servers[app.name] = BackgroundServer(app, socket=str(short_path / f"{number}.sock"))
                servers[app.name].start()
            watching.wait_for(set(servers))
            for server in servers.values():
                server.stop()
            watching.wait_for(set())
    runtime = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "flask-ctl")
    until(lambda: not list(runtime.iterdir()), lambda: f"an empty registry: {list(runtime.iterdir())}")
