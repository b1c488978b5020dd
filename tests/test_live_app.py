"""Live servers in tests without pytest: `flask_ctl.testing`."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import struct
import threading
import unittest
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import flask
import pytest
from harness import TIMEOUT, get, until

from flask_ctl import BackgroundServer, CommandError, Control
from flask_ctl.testing import AppProcess, LiveApp, LiveServerTestCase, ProcessFailed, RequestsLeft, control_client


class Gate(threading.Event):
    """What the view of /hold waits for; `entered` is set when it does."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def app(gate: Gate) -> flask.Flask:
    return make_app(gate)


def make_app(gate: Gate) -> flask.Flask:
    app = flask.Flask("shop")

    @app.get("/")
    def index() -> str:
        return "hello"

    @app.get("/broken")
    def broken() -> str:
        raise LookupError("no such article")

    @app.get("/hold")
    def hold() -> str:
        gate.entered.set()
        gate.wait()
        return "held"

    return app


def ask(live: LiveApp, path: str = "/") -> tuple[int, bytes]:
    return get((live.host, live.port), path)


def begin(live: LiveApp, path: str, before: int = 0) -> HTTPConnection:
    """Ask, and return when the server has the request."""
    connection = HTTPConnection(live.host, live.port, timeout=TIMEOUT)
    connection.request("GET", path)
    while len(live.requests) == before:
        """It is on its way."""
    return connection


def hold(live: LiveApp, gate: Gate) -> HTTPConnection:
    """Ask, and return when the view waits."""
    connection = begin(live, "/hold")
    assert gate.entered.wait(TIMEOUT)
    return connection


def test_the_app_is_served_in_the_block(app: flask.Flask) -> None:
    with LiveApp(app) as live:
        assert ask(live) == (200, b"hello")
        assert repr(live) == f"<LiveApp of 'shop', at {live}>"
    with pytest.raises(OSError, match="refused"):
        ask(live)


def test_servers_that_start_at_once_never_want_the_same_port(app: flask.Flask) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(LiveApp(make_app(Gate()))) for _ in range(10)]
        assert len({live.port for live in servers}) == 10
        assert {ask(live) for live in servers} == {(200, b"hello")}


def test_a_server_has_started_when_it_answers_not_when_a_connection_can_be_made(app: flask.Flask) -> None:
    for _ in range(10):
        with LiveApp(app) as live:
            assert ask(live) == (200, b"hello")


def test_a_server_whose_view_hangs_can_be_stopped(app: flask.Flask, gate: Gate) -> None:
    live = LiveApp(app)
    live.start()
    with contextlib.closing(hold(live, gate)):
        stopped = live.stop(grace=0)
        assert stopped is not None
        assert stopped["cut"] == 1
        with pytest.raises(OSError, match="refused"):
            ask(live)
        gate.set()


def test_an_exception_of_a_view_is_raised_at_the_end_of_the_block_once(app: flask.Flask) -> None:
    live = LiveApp(app)
    with pytest.raises(LookupError, match="no such article"), live:
        assert ask(live, "/broken")[0] == 500
    assert live.failure() is None


def test_an_exception_of_a_middleware_counts_too(app: flask.Flask) -> None:
    def fail(environ: Any, start_response: Any) -> Any:
        raise LookupError("no such header")

    app.wsgi_app = fail  # type: ignore[method-assign]
    live = LiveApp(app)
    with pytest.raises(LookupError, match="no such header"), live:
        assert ask(live)[0] == 500
    assert live.failure() is None


