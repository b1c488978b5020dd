"""Two servers behind HAProxy, of which each is drained, stopped and started again: its clients see nothing of it."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from harness import APPS, PYTHON, TIMEOUT, Serve, Server, get, read_all, run_cli, until
from ports import free_ports

CLIENTS = 2
PAUSE = 0.005
"""Seconds between two requests of a client."""

EXAMPLE = APPS.parent.parent / "examples" / "haproxy" / "shop.cfg"

DEFAULTS = """
defaults
    # A slow answer is no failed check.
    timeout check 30s
    # A request that does not reach the server which it is sent to is an error.
    retries 0
"""

STARTS: dict[str, Callable[[int], list[str]]] = {
    "a": lambda port: [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "-w", "2", "--threads", "4",
                       "--no-control-socket", "sample:app"],
    "b": lambda port: [*PYTHON, "-m", "flask_ctl_cli", "run", "--app", "sample", "--port", str(port)],
}  # fmt: skip

LEAVE = {
    "drain": (20, [["drain", "--checks", "3", "--timeout", "30"], ["stop"]]),
    "delay": (4, [["stop", "--delay", "2"]]),
}
"""How often, and by which commands, a server is taken out of service and ended."""


class Balancer:
    """HAProxy before the servers ``a`` and ``b``."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.port, *ports = free_ports(3)
        self.ports = dict(zip("ab", ports))
        self._stats = directory / "stats.sock"
        config = directory / "haproxy.cfg"
        text = EXAMPLE.read_text().replace("defaults\n", DEFAULTS.lstrip(), 1).replace("inter 1s", "inter 50ms")
        for theirs, ours in (("8080", self.port), ("8000", self.ports["a"]), ("8001", self.ports["b"])):
            text = text.replace(f"127.0.0.1:{theirs}", f"127.0.0.1:{ours}")
        config.write_text(f"global\n    stats socket {self._stats}\n\n{text}")
        self.process = subprocess.Popen(["haproxy", "-db", "-f", str(config)])
        until(self._stats.exists, "HAProxy")

    def state(self, name: str) -> str:
        """What it takes a server for: UP, DOWN, or in between, such as ``UP 1/3``."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(str(self._stats))
            sock.sendall(b"show stat shop 4 -1\n")
            rows = [line.split(",") for line in read_all(sock).decode().splitlines() if "," in line]
        return next(row[rows[0].index("status")] for row in rows if row[1] == name)


class Clients:
    """Requests one after the other, until the end of the block."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._stopping = threading.Event()
        self.answered = 0
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._run, name="client") for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_for_answers(self) -> None:
        """Until each of them has got another one."""
        answered = self.answered + CLIENTS
        until(lambda: self.answered > answered, "answers")

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self) -> None:
        while not self._stopping.wait(PAUSE):
            try:
                answer = get(self._address, "/")
            except OSError as error:
                self.errors.append(repr(error))
            else:
                self.answered += 1
                if answer != (200, b"hello"):
                    self.errors.append(repr(answer))


@pytest.fixture
def balancer(short_path: pathlib.Path) -> Iterator[Balancer]:
    balancer = Balancer(short_path)
    yield balancer
    balancer.process.terminate()
    balancer.process.wait(TIMEOUT)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", LEAVE)
def test_clients_of_a_load_balancer_see_no_error_while_its_servers_are_replaced_in_turn(
    balancer: Balancer, way: str, serve: Serve, short_path: pathlib.Path
) -> None:
    def begin(name: str) -> Server:
        server = serve(command=STARTS[name](balancer.ports[name]), socket=short_path / f"{name}.sock", cwd=APPS)
        until(lambda: balancer.state(name) == "UP", f"{name} in service")
        return server

    rounds, commands = LEAVE[way]
    servers = {name: begin(name) for name in "ab"}
    with Clients(balancer.port) as clients:
        for turn in range(rounds):
            name = "ab"[turn % 2]
            for command in commands:
                done = run_cli(*command, "-s", servers[name].socket)
                assert done.returncode == 0, done.stderr
            servers[name].wait()
            clients.wait_for_answers()
            servers[name] = begin(name)
            assert clients.errors == [], turn
    assert clients.errors == []
    assert clients.answered > rounds
