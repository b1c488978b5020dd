"""Requests are counted, and nothing else changes for the app or the server (PEP 3333)."""

from __future__ import annotations

import gc
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from werkzeug.wsgi import ClosingIterator

from flask_ctl.servers.middleware import BOUNDS, MAX_STATUSES, Environ, RequestCounter, StartResponse, WSGIApp

HEADERS = [("Content-Type", "text/plain")]


def environ(**more: Any) -> dict[str, Any]:
    values = {"QUERY_STRING": "", **more}
    setup_testing_defaults(values)
    return values


class Response:
    """What a server has of one response."""

    def __init__(self, app: WSGIApp, **more: Any) -> None:
        self.status = ""
        self.chunks: list[bytes] = []
        self.body: Any = app(environ(**more), self._start)

    def _start(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        assert exc_info or not self.status
        self.status = status
        return self.chunks.append

    def read(self) -> bytes:
        """All of it; then it is closed, whatever happened."""
        try:
            self.chunks += self.body
        finally:
            self.close()
        return b"".join(self.chunks)

    def close(self) -> None:
        if hasattr(self.body, "close"):
            self.body.close()


class Body:
    """An iterator that counts how often it is closed, as Werkzeug's are."""

    def __init__(self, *chunks: bytes, fail: bool = False) -> None:
        self._chunks = iter(chunks)
        self._fail = fail
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self.closed += 1
        if self._fail:
            raise OSError("can't close")


def answers(body: Iterable[bytes], status: str = "200 OK") -> WSGIApp:
    """An app that answers with `body`."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, HEADERS)
        return body

    return app


def a_list(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", HEADERS)
    return [b"one", b"two"]


def no_body(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("204 No Content", [])
    return []


def a_generator(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", HEADERS)
    yield b"one"
    yield b"two"


def a_writer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", HEADERS)
    write(b"one")
    write(b"two")
    return []


def a_restart(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", HEADERS)
    try:
        raise ValueError("too late")
    except ValueError:
        start_response("500 Internal Server Error", HEADERS, sys.exc_info())
    return [b"sorry"]


APPS = {
    "a list": (a_list, "200 OK", b"onetwo"),
    "no body": (no_body, "204 No Content", b""),
    "a generator": (a_generator, "200 OK", b"onetwo"),
    "write()": (a_writer, "200 OK", b"onetwo"),
    "exc_info": (a_restart, "500 Internal Server Error", b"sorry"),
}


@pytest.mark.parametrize(("app", "status", "text"), APPS.values(), ids=APPS)
@pytest.mark.parametrize("inside", [True, False], ids=["validated inside", "as it is"])
@pytest.mark.parametrize("around", [True, False], ids=["validated around", "by itself"])
def test_neither_the_app_nor_the_server_notices(
    app: WSGIApp, status: str, text: bytes, inside: bool, around: bool
) -> None:
    counter = RequestCounter(validator(app) if inside else app)
    response = Response(validator(counter) if around else counter)
    assert response.read() == text
    assert response.status == status
    assert (counter.in_flight, counter.totals()[0]) == (0, 1)


@pytest.mark.parametrize(
    ("body", "length"),
    [([], 0), ([b"one"], 1), ((b"one", b"two"), 2)],
    ids=["empty", "a list of one", "a tuple"],
)
def test_a_sized_body_keeps_its_length(body: Any, length: int) -> None:
    """Servers set Content-Length for a body of one piece."""
    response = Response(RequestCounter(answers(body)))
    assert len(response.body) == length
    assert list(response.body) == list(body)
    response.close()


def test_a_body_without_a_length_gets_none() -> None:
    response = Response(RequestCounter(a_generator))
    assert not hasattr(response.body, "__len__")
    response.close()


# In flight


def test_a_request_is_in_flight_until_its_response_is_closed() -> None:
    counter = RequestCounter(a_list)
    assert (counter.in_flight, counter.totals()) == (0, (0, 0))
    response = Response(counter)
    assert (counter.in_flight, counter.totals()) == (1, (1, 0))
    assert list(response.body) == [b"one", b"two"]
    assert counter.in_flight == 1
    response.close()
    assert (counter.in_flight, counter.totals()) == (0, (1, 0))


def test_a_request_is_in_flight_while_the_app_is_called() -> None:
    seen = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(counter.in_flight)
        return a_list(environ, start_response)

    counter = RequestCounter(app)
    Response(counter).read()
    assert seen == [1]


def test_the_oldest_is_the_age_of_the_oldest_in_flight() -> None:
    counter = RequestCounter(a_list)

    def age() -> float:
        oldest = counter.oldest()
        assert oldest is not None
        return oldest.age

    assert counter.oldest() is None
    first = Response(counter)
    between = time.monotonic()
    second = Response(counter)
    since = time.monotonic() - between
    assert age() >= since
    assert [request.number for request in counter.requests_in_flight()] == [0, 1]
    first.close()
    assert 0 < age() <= time.monotonic() - between
    second.close()
    assert counter.oldest() is None


def test_reading_the_totals_does_not_change_them() -> None:
    counter = RequestCounter(a_list)
    for number in range(5):
        assert [counter.totals() for _ in range(3)] == [(number, 0)] * 3
        Response(counter).read()


def test_requests_of_many_threads_add_up_exactly() -> None:
    threads, requests = 8, 2000
    counter = RequestCounter(
        lambda environ, start_response: APPS_BY_PATH[environ["PATH_INFO"]](environ, start_response)
    )
    counter.measure()
    assert counter.durations is not None
    # Threads switch as often as they can.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    done: list[None] = []
    counter.on_done = lambda: done.append(None)
    barrier = threading.Barrier(threads + 1)
    over = threading.Event()

    def work() -> None:
        barrier.wait()
        for number in range(requests):
            Response(counter, PATH_INFO="/error" if number % 10 == 0 else "/").read()

    def watch() -> None:
        barrier.wait()
        while not over.is_set():
            begun, failed = counter.totals()
            assert failed <= begun
            assert 0 <= counter.in_flight <= threads
            counter.oldest()
            assert len(counter.requests_in_flight()) <= threads

    workers = [threading.Thread(target=work) for _ in range(threads)]
    watcher = threading.Thread(target=watch)
    for thread in [*workers, watcher]:
        thread.start()
    for thread in workers:
        thread.join()
    over.set()
    watcher.join()
    sys.setswitchinterval(interval)
    assert counts(counter) == {
        ("GET", "2xx"): threads * requests * 9 // 10,
        ("GET", "5xx"): threads * requests // 10,
    }
    assert counter.totals() == (threads * requests, threads * requests // 10)
    assert (counter.in_flight, len(done)) == (0, threads * requests)


APPS_BY_PATH = {"/": a_list, "/error": a_restart}


# Durations


def counts(counter: RequestCounter) -> dict[tuple[str, str], int]:
    """The requests that have ended, by method and class of status."""
    assert counter.durations is not None
    return {kind: sum(row[1:]) for kind, row in counter.durations.read().items()}


def test_requests_are_counted_by_method_and_class_of_status() -> None:
    statuses = iter(["200 OK", "201 Created", "404 Not Found", "200 OK", "503 No", "100 % strange", "odd"])
    counter = RequestCounter(lambda environ, start_response: answers([], next(statuses))(environ, start_response))
    counter.measure()
    for method in ["GET", "GET", "GET", "PUT", "PUT", "BREW", "BREW"]:
        Response(counter, REQUEST_METHOD=method).read()
    assert counts(counter) == {
        ("GET", "2xx"): 2, ("GET", "4xx"): 1, ("PUT", "2xx"): 1, ("PUT", "5xx"): 1, ("other", "1xx"): 1,
        ("other", "none"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("method", [None, ["GET"], 7], ids=str)
def test_a_method_that_the_app_has_spoiled_is_counted_as_another(method: Any) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["REQUEST_METHOD"] = method
        return a_list(environ, start_response)

    counter = RequestCounter(app)
    counter.measure()
    Response(counter).read()
    assert counts(counter) == {("other", "2xx"): 1}


def test_status_lines_without_end_share_a_row_for_each_class() -> None:
    numbers = iter(range(1000))
    counter = RequestCounter(
        lambda environ, start_response: answers([], f"{200 + next(numbers) % 300} x{id(environ)}")(
            environ, start_response
        )
    )
    counter.measure()
    for _ in range(900):
        Response(counter).read()
    assert counter.durations is not None
    assert len(counter.durations.rows["GET"]) <= MAX_STATUSES + 3
    assert counts(counter) == {("GET", "2xx"): 300, ("GET", "3xx"): 300, ("GET", "4xx"): 300}


@pytest.mark.parametrize(
    ("elapsed", "number"),
    [(0.0, 1), (0.001, 1), (0.0011, 2), (0.0025, 2), (0.5, 9), (60.0, 15), (60.1, 16), (1e9, 16)],
)
def test_a_duration_counts_in_the_class_whose_bound_it_does_not_exceed(
    elapsed: float, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, elapsed])
    monkeypatch.setattr("flask_ctl.servers.middleware._monotonic", lambda: next(clock))
    counter = RequestCounter(a_list)
    counter.measure()
    Response(counter).read()
    assert counter.durations is not None
    row = counter.durations.read()["GET", "2xx"]
    assert row == [elapsed, *(int(place == number) for place in range(1, len(BOUNDS) + 2))]


def failing_app(environ: Environ, start_response: StartResponse) -> NoReturn:
    raise ValueError("no")


def test_an_app_that_fails_before_its_response_counts_as_the_error_that_the_server_answers() -> None:
    counter = RequestCounter(failing_app)
    counter.measure()
    with pytest.raises(ValueError, match="no"):
        Response(counter)
    assert counts(counter) == {("GET", "5xx"): 1}


def test_a_response_that_has_not_begun_has_no_class() -> None:
    counter = RequestCounter(a_generator)
    counter.measure()
    Response(counter).close()
    assert counts(counter) == {("GET", "none"): 1}


# Errors


@pytest.mark.parametrize(
    ("status", "errors"),
    [
        ("200 OK", 0),
        ("304 Not Modified", 0),
        ("404 Not Found", 0),
        ("499 Gone", 0),
        ("500 Oh", 1),
        ("503 No", 1),
        ("599", 1),
    ],
)
def test_a_status_of_500_or_more_is_an_error(status: str, errors: int) -> None:
    counter = RequestCounter(answers([b"text"], status))
    Response(counter).read()
    assert counter.totals() == (1, errors)


def raising(environ: Environ, start_response: StartResponse) -> NoReturn:
    raise ValueError("in the app")


def raising_after_500(environ: Environ, start_response: StartResponse) -> NoReturn:
    start_response("500 Internal Server Error", HEADERS)
    raise ValueError("in the app")


def raising_at_once(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", HEADERS)
    raise ValueError("before the first piece")
    yield b""


def raising_midway(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", HEADERS)
    yield b"one"
    raise ValueError("midway")


def raising_in_close(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", HEADERS)
    return Body(b"one", fail=True)


def raising_everywhere(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("503 Service Unavailable", HEADERS)

    class Broken(Body):
        def __next__(self) -> bytes:
            raise ValueError("in a piece")

    return Broken(fail=True)


def leaving(environ: Environ, start_response: StartResponse) -> NoReturn:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("app", "error"),
    [
        (raising, ValueError),
        (raising_after_500, ValueError),
        (raising_at_once, ValueError),
        (raising_midway, ValueError),
        (raising_in_close, OSError),
        (raising_everywhere, OSError),
        (leaving, SystemExit),
    ],
    ids=lambda value: value.__name__,
)
def test_an_exception_passes_is_counted_once_and_the_request_has_ended(
    app: WSGIApp, error: type[BaseException]
) -> None:
    counter = RequestCounter(app)
    with pytest.raises(error):
        Response(counter).read()
    assert (counter.in_flight, counter.totals()) == (0, (1, 1))


def test_exc_info_reaches_the_server_as_it_was() -> None:
    received = []

    def start_response(*args: Any) -> Callable[[bytes], None]:
        received.append(args)
        return lambda data: None

    body: Any = RequestCounter(a_restart)(environ(), start_response)
    body.close()
    assert len(received[0]) == 2
    assert isinstance(received[1][2][1], ValueError)


def test_what_start_response_raises_reaches_the_app() -> None:
    def start_response(status: str, headers: Any, exc_info: Any) -> Any:
        raise exc_info[1]

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            raise ValueError("headers are sent")
        except ValueError:
            start_response("500 Oh", HEADERS, sys.exc_info())
        return []

    counter = RequestCounter(app)
    with pytest.raises(ValueError, match="headers are sent"):
        counter(environ(), start_response)
    assert (counter.in_flight, counter.totals()) == (0, (1, 1))


# Close


@pytest.mark.parametrize("body", [[b"one"], Body(b"one")], ids=["a list", "an iterator"])
def test_close_called_twice_ends_one_request(body: Any) -> None:
    ended = []
    counter = RequestCounter(answers(body))
    counter.on_done = lambda: ended.append(counter.in_flight)
    response, other = Response(counter), Response(counter)
    response.close()
    response.close()
    assert ended == [1]
    other.close()
    assert ended == [1, 0]


def test_the_body_is_closed_as_often_as_the_server_closes_it() -> None:
    body = Body(b"one", b"two")
    Response(RequestCounter(answers(body))).read()
    gc.collect()
    assert body.closed == 1


def test_a_server_that_breaks_off_closes_the_body_once() -> None:
    """Werkzeug's response runs its `call_on_close` functions at every close."""
    closed = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", HEADERS)
        return ClosingIterator(iter([b"one", b"two"]), lambda: closed.append(True))

    counter = RequestCounter(app)
    response = Response(counter)
    pieces = iter(response.body)
    assert next(pieces) == b"one"
    response.close()
    del pieces
    gc.collect()
    assert closed == [True]
    assert (counter.in_flight, counter.totals()) == (0, (1, 0))


def test_a_generator_is_ended_when_the_server_breaks_off() -> None:
    ended = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", HEADERS)
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append(True)

    counter = RequestCounter(app)
    response = Response(counter)
    next(iter(response.body))
    response.close()
    assert ended == [True]
    assert (counter.in_flight, counter.totals()) == (0, (1, 0))


# Files


class Slotted:
    """A server's wrapper that takes no attributes."""

    __slots__ = ("_file",)

    def __init__(self, file: io.BytesIO, size: int = 8192) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def close(self) -> None:
        self._file.close()


def sends(file: Any) -> tuple[WSGIApp, list[Iterable[bytes]]]:
    """An app that sends a file by the server's wrapper, and the wrappers that it returned."""
    returned: list[Iterable[bytes]] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", HEADERS)
        returned.append(environ["wsgi.file_wrapper"](file))
        return returned[0]

    return app, returned


def test_the_server_gets_its_own_file_wrapper_back_and_it_is_counted_until_closed() -> None:
    file = io.BytesIO(b"contents")
    app, returned = sends(file)
    counter = RequestCounter(app)
    response = Response(counter, **{"wsgi.file_wrapper": FileWrapper})
    assert response.body is returned[0]
    assert counter.in_flight == 1
    assert response.read() == b"contents"
    assert file.closed
    assert (counter.in_flight, counter.totals()) == (0, (1, 0))


def test_a_file_wrapper_without_close_is_counted_until_closed_too() -> None:
    class Reader:
        def read(self, size: int) -> bytes:
            return b""

    app, returned = sends(Reader())
    counter = RequestCounter(app)
    response = Response(counter, **{"wsgi.file_wrapper": FileWrapper})
    assert response.body is returned[0]
    response.close()
    assert counter.in_flight == 0


def test_a_file_that_can_not_be_closed_is_an_error_and_has_ended() -> None:
    class Broken(io.BytesIO):
        broken = True

        def close(self) -> None:
            if self.broken:
                raise OSError("can't close")

    file = Broken(b"contents")
    counter = RequestCounter(sends(file)[0])
    with pytest.raises(OSError, match="can't close"):
        Response(counter, **{"wsgi.file_wrapper": FileWrapper}).read()
    assert (counter.in_flight, counter.totals()) == (0, (1, 1))
    file.broken = False


@pytest.mark.parametrize(
    "wrapper",
    [Slotted, lambda file: FileWrapper(file)],
    ids=["one that takes no attributes", "a function"],
)
def test_a_wrapper_of_another_kind_is_iterated_over_and_counted(wrapper: Callable[[Any], Any]) -> None:
    file = io.BytesIO(b"contents")
    counter = RequestCounter(sends(file)[0])
    response = Response(counter, **{"wsgi.file_wrapper": wrapper})
    assert counter.in_flight == 1
    assert response.read() == b"contents"
    assert file.closed
    assert counter.in_flight == 0


def test_a_body_that_is_no_file_is_counted_where_the_server_has_a_wrapper() -> None:
    counter = RequestCounter(a_list)
    assert Response(counter, **{"wsgi.file_wrapper": FileWrapper}).read() == b"onetwo"
    assert counter.totals() == (1, 0)


# Hooks


def test_on_first_gets_the_environ_until_it_is_unset() -> None:
    seen = []

    def on_first(environ: dict[str, Any]) -> None:
        seen.append(environ["PATH_INFO"])
        counter.on_first = None

    counter = RequestCounter(a_list)
    counter.on_first = on_first
    Response(counter, PATH_INFO="/a").read()
    Response(counter, PATH_INFO="/b").read()
    assert seen == ["/a"]


def test_on_first_may_be_unset_by_another_thread_at_any_time() -> None:
    class Vanishing(RequestCounter):
        looks: Iterator[Any] = iter([lambda environ: None])
        on_first = property(lambda self: next(self.looks, None), lambda self, value: None)

    assert Response(Vanishing(a_list)).read() == b"onetwo"


def test_on_done_is_called_when_the_request_is_no_longer_in_flight() -> None:
    seen = []
    counter = RequestCounter(a_list)
    counter.on_done = lambda: seen.append(counter.in_flight)
    response = Response(counter)
    assert seen == []
    response.close()
    assert seen == [0]


@pytest.mark.parametrize("offered", [True, False])
def test_a_shutdown_function_is_in_the_environ_if_there_is_one(offered: bool) -> None:
    seen = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ.get("werkzeug.server.shutdown"))
        return a_list(environ, start_response)

    def shutdown() -> None: ...

    counter = RequestCounter(app)
    if offered:
        counter.shutdown = shutdown
    Response(counter).read()
    assert seen == [shutdown if offered else None]
