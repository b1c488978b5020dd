"""WSGI middleware (PEP 3333) that counts requests, in flight and in total.

A request is in flight from the call of the app until the response's `close()`. There is no lock on the way: entries
of a dict come and go atomically under the GIL, and `next` of an `itertools.count` is atomic too.
"""

from __future__ import annotations

import itertools
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..system.native import threading

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the classes of durations, in seconds; the last class, without a bound, follows."""

METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
"""Methods that are counted by name (RFC 9110, RFC 5789); clients may send any word."""

OTHER = "other"
"""Stands for all other methods."""

MAX_STATUSES = 64
"""Status lines of one method that have a list of their own."""

_monotonic = time.monotonic


class InFlight(NamedTuple):
    """A request in flight: its number in this process, its age in seconds, its environ, and what answers it.

    `served_by` is the identifier of a real thread, or a greenlet of gevent's. The environ is the app's own, which goes
    on to change it. `request` is Flask's object for the request, None where there is none, or not yet.
    """

    number: int
    age: float
    environ: Environ
    served_by: Any
    request: Any = None


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


class DurationTable:
    """How long the requests took that have ended, by method and status line.

    For each there is a list: the sum in seconds, and the number of requests in each class of durations. Adding to an
    item of a list is atomic under the GIL: since Python 3.10 threads switch only at calls and at jumps backwards.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[Any]]] = {}

    def row(self, environ: Environ, status: str) -> list[Any]:
        """The list for a request; the rarer methods and status lines share one."""
        method = environ.get("REQUEST_METHOD")
        rows = self.rows.setdefault(method if type(method) is str and method in METHODS else OTHER, {})
        return rows.setdefault(status if len(rows) < MAX_STATUSES else status[:1], [0.0] + [0] * (len(BOUNDS) + 1))

    def read(self) -> dict[tuple[str, str], list[Any]]:
        """The lists by method and class of status; ``none`` for responses that had not begun."""
        found: dict[tuple[str, str], list[Any]] = {}
        # A copy of a dict is one step under the GIL; iterating over the dict itself is not.
        for method, rows in self.rows.copy().items():
            for status, row in rows.copy().items():
                kind = method, f"{status[0]}xx" if status[0].isdecimal() else "none"
                found[kind] = [a + b for a, b in zip(found[kind], row)] if kind in found else row.copy()
        return found


class RequestCounter:
    """WSGI middleware that knows the requests in flight, and how many there were.

    `on_first` is called with the environ of the first request, `on_done` after every request, if they are set.
    `shutdown`, if set, is offered to the app as ``environ["werkzeug.server.shutdown"]``.
    """

    def __init__(self, app: WSGIApp) -> None:
        self._app = app
        # By number: when it began, its environ, what answers it, Flask's request, the status line, the number, and
        # whether it has failed. A reference to the exchange would keep one alive that the server has forgotten.
        self._in_flight: dict[int, list[Any]] = {}
        self._serving: Callable[[], Any] = self._look_at_serving
        self._begun = _Counter()
        self._next = self._begun.up
        self._failed = _Counter()
        self.carried = 0, 0
        """The totals of the previous image."""
        self.on_first: Callable[[Environ], Any] | None = None
        self.on_done: Callable[[], Any] | None = None
        self.shutdown: Callable[[], Any] | None = None
        self._aborted = _Counter()
        self.is_abort: Callable[[BaseException | None], bool] | None = None
        """Whether the server itself has ended a request, by the exception with which the request ended."""
        self.durations: DurationTable | None = None
        self._rows: dict[str, dict[str, list[Any]]] | None = None

    def measure(self) -> None:
        """Keep the durations of requests, too, from now on."""
        self.durations = self.durations or DurationTable()
        self._rows = self.durations.rows

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # Another thread may set it to None at any time.
        if (on_first := self.on_first) is not None:
            on_first(environ)
        if self.shutdown is not None:
            environ["werkzeug.server.shutdown"] = self.shutdown
        # Of the class for a list, the body that takes no time of its own.
        exchange: _Response = _ListExchange()
        number = self._next()
        exchange.counter, exchange.server_start = self, start_response
        exchange.entry = self._in_flight[number] = [
            _monotonic(), environ, self._serving(), None, "", number, False
        ]  # fmt: skip
        try:
            body = self._app(environ, exchange.start_response)
        except BaseException:
            exchange.fail()
            exchange.end()
            raise
        exchange.body = body
        if type(body) is not list:
            exchange.__class__ = _SizedExchange if hasattr(body, "__len__") else _Exchange
            if _is_file(body, environ):
                return _end_with_file(body, exchange)
        return exchange

    @property
    def in_flight(self) -> int:
        """Requests whose response has not been closed."""
        return len(self._in_flight)

    def requests_in_flight(self) -> list[InFlight]:
        """The requests in flight, the oldest first."""
        # A copy of a dict is one step under the GIL; iterating over the dict itself is not.
        found, now = self._in_flight.copy(), time.monotonic()
        requests = [_in_flight(number, entry, now) for number, entry in found.items()]
        return sorted(requests, key=lambda request: -request.age)

    def oldest(self) -> InFlight | None:
        """The oldest request in flight."""
        found, now = self._in_flight.copy(), time.monotonic()
        if not found:
            return None
        number = min(found, key=lambda number: found[number][0])
        return _in_flight(number, found[number], now)

    def carry_on(self, begun: int, failed: int) -> None:
        """Continue the totals of the previous image."""
        self.carried = begun, failed
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

    def _look_at_serving(self) -> Any:
        """At the first request, when the program has imported gevent, if ever: choose what tells what answers it."""
        get_ident = threading.get_ident
        greenlets = sys.modules.get("greenlet") if "gevent" in sys.modules else None
        self._serving = get_ident if greenlets is None else _greenlet_or(get_ident, greenlets.getcurrent)
        return self._serving()


