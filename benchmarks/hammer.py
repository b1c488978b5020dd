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
import logging
from flask import Flask, request
from flask_ctl import Control
app = Flask("hammered")
control = Control(app)
logging.getLogger("werkzeug").disabled = True
VERSION = {version}
@app.get("/")
def index():
    return str(VERSION)
@app.post("/")
def post():
    return f"{{VERSION}} {{len(request.get_data())}}"
{code}
"""

SETTINGS: dict[str, dict[str, str]] = {
    "werkzeug": {},
    "waitress": {},
    "cheroot": {},
    "pywsgi": {},
    "gunicorn": {"WEB_CONCURRENCY": "2"},
    "uwsgi": {"UWSGI_PROCESSES": "2"},
    # It ends an old worker so many seconds after it has started a new one, ready or not.
    "granian": {"GRANIAN_WORKERS": "2", "GRANIAN_BLOCKING_THREADS": "8", "GRANIAN_RESPAWN_INTERVAL": "1.5"},
}
"""What each server finds in its environment; those that have workers have two."""

BODY = b"x" * 4096


@dataclass
class Tally:
    """What one client saw."""

    answered: int = 0
    slowest: float = 0.0
    lost: list[str] = field(default_factory=list)


class Server:
    """The program under the hammer."""

    def __init__(self, directory: pathlib.Path, server: str) -> None:
        self.file = directory / "app.py"
        self.socket = str(directory / "app.sock")
        self.serving = [1]
        self.edit(1)
        self._log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flask_ctl_cli", "run", "--server", server, "--app", "app", "--port", _free_port()],
            cwd=directory,
            env={"FLASK_CTL_SOCKET": self.socket, "PATH": "/usr/bin:/bin", **SETTINGS[server]},
            stdout=self._log,
            stderr=self._log,
        )

    def edit(self, version: int, code: str = "") -> None:
        self.file.write_text(PROGRAM.format(version=version, code=code))

    def address(self) -> tuple[str, int]:
        while True:
            with contextlib.suppress(NotRunning), ControlClient(self.socket) as client:
                for url in client.status()["server"]["listeners"]:
                    host, _, port = url.removeprefix("http://").partition(":")
                    return host, int(port)
            time.sleep(0.01)

    def close(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        self.process.kill()
        self.process.wait()
        self._log.close()


def ask(address: tuple[str, int], with_body: bool) -> int:
    """The version that answered. Raises OSError or ValueError for anything but a whole answer."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    request = head + BODY if with_body else b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
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
        # The next one may serve before the reload has been answered, and one between them may be broken.
        if not before <= version <= server.serving[-1] + 2:
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


def counts(server: Server) -> str:
    """What the server, its workers and its hub have open."""
    with ControlClient(server.socket) as client:
        status = client.status()
    pids = [status["pid"], *(worker["pid"] for worker in status["workers"])]
    processes = [psutil.Process(pid) for pid in [*pids, *filter(None, [status["control"].get("hub")])]]
    descriptors, threads = sum(p.num_fds() for p in processes), sum(p.num_threads() for p in processes)
    memory = sum(p.memory_info().rss for p in processes) >> 20
    return f"{descriptors} descriptors, {threads} threads, {memory} MiB in {len(processes)} processes"


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000, help="go on asking until there were so many")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--server", choices=SETTINGS, action="append", help="all of them if not given")
    options = parser.parse_args()
    failed = False
    for name in options.server or SETTINGS:
        print(f"\n{name}")
        with tempfile.TemporaryDirectory(prefix="hammer-") as directory:
            server = Server(pathlib.Path(directory), name)
            try:
                failed |= not hammer(server, options.reloads, options.requests, options.clients)
            finally:
                server.close()
    return int(failed)


def hammer(server: Server, reloads: int, requests: int, clients: int) -> bool:
    """Whether nothing was lost."""
    elapsed, early = [], ""
    with loaded(server, clients) as tallies:
        for number in range(2, reloads + 2):
            elapsed.append(reload(server, number, broken=number % 10 == 0))
            early = counts(server) if number == 6 else early
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
    print(f"after 5 reloads   {early}\nafter {len(elapsed):<11} {counts(server)}")
    for problem in lost[:10]:
        print(f"lost: {problem}")
    return not lost


if __name__ == "__main__":
    sys.exit(main())
