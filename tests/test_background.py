"""`BackgroundServer`: a server in a thread that leaves nothing behind."""

from __future__ import annotations

import errno
import functools
import pathlib
import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from flask import Flask
from harness import TIMEOUT, Pending, add_hold, get, until

from flask_ctl import BackgroundServer, ConfigurationError, Control, ControlClient, NotRunning, TimedOut
from flask_ctl.lifecycle.stop import SETTLE_TIME


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", "/", lambda: "hello")
    return app


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def address(server: BackgroundServer) -> tuple[str, int]:
    return "127.0.0.1", server.port


def test_it_serves_inside_the_with_and_only_there(app: Flask) -> None:
    with BackgroundServer(app) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert get(address(server), "/") == (200, b"hello")
    with pytest.raises(ConnectionRefusedError):
        get(address(server), "/")


def test_fifty_times_on_the_same_port_it_leaves_nothing(app: Flask, free_port: int, short_path: pathlib.Path) -> None:
    """The fixture of every test counts threads and descriptors; the socket file is looked for here."""
    for _ in range(50):
        with BackgroundServer(app, port=free_port, socket=short_path / "x.sock") as server:
            assert get(address(server), "/") == (200, b"hello")
            with ControlClient(short_path / "x.sock") as client:
                assert client.ping()["pong"]
        assert not (short_path / "x.sock").exists()


def test_eight_at_once(app: Flask) -> None:
    servers = [BackgroundServer(app) for _ in range(8)]
    for starting in [Pending.call(server.start) for server in servers]:
        starting.result()
    assert len({server.port for server in servers}) == 8
    assert {get(address(server), "/") for server in servers} == {(200, b"hello")}
    for stopping in [Pending.call(server.stop) for server in servers]:
        stopping.result()


def test_a_busy_port_is_an_exception_in_the_caller(app: Flask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as error:  # noqa: PT011, SIM117
        with BackgroundServer(app, port=taken.getsockname()[1]):
            pass
    assert error.value.errno == errno.EADDRINUSE


def test_a_busy_control_socket_is_an_exception_in_the_caller_and_the_port_is_free(
    app: Flask, free_port: int, short_path: pathlib.Path
) -> None:
    second = BackgroundServer(app, port=free_port, socket=short_path / "x.sock")
    with BackgroundServer(app, socket=short_path / "x.sock"), pytest.raises(ConfigurationError, match="in use by pid"):
        second.start()
    with BackgroundServer(app, port=free_port) as server:
        assert get(address(server), "/") == (200, b"hello")


def test_stopping_without_a_start_twice_or_before_it_was_ready_is_fine(app: Flask) -> None:
    server = BackgroundServer(app)
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_starting_twice_is_refused(app: Flask) -> None:
    with BackgroundServer(app) as server, pytest.raises(RuntimeError, match="runs already"):
        server.start()


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "unthreaded"])
def test_it_can_be_stopped_from_a_view(app: Flask, threaded: bool) -> None:
    server = BackgroundServer(app, threaded=threaded)
    app.add_url_rule("/stop", "/stop", lambda: server.stop() or "stopping")
    server.start()
    assert get(address(server), "/stop") == (200, b"stopping")
    server.stop()


def test_control_stop_in_a_view_ends_the_server_that_answers_it_and_no_other(app: Flask) -> None:
    control = Control(app)

    @app.get("/stop")
    def stop() -> str:
        control.stop()
        return "stopping"

    with BackgroundServer(app) as one, BackgroundServer(app) as other:
        assert get(address(one), "/stop") == (200, b"stopping")
        one.stop()
        assert get(address(other), "/") == (200, b"hello")


def test_requests_in_flight_are_answered(app: Flask, gate: threading.Event) -> None:
    entered = add_hold(app, gate)
    with BackgroundServer(app) as server:
        held = Pending(address(server), "/hold")
        assert entered.wait(TIMEOUT)
        stop = Pending.call(server.stop)
        gate.set()
        assert held.result() == (200, b"held")
        stop.result()


def test_a_request_that_occupies_the_only_thread_is_reported(
    app: Flask, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_ctl.extension.background.JOIN_TIMEOUT", SETTLE_TIME + 0.5)
    entered = add_hold(app, gate)
    server = BackgroundServer(app, threaded=False)
    server.start()
    held = Pending(address(server), "/hold")
    assert entered.wait(TIMEOUT)
    with pytest.raises(TimedOut, match="still runs"):
        server.stop(grace=0)
    gate.set()
    with pytest.raises(OSError):  # noqa: PT011 - it was cut
        held.result()
    thread = server._thread
    until(lambda: thread is None or not thread.is_alive(), "its thread ends")


def test_it_listens_for_control_only_if_it_is_told_to(
    app: Flask, short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_CTL_SOCKET", str(short_path / "env.sock"))
    Control(app)
    with BackgroundServer(app):
        assert not list(short_path.rglob("*.sock"))
        with pytest.raises(NotRunning), ControlClient() as client:
            client.ping()


def test_hooks_run_at_its_stop(app: Flask) -> None:
    control, called = Control(app), []
    control.on_stop(lambda: called.append(threading.current_thread().name))
    control.on_stop(lambda: 1 / 0)
    control.on_stop(lambda: called.append("third"))
    with BackgroundServer(app):
        assert called == []
    assert called[1:] == ["third"]


def test_the_switch_interval_is_restored_when_several_control_threads_have_answered(
    app: Flask, short_path: pathlib.Path
) -> None:
    before = sys.getswitchinterval()
    servers = [BackgroundServer(app, socket=short_path / f"{number}.sock") for number in range(3)]
    for server in servers:
        server.start()

    def ask(path: pathlib.Path) -> None:
        with ControlClient(path) as client:
            for _ in range(200):
                client.status()

    asks = [functools.partial(ask, short_path / f"{number}.sock") for number in range(3)]
    for asking in [Pending.call(ask) for ask in asks]:
        asking.result()
    for server in servers:
        server.stop()
    assert sys.getswitchinterval() == before


def test_an_app_that_is_served_in_the_background_first_can_get_a_control_later(
    app: Flask, short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_CTL_SOCKET", str(short_path / "env.sock"))
    with BackgroundServer(Flask("another")):
        pass
    with BackgroundServer(app):
        pass
    assert Control(app).sockets() == [str(short_path / "env.sock")]


@pytest.mark.parametrize("grace", ["abc", None, -1])
def test_a_grace_that_is_no_duration_is_named(app: Flask, grace: int | str | None) -> None:
    app.config["CTL_GRACE"] = grace
    with pytest.raises(ConfigurationError, match="CTL_GRACE has to be a number of seconds"):
        BackgroundServer(app).start()
