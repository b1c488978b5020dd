"""The ways of a scraper to the metrics of an app that has no route for it: over HTTP, and by a file."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click

from flask_ctl import ConfigurationError, ControlClient, ControlError, TimedOut, exposition

from .files import replace_file
from .settings import settings

Ask = Callable[[], dict[str, Any]]

MAX_SCRAPES = 8
"""Requests at once; further ones are closed."""

REQUEST_TIMEOUT = 10.0
"""Seconds for a client to send all of its request, and as many to read the answer."""

RETRY_INTERVAL = 2.0
"""Seconds between two looks for a server that does not run."""

WRITTEN = "flask_ctl_textfile_written_seconds"

NO_TEXT = (KeyError, TypeError, ValueError, AttributeError)
"""What prometheus_client raises for metrics that it can't show."""


class _Ended(BaseException):
    """SIGTERM or SIGINT has come."""


@contextlib.contextmanager
def _until_signal() -> Iterator[None]:
    """Leave the block at the first SIGTERM or SIGINT, whose end is in order."""

    def end(*_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise _Ended

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with contextlib.suppress(_Ended):
        yield


class _Complaints:
    """Says each problem once on stderr, and when it is over."""

    def __init__(self) -> None:
        self._last = ""
        self._quiet = settings().quiet
        # The instance that is found is not to be named at each scrape.
        settings().quiet = True

    def note(self, problem: str) -> None:
        if problem != self._last:
            self._last = problem
            if not self._quiet:
                click.echo(problem or "it answers again", err=True)


def serve(address: tuple[str, int], ask: Ask) -> None:
    """Answer scrapes of /metrics until a signal. Raises ConfigurationError if the address can't be used."""
    try:
        server = _Server(address, ask)
    except OSError as error:
        raise ConfigurationError(f"can't listen at {address[0]}:{address[1]}: {error.strerror or error}") from None
    with server, _until_signal():
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else host
        settings().say(f"serving http://{shown!s}:{port}/metrics")
        server.complaints = _Complaints()
        server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    complaints: _Complaints

    def __init__(self, address: tuple[str, int], ask: Ask) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.ask = ask
        self.room = threading.BoundedSemaphore(MAX_SCRAPES)
        super().__init__(address, _Scrape)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client has left."""


class _RequestReader(io.RawIOBase):
    """What a client sends. Raises TimeoutError once it has taken too long for all of it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + REQUEST_TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Zero would be a socket that does not block.
        self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
        return self._connection.recv_into(buffer)


class _Scrape(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "flask-ctl", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection))

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""

    def _answer(self, *, body: bool) -> None:
        status, text, kind = self._find()
        self.connection.settimeout(REQUEST_TIMEOUT)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Vary", "Accept")
        self.end_headers()
        if body:
            self.wfile.write(text)

    def _find(self) -> tuple[int, bytes, str]:
        plain = "text/plain; charset=utf-8"
        if self.path.partition("?")[0] != "/metrics":
            return HTTPStatus.NOT_FOUND, b"the metrics are at /metrics\n", plain
        try:
            families = self.server.ask()["families"]
            # Several lines of a header are one list.
            text, kind = exposition(families, ",".join(self.headers.get_all("Accept", [])))
        except ControlError as error:
            self.server.complaints.note(error.message)
            # Without its message, which names sockets and instances: every scraper can read the answer.
            return HTTPStatus.SERVICE_UNAVAILABLE, b"the server does not answer\n", plain
        except NO_TEXT as error:
            self.server.complaints.note(f"the metrics have no text: {error}")
            return HTTPStatus.INTERNAL_SERVER_ERROR, b"the metrics have no text\n", plain
        self.server.complaints.note("")
        return HTTPStatus.OK, text, kind


def keep_file(path: str, client: Callable[[], ControlClient], every: float) -> None:
    """Write the metrics into a file again and again until a signal; while nothing answers there is no file.

    Raises ConfigurationError if no file can be written there at the beginning.
    """
    complaints = _Complaints()
    file = _TextFile(path)
    try:
        with _until_signal():
            while True:
                try:
                    with client() as asked:
                        file.write(_text(asked.metrics()))
                        complaints.note("")
                        _wait_for_end(asked, every)
                except OSError as error:
                    complaints.note(f"can't write {path}: {error.strerror or error}")
                except ControlError as error:
                    complaints.note(error.message)
                except NO_TEXT as error:
                    complaints.note(f"the metrics have no text: {error}")
                else:
                    continue
                file.remove()
                time.sleep(min(every, RETRY_INTERVAL))
    finally:
        file.remove()


def _wait_for_end(client: ControlClient, seconds: float) -> None:
    """Wait so long. Raises ControlError if the server ends before."""
    with contextlib.suppress(TimedOut):
        client.wait("gone", timeout=seconds)
        raise ControlError("the server has ended")


def _text(result: dict[str, Any]) -> bytes:
    written = {
        "name": WRITTEN, "type": "gauge", "unit": "seconds", "help": "When this file was written, Unix time.",
        "samples": [[WRITTEN, {}, time.time()]],
    }  # fmt: skip
    return exposition([*result["families"], written])[0]


class _TextFile:
    """The file for the textfile collector."""

    def __init__(self, path: str) -> None:
        """Raises ConfigurationError if there can be no file."""
        self._path = pathlib.Path(path)
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise ConfigurationError(f"can't write {path}: no file can be made in its directory")
        if self._path.exists() and not self._path.is_file():
            raise ConfigurationError(f"can't write {path}: it is no regular file")
        left = self._content()
        # An exporter that was killed has left it.
        self._written = {left} if WRITTEN.encode() in left else set()

    def write(self, text: bytes) -> None:
        # Before: a signal may come at any moment.
        self._written.add(text)
        replace_file(str(self._path), text)
        self._written = {text}

    def remove(self) -> None:
        """Remove it, unless it is another program's."""
        if self._content() in self._written:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes() if self._path.is_file() else b""
        except OSError:
            return b""
