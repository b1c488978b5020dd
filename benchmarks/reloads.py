"""The slowest request while gunicorn is reloaded: through us, and by a plain HUP, by turns on the same server."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

from benchmarks.measuring import Figure, compare
from benchmarks.running import gunicorn_server, scratch_directory, workers_of
from flask_ctl import ControlClient

CLIENTS = 3
WORKERS = 2
KINDS = {"": ["-k", "sync"], ", keep-alive": ["-k", "gthread", "--threads", "4"]}


def reloads(rounds: int) -> list[Figure]:
    """A reload under load, with and without kept connections."""
    return [_compare(name, options, rounds) for name, options in KINDS.items()]


def _compare(name: str, options: list[str], rounds: int) -> Figure:
    with scratch_directory() as scratch:
        address = str(scratch / "app.sock")
        server = gunicorn_server(scratch, f"controlled_app({address!r})", WORKERS, *options)
        with server, ControlClient(address) as client:
            server.wait_until(lambda: workers_of(client, WORKERS))
            with contextlib.closing(_Load(_listener(client), keep=bool(name))) as load:
                compared = compare(
                    rounds,
                    lambda: load.slowest_during(client.reload),
                    lambda: load.slowest_during(lambda: _hang_up(server.pid, client)),
                )
    what = f"gunicorn reload{name}: slowest request ({load.answered} requests, {load.lost} lost)"
    return Figure.ratio(what, "plain HUP", compared)


class _Load:
    """Clients that ask again and again, and how long the slowest of them has waited."""

    def __init__(self, address: tuple[str, int], keep: bool) -> None:
        self.answered = 0
        self.lost = 0
        self._address, self._keep = address, keep
        self._slowest = 0.0
        self._over = False
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def slowest_during(self, action: Callable[[], object]) -> float:
        self._slowest = 0.0
        action()
        return self._slowest

    def close(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over:
            began = time.monotonic()
            with contextlib.closing(HTTPConnection(*self._address, timeout=60)) as connection:
                asked = 0
                try:
                    connection.connect()
                    while not self._over and connection.sock is not None:
                        began = began if not asked else time.monotonic()
                        self._ask(connection)
                        self._slowest = max(self._slowest, time.monotonic() - began)
                        asked += 1
                except (OSError, HTTPException):
                    self.lost += 1

    def _ask(self, connection: HTTPConnection) -> None:
        connection.request("GET", "/", headers={} if self._keep else {"Connection": "close"})
        connection.getresponse().read()
        self.answered += 1


def _listener(client: ControlClient) -> tuple[str, int]:
    host, _, port = client.status()["server"]["listeners"][0].removeprefix("http://").partition(":")
    return host, int(port)


def _hang_up(master: int, client: ControlClient) -> None:
    """HUP, until other workers serve."""
    before = {worker["pid"] for worker in client.status()["workers"]}
    os.kill(master, signal.SIGHUP)
    while True:
        now = {worker["pid"] for worker in client.status()["workers"]}
        if len(now) == WORKERS and not now & before:
            return
        time.sleep(0.02)
