"""WSGI middleware for tests: which requests a server has answered, which it still does, and what failed in them."""

from __future__ import annotations

import collections
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flask import Flask, got_request_exception, request

from ..servers.middleware import Environ, StartResponse, WSGIApp

MAX_REQUESTS = 10_000
"""Requests of one test that are kept; the oldest are forgotten."""

MAX_EXCEPTIONS = 100
"""Exceptions that are kept until somebody looks at them."""

POLL = 0.05
"""Seconds between two looks at the connections of requests that are waited for."""

KEY = "flask_ctl.testing"
"""In the environ of a request: its ServedRequest."""


@dataclass(eq=False)
class ServedRequest:
    """A request that the server has got; `owner` is the test that ran at its beginning."""

    method: str
    path: str
    query: str
    owner: Any
    thread: int
    began: float
    ended: float | None = None
    status: int | None = None
    """None as long as the answer has not begun."""
    failed: bool = False
    """Whether an exception of it has been noted."""
    told: bool = False
    """Whether its test has failed for it."""
    connection: Any = None
    """The socket of a request that has not ended, where the server tells it."""

    @property
    def duration(self) -> float:
        """Seconds until the end of the answer, or until now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    def __str__(self) -> str:
        return f"{self.method} {self.path}, for {self.duration:.1f} s"

    def stack(self) -> str:
        """The stack below the server of the thread that answers it; empty if that has just ended."""
        frame = sys._current_frames().get(self.thread)
        frames = traceback.extract_stack(frame) if frame is not None else []
        ours = [number for number, summary in enumerate(frames) if summary.filename == __file__]
        return "".join(traceback.format_list(frames[ours[-1] + 1 if ours else 0 :]))


class Recorder:
    """Wraps a WSGI app; the requests of Flask's test client do not pass here. Any thread may call any method."""

    def __init__(self, app: Flask) -> None:
        self.owner: Any = None
        self.wsgi_app: WSGIApp = app
        self._requests: collections.deque[ServedRequest] = collections.deque(maxlen=MAX_REQUESTS)
        self._running: list[ServedRequest] = []
        self._exceptions: collections.deque[tuple[Any, Exception]] = collections.deque(maxlen=MAX_EXCEPTIONS)
        self._changed = threading.Condition()
        self._open = threading.Event()
        self._open.set()
        got_request_exception.connect(self._note_of_flask, app)

    def requests(self) -> list[ServedRequest]:
        """The requests since `forget`, in the order of their beginnings."""
        with self._changed:
            return list(self._requests)

    def forget(self) -> None:
        with self._changed:
            self._requests.clear()

    def wait(self, owner: Any, timeout: float) -> list[ServedRequest]:
        """The requests that `owner` began and that have not been answered after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while (left := self._left(owner)) and (seconds := deadline - time.monotonic()) > 0:
                # Nobody tells of a connection that has been closed.
                self._changed.wait(min(seconds, POLL))
            return left

    def take_exceptions(self, owner: Any) -> list[Exception]:
        """What requests that `owner` began have raised and nobody has handled, once."""
        with self._changed:
            taken = [error for whose, error in self._exceptions if whose == owner]
            left = [entry for entry in self._exceptions if entry[0] != owner]
            self._exceptions.clear()
            self._exceptions.extend(left)
            return taken

    def hold(self) -> None:
        """From now on requests wait before they get to the app."""
        self._open.clear()

    def release(self) -> None:
        """Let them go on."""
        self._open.set()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        asked = ServedRequest(
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO", ""),
            environ.get("QUERY_STRING", ""),
            self.owner,
            threading.get_ident(),
            time.monotonic(),
            connection=environ.get("werkzeug.socket"),
        )
        environ[KEY] = asked
        with self._changed:
            self._requests.append(asked)
            self._running.append(asked)
        self._open.wait()

        def start(status: str, headers: Any, *rest: Any) -> Any:
            asked.status = int(status[:3])
            return start_response(status, headers, *rest)

        try:
            body = self.wsgi_app(environ, start)
        except BaseException as error:
            # The server makes an answer of it. If it came from a view, Flask has sent its signal.
            asked.status = 500
            if isinstance(error, Exception) and not asked.failed:
                self._note(asked, error)
            self._end(asked)
            raise
        return _Answer(body, lambda: self._end(asked), lambda error: self._note(asked, error))

    def _left(self, owner: Any) -> list[ServedRequest]:
        for asked in list(self._running):
            # Werkzeug does not call close() if the client has gone, and a traceback may keep the answer alive.
            if asked.connection is not None and asked.connection.fileno() == -1:
                self._end(asked)
        return [asked for asked in self._running if asked.owner == owner and not asked.told]

    def _end(self, asked: ServedRequest) -> None:
        with self._changed:
            if asked in self._running:
                asked.ended, asked.connection = time.monotonic(), None
                self._running.remove(asked)
                self._changed.notify_all()

    def _note(self, asked: ServedRequest, error: Exception) -> None:
        with self._changed:
            asked.failed = True
            self._exceptions.append((asked.owner, error))

    def _note_of_flask(self, _app: Flask, exception: Exception, **_: Any) -> None:
        asked = request.environ.get(KEY)
        if asked is not None:
            self._note(asked, exception)


class _Answer:
    """The body of an answer; the server calls `close` at its end, whatever has happened (PEP 3333)."""

    def __init__(self, body: Iterable[bytes], done: Callable[[], Any], failed: Callable[[Exception], Any]) -> None:
        self._done = done
        self._failed = failed
        self._body = body
        self._pieces = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            raise
        except Exception as error:
            self._failed(error)
            # The traceback, which the test keeps, has this object: `__del__` would come late.
            self._done()
            raise

    def __del__(self) -> None:
        # Werkzeug does not call close() if the client has gone.
        self._done()

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._done()
