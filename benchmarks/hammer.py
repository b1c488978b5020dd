"""Reloads an app again and again under load, and counts what was lost: ``make hammer``.

Clients ask with and without bodies, a connection each, while the program is edited and reloaded; a tenth of the edits
is broken. A lost request is any that is not answered whole, or by code that was not serving while it was asked.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from flask_ctl import ControlClient, NotRunning, ReloadFailed

PROGRAM = """
import os
from flask import Flask, request
from flask_ctl import Control
app = Flask("hammered")
Control(app)
VERSION = {version}
@app.get("/")
def index():
    return str(VERSION)
@app.post("/")
def post():
    return f"{{VERSION}} {{len(request.get_data())}}"
{code}
if __name__ == "__main__":
    import logging
    logging.getLogger("werkzeug").disabled = True
    app.run(port=0)
"""

BODY = b"x" * 4096


@dataclass
class Tally:
    """What one client saw."""

    answered: int = 0
    slowest: float = 0.0
    lost: list[str] = field(default_factory=list)


class Server:
    """The program under the hammer."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.file = directory / "app.py"
        self.socket = str(directory / "app.sock")
        self.serving = [1]
        self.edit(1)
        self._log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=directory,
            env={"FLASK_CTL_SOCKET": self.socket, "PATH": "/usr/bin:/bin"},
            stdout=self._log,
            stderr=self._log,
        )

    def edit(self, version: int, code: str = "") -> None:
        self.file.write_text(PROGRAM.format(version=version, code=code))

    def address(self) -> tuple[str, int]:
        while True:
            with contextlib.suppress(NotRunning), ControlClient(self.socket) as client:
                host, _, port = client.status()["server"]["listeners"][0].removeprefix("http://").partition(":")
                return host, int(port)
            time.sleep(0.01)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


def ask(address: tuple[str, int], with_body: bool) -> int:
    """The version that answered. Raises OSError or ValueError for anything but a whole answer."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    request = head + BODY if with_body else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(address, timeout=60) as sock:
        sock.sendall(request)
        pieces = []
        while piece := sock.recv(65536):
            pieces.append(piece)
    status, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    if not status.startswith(b"HTTP/1.1 200") or not body or (with_body and not body.endswith(b" %d" % len(BODY))):
        raise ValueError(f"answered {status[:80]!r} {body[:80]!r}")
    return int(body.split()[0])


def load(server: Server, address: tuple[str, int], with_body: bool, stop: threading.Event, tally: Tally) -> None:
    """Ask until told to stop."""
    while not stop.is_set():
        before, began = server.serving[-1], time.monotonic()
        try:
            version = ask(address, with_body)
        except (OSError, ValueError) as error:
            tally.lost.append(str(error))
            continue
        tally.answered += 1
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        # The next one may serve before the reload has been answered.
        if not before <= version <= server.serving[-1] + 1:
            tally.lost.append(f"version {version} answered while {before} to {server.serving[-1]} served")


@contextlib.contextmanager
def loaded(server: Server, clients: int) -> Iterator[list[Tally]]:
    """Clients that ask meanwhile, every other one with a body."""
    address, stop, tallies = server.address(), threading.Event(), [Tally() for _ in range(clients)]
    threads = [
        threading.Thread(target=load, args=(server, address, number % 2 == 1, stop, tally))
        for number, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    try:
        yield tallies
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def reload(server: Server, version: int, broken: bool) -> float:
    """Seconds that a reload took; a broken one has to be refused."""
    server.edit(version, "1 / 0" if broken else "")
    with ControlClient(server.socket) as client:
        try:
            elapsed = float(client.reload()["elapsed"])
        except ReloadFailed:
            assert broken, "a good reload was refused"
            return 0.0
    assert not broken, "a broken reload was accepted"
    server.serving.append(version)
    return elapsed


def import_time(server: Server) -> float:
    """Seconds to start the interpreter and import the app, median of five."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import app"], cwd=server.file.parent, check=True)
        times.append(time.monotonic() - began)
    return statistics.median(times)


def counts(pid: int) -> str:
    process = psutil.Process(pid)
    return f"{process.num_fds()} descriptors, {process.num_threads()} threads, {process.memory_info().rss >> 20} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--requests", type=int, default=200_000, help="go on asking until there were so many")
    parser.add_argument("--clients", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hammer-") as directory:
        server = Server(pathlib.Path(directory))
        try:
            return hammer(server, options.reloads, options.requests, options.clients)
        finally:
            server.close()


def hammer(server: Server, reloads: int, requests: int, clients: int) -> int:
    """The exit code: 0 if nothing was lost."""
    elapsed, early = [], ""
    with loaded(server, clients) as tallies:
        for number in range(2, reloads + 2):
            elapsed.append(reload(server, number, broken=number % 10 == 0))
            early = counts(server.process.pid) if number == 6 else early
            if sys.stdout.isatty():
                print(
                    f"\r{number - 1} reloads, {sum(tally.answered for tally in tallies)} requests", end="", flush=True
                )
        while sum(tally.answered for tally in tallies) < requests and not any(tally.lost for tally in tallies):
            time.sleep(0.1)
    lost = [problem for tally in tallies for problem in tally.lost]
    good = [seconds for seconds in elapsed if seconds]
    print(f"\nreloads           {len(good)} good, {len(elapsed) - len(good)} broken and refused")
    print(f"requests          {sum(tally.answered for tally in tallies)} answered, {len(lost)} lost")
    slowest = max(tally.slowest for tally in tallies)
    print(f"slowest request   {slowest:.3f} s; the app's import takes {import_time(server):.3f} s")
    print(f"reload            median {statistics.median(good):.3f} s, slowest {max(good):.3f} s")
    print(f"after 5 reloads   {early}\nafter {len(elapsed):<11} {counts(server.process.pid)}")
    for problem in lost[:10]:
        print(f"lost: {problem}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
