"""WSGI middleware (PEP 3333) that counts requests, in flight and in total.

A request is in flight from the call of the app until the response's `close()`. There is no lock on the way: entries
of a dict come and go atomically under the GIL, and `next` of an `itertools.count` is atomic too.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..system.native import threading

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class _Counter:
    """Counts up without a lock. Reading, which is rare, takes a lock and uses up a number, which it subtracts again."""

    __slots__ = ("_before", "_lock", "_reads", "up")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads = 0
        self._before = 0
        self.up = itertools.count().__next__

    def carry_on(self, before: int) -> None:
        """Add what another counter has counted."""
        self._before = before

    def read(self) -> int:
        with self._lock:
            self._reads += 1
            return self._before + self.up() - self._reads + 1


class RequestCounter:
    """WSGI middleware that knows how many requests are in flight, how old the oldest is, and how many there were.

    `on_first` is called with the environ of the first request, `on_done` after every request, if they are set.
    `shutdown`, if set, is offered to the app as ``environ["werkzeug.server.shutdown"]``.
    """

    def __init__(self, app: WSGIApp) -> None:
        self._app = app
        self._in_flight: dict[int, float] = {}
        self._begun = _Counter()
        self._failed = _Counter()
        self.on_first: Callable[[Environ], Any] | None = None
        self.on_done: Callable[[], Any] | None = None
        self.shutdown: Callable[[], Any] | None = None
        self._aborted = _Counter()
        self.is_abort: Callable[[BaseException | None], bool] | None = None
        """Whether the server itself has ended a request, by the exception with which the request ended."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # Another thread may set it to None at any time.
        if (on_first := self.on_first) is not None:
            on_first(environ)
        if self.shutdown is not None:
            environ["werkzeug.server.shutdown"] = self.shutdown
        exchange = _Exchange()
        exchange.counter, exchange.server_start, exchange.failed = self, start_response, False
        exchange.token = token = self._begun.up()
        self._in_flight[token] = time.monotonic()
        try:
            body = self._app(environ, exchange.start_response)
        except BaseException:
            exchange.fail()
            exchange.end()
            raise
        exchange.body = body
        if type(body) is list:
            exchange.__class__ = _ListExchange
        elif _is_file(body, environ):
            return _end_with_file(body, exchange)
        elif hasattr(body, "__len__"):
            exchange.__class__ = _SizedExchange
        return exchange

    @property
    def in_flight(self) -> int:
        """Requests whose response has not been closed."""
        return len(self._in_flight)

    def oldest(self) -> float | None:
        """Age in seconds of the oldest request in flight, None without one."""
        # list() of a dict's values is one step under the GIL; iterating over the dict itself is not.
        began = list(self._in_flight.values())
        return time.monotonic() - min(began) if began else None

    def carry_on(self, begun: int, failed: int) -> None:
        """Continue the totals of the previous image."""
        self._begun.carry_on(begun)
        self._failed.carry_on(failed)

    def totals(self) -> tuple[int, int]:
        """Requests begun, and those of them that ended with a status of 500 or more, or with an exception."""
        # The failed ones first: there are never more of them than were begun.
        failed = self._failed.read()
        return self._begun.read(), failed

    def aborted(self) -> int:
        """Requests that the server itself has ended before they were answered."""
        return self._aborted.read()


class _Exchange:
    """One request and its response: the app's `start_response`, and the server's iterable.

    For speed the counter sets the attributes, without an `__init__`, and replaces the class by the one that fits the
    body: each call and each object that is saved is a tenth of what counting costs.
    """

    __slots__ = ("body", "counter", "failed", "server_start", "token")
    counter: RequestCounter
    token: int
    server_start: StartResponse
    failed: bool
    body: Any

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if status >= "5":
            self.fail()
        if exc_info is None:
            return self.server_start(status, headers)
        return self.server_start(status, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        try:
            # Not `yield from`, which closes the iterator, as close() does, if the server breaks off.
            for chunk in self.body:  # noqa: UP028
                yield chunk
        except Exception:
            self.fail()
            raise

    def close(self) -> None:
        try:
            if hasattr(self.body, "close"):
                self.body.close()
        except BaseException:
            self.fail()
            raise
        finally:
            self.end()

    def fail(self) -> None:
        if not self.failed:
            self.failed = True
            self.counter._failed.up()

    def end(self) -> None:
        counter = self.counter
        if counter._in_flight.pop(self.token, None) is None:
            return
        # Servers close in a `finally`, so this is what the request has ended with.
        if counter.is_abort is not None and counter.is_abort(sys.exc_info()[1]):
            counter._aborted.up()
        if (on_done := counter.on_done) is not None:
            on_done()

    def __del__(self) -> None:
        # Werkzeug, for one, does not call close() if the client has gone.
        self.end()


class _SizedExchange(_Exchange):
    """With a body whose length the server may ask, to find out whether it is all there (PEP 3333, Content-Length)."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.body)


class _ListExchange(_SizedExchange):
    """With a list: iterating over it can't fail, and there is nothing to close."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)

    close = _Exchange.end


def _is_file(body: Iterable[bytes], environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _end_with_file(body: Any, exchange: _Exchange) -> Iterable[bytes]:
    """The server's own file object, which it sends in its own way only if it gets that very object."""
    close = getattr(body, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                close()
        except BaseException:
            exchange.fail()
            raise
        finally:
            exchange.end()

    try:
        body.close = close_and_end
    except AttributeError:
        return exchange
    return body  # type: ignore[no-any-return]