def test_ctrl_c_at_the_end_of_the_block_stops_the_server(
    app: flask.Flask, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(owner: Any, timeout: float) -> Any:
        raise KeyboardInterrupt

    live = LiveApp(app)
    monkeypatch.setattr(live._recorder, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), live:
        """It is pressed while the block waits for requests."""
    with pytest.raises(OSError, match="refused"):
        ask(live)


def test_what_the_block_raises_comes_before_an_exception_of_a_view(app: flask.Flask) -> None:
    def block() -> None:
        with LiveApp(app) as live:
            ask(live, "/broken")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


@pytest.mark.parametrize("testing", [False, True])
def test_several_exceptions_are_one_with_notes(app: flask.Flask, testing: bool) -> None:
    app.testing = testing
    live = LiveApp(app)
    live.start()
    assert {ask(live, "/broken")[0] for _ in range(3)} == {500}
    failure = live.failure()
    assert isinstance(failure, LookupError)
    assert [request.status for request in live.requests] == [500] * 3
    assert (
        getattr(failure, "__notes__", ["another"] * 2)
        == ["another request failed, too: LookupError('no such article')"] * 2
    )
    live.stop()


def test_requests_that_still_run_are_listed_with_their_stacks_at_the_end(app: flask.Flask, gate: Gate) -> None:
    live = LiveApp(app, grace=0.01)
    left = r"(?s)1 request not answered after 0.01 s:\nGET /hold, for .*in hold"
    with contextlib.ExitStack() as stack:
        with pytest.raises(RequestsLeft, match=left), live:
            stack.enter_context(contextlib.closing(hold(live, gate)))
        gate.set()


@pytest.mark.parametrize("fails", ["nothing", "the answer", "the view"])
def test_a_request_whose_client_has_gone_is_over(app: flask.Flask, gate: Gate, fails: str) -> None:
    """Werkzeug reads what the client has left, finds the connection reset, and forgets to close the answer."""
    error = None if fails == "nothing" else LookupError("no such article")

    def answer(_: object = None) -> flask.Response:
        def pieces() -> Iterator[str]:
            yield "one"
            gate.wait()
            if error is not None and fails == "the answer":
                raise error

        return flask.Response(pieces(), headers={"Content-Length": "3"})

    @app.get("/streamed")
    def streamed() -> flask.Response:
        if error is not None and fails == "the view":
            raise error
        return answer()

    app.register_error_handler(500, answer)
    with LiveApp(app) as live:
        with socket.create_connection((live.host, live.port), TIMEOUT) as client:
            client.sendall(b"GET /streamed HTTP/1.1\r\nHost: shop\r\n\r\n")
            got = b""
            while not got.endswith(b"one"):
                got += client.recv(1000)
            # Closing it now resets the connection: socket(7), SO_LINGER.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gate.set()
        assert live.failure(grace=TIMEOUT) is error


def test_the_clients_of_a_paused_server_wait(app: flask.Flask) -> None:
    with LiveApp(app) as live:
        with live.pause():
            connection = begin(live, "/")
            assert live.requests[0].status is None
        assert connection.getresponse().read() == b"hello"
        connection.close()


def test_another_test_does_not_pay_for_the_requests_of_this_one(app: flask.Flask, gate: Gate) -> None:
    with LiveApp(app) as live:
        live.begin_test("one")
        ask(live, "/broken")
        connection = begin(live, "/hold", 1)
        live.begin_test("two")
        assert live.requests == []
        assert ask(live) == (200, b"hello")
        assert live.failure("two") is None
        assert isinstance(live.failure("one", 0), RequestsLeft)
        assert live.failure("one", 0) is None
        gate.set()
        connection.close()


def test_a_control_counts_its_requests_as_ever(app: flask.Flask) -> None:
    Control(app)
    with LiveApp(app, socket=None) as live:
        ask(live)
        stopped = live.stop()
    assert stopped is not None
    assert stopped["outcome"] == "drained"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("shop:app", "takes the app itself, not 'shop:app'; import it: from shop import app$"),
        ("shop:create_app()", "import it: from shop import create_app, and call it$"),
        ("shop", "import it: from shop import app$"),
        (make_app, r"if it makes the app, pass make_app\(\)$"),
        (None, "takes a Flask app, not None"),
    ],
)
def test_what_is_no_app_is_refused_with_what_to_do(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        BackgroundServer(given)


def test_a_background_server_tells_what_it_is(app: flask.Flask) -> None:
    server = BackgroundServer(app)
    assert (server.app, server.host, repr(server)) == (app, "127.0.0.1", "<BackgroundServer of 'shop', not started>")
    with pytest.raises(RuntimeError, match="start it first"):
        _ = server.url
    with server:
        assert repr(server) == f"<BackgroundServer of 'shop', at {server.url}>"
    assert repr(server) == f"<BackgroundServer of 'shop', at {server.url}, stopped>"


def test_commands_are_called_without_a_socket(app: flask.Flask) -> None:
    control = Control(app)

    @control.command
    def greet(name: str, times: int = 1) -> dict[str, str]:
        """Greet somebody."""
        return {"said": f"hello {name}! " * times, "by": flask.current_app.name}

    @control.command
    def fail() -> None:
        raise LookupError("no such article")

    with control_client(app) as client:
        assert client.call("greet", name="you") == {"said": "hello you! ", "by": "shop"}
        assert client.commands()["greet"]["summary"] == "Greet somebody."
        with pytest.raises(CommandError, match="name"):
            client.call("greet")
        with pytest.raises(CommandError, match="no such article"):
            client.call("fail")
        with pytest.raises(CommandError, match="status"):
            client.status()


class Shop(LiveServerTestCase):
    """What a user of unittest writes; pytest does not collect it under this name."""

    __test__ = False
    broken = False

    def create_app(self) -> flask.Flask:
        return make_app(Gate())

    def setUp(self) -> None:
        # It is there before, without a call of super().
        assert ask(self.live_app) == (200, b"hello")

    def test(self) -> None:
        assert self.get_server_url() == self.live_app.url
        if self.broken:
            ask(self.live_app, "/broken")


class BrokenShop(Shop):
    broken = True


@pytest.mark.parametrize(("case", "wrong"), [(Shop, 0), (BrokenShop, 1)])
def test_unittest_has_a_test_case_that_fails_for_an_exception_of_a_view(case: type[Shop], wrong: int) -> None:
    result = unittest.TestResult()
    case("test").run(result)
    assert result.testsRun == 1
    assert len(result.errors + result.failures) == wrong
    assert all("no such article" in text for _, text in result.errors)


def test_a_test_case_without_an_app_says_so() -> None:
    class Bare(LiveServerTestCase):
        def test(self) -> None: ...

    result = unittest.TestResult()
    Bare("test").run(result)
    ((_, text),) = result.errors
    assert "Bare needs a method create_app" in text


APP = """
import os, sys, flask, flask_ctl
app = flask.Flask("shop")
flask_ctl.Control(app)

@app.get("/code/<int:code>")
def code(code):
    os._exit(code)

@app.get("/hold")
def hold():
    import time
    time.sleep(1000)
"""


def test_a_process_whose_requests_were_cut_has_failed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    process = AppProcess(app="shop", cwd=tmp_path, grace=0.1)
    process.start()
    host, port = process.url.removeprefix("http://").split(":")
    with contextlib.closing(HTTPConnection(host, int(port), timeout=TIMEOUT)) as connection:
        connection.request("GET", "/hold")
        with process.client() as client:
            until(lambda: client.status()["requests"]["in_flight"], "in flight")
        with pytest.raises(ProcessFailed, match=r"stopped with 1 of its requests cut: .*/hold"):
            process.stop()
    process.kill()


def test_a_program_that_can_not_be_started_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"), AppProcess(["no-such-program"]):
        """It does not get here."""


@pytest.mark.parametrize("given", [{}, {"command": ["true"], "app": "shop"}])
def test_a_process_takes_either_a_command_or_an_app(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="either a command or an app"):
        AppProcess(**given)