class _Response:
    """One request and its response: the app's `start_response`, and the server's iterable.

    For speed the counter sets the attributes, without an `__init__`, and replaces the class by the one that fits the
    body: each call and each object that is saved is a tenth of what counting costs.
    """

    __slots__ = ("body", "counter", "entry", "server_start")
    counter: RequestCounter
    entry: list[Any]
    server_start: StartResponse
    body: Any

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if status >= "5":
            self.fail()
        entry = self.entry
        entry[4] = status
        # Flask takes it out of the environ before the server iterates over the body.
        if "werkzeug.request" in (environ := entry[1]):
            entry[3] = environ["werkzeug.request"]
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
        if not self.entry[6]:
            self.entry[6] = True
            self.counter._failed.up()

    def end(self) -> None:
        counter = self.counter
        began, environ, _, _, status, number, failed = self.entry
        try:
            del counter._in_flight[number]
        except KeyError:
            return
        # Which has no `__del__`. Servers keep it for a while, and the request must not stay with it.
        self.__class__ = _EndedExchange
        self.entry = _ENDED
        if (rows := counter._rows) is not None:
            elapsed = _monotonic() - began
            try:
                row = rows[environ["REQUEST_METHOD"]][status]
            except (KeyError, TypeError):
                # The environ is the app's own, which may put anything there.
                # The server answers for an app that has failed.
                status = status or ("500" if failed else "none")
                row = counter.durations.row(environ, status)  # type: ignore[union-attr]
            row[0] += elapsed
            # Among requests as quick as these the search would show.
            row[1 if elapsed <= 0.001 else 1 + bisect_left(BOUNDS, elapsed)] += 1
        # Servers close in a `finally`, so this is what the request has ended with.
        if counter.is_abort is not None and counter.is_abort(sys.exc_info()[1]):
            counter._aborted.up()
        if (on_done := counter.on_done) is not None:
            on_done()


_ENDED: list[Any] = [0.0, {}, None, None, "", -1, True]
"""The entry of requests that have ended."""


class _EndedExchange(_Response):
    """Of a request that has ended; some servers close once more."""

    __slots__ = ()

    def end(self) -> None:
        """It has ended."""


class _Exchange(_Response):
    """Of a request in flight."""

    __slots__ = ()

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

    close = _Response.end


def _in_flight(number: int, entry: list[Any], now: float) -> InFlight:
    began, environ, serving, kept = entry[:4]
    request = environ.get("werkzeug.request")
    return InFlight(number, now - began, environ, serving, kept if request is None else request)


def _greenlet_or(get_ident: Callable[[], int], getcurrent: Callable[[], Any]) -> Callable[[], Any]:
    """A function for the current greenlet, or the identifier of the thread where that runs no greenlet but its own."""

    def serving() -> Any:
        greenlet = getcurrent()
        return get_ident() if greenlet.parent is None else greenlet

    return serving


def _is_file(body: Iterable[bytes], environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _end_with_file(body: Any, exchange: _Response) -> Iterable[bytes]:
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
