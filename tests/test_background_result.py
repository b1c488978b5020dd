"""What `BackgroundServer` tells of its stop."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest
from flask import Flask
from harness import TIMEOUT, Pending, until

from flask_ctl import BackgroundServer, Control


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture(params=["with a Control", "without"])
def server(gate: threading.Event, request: pytest.FixtureRequest) -> BackgroundServer:
    """A server whose request at /hold waits for the gate."""
    app = Flask(__name__)
    if request.param == "with a Control":
        Control(app)
    entered = threading.Event()
    app.add_url_rule("/hold", "/hold", lambda: (entered.set(), gate.wait(), "held")[2])
    server = BackgroundServer(app)
    server.entered = entered
    return server


def hold(server: BackgroundServer):
    held = Pending(("127.0.0.1", server.port), "/hold")
    assert server.entered.wait(TIMEOUT)
    return held


def test_a_stop_returns_its_result(server: BackgroundServer, gate: threading.Event) -> None:
    server.start()
    held = hold(server)
    stop = Pending.call(server.stop)
    until(lambda: server._instance.stopping, "the stop")
    gate.set()
    assert held.result() == (200, b"held")
    result = stop.result()
    assert (result["outcome"], result["drained"], result["cut"], result["embedded"]) == ("drained", 1, 0, True)
    assert server.stop() == result, "a second one has the same"


def test_a_stop_without_a_start_has_no_result(server: BackgroundServer) -> None:
    assert server.stop() is None


def test_a_cut_is_a_warning_once_for_each_start(server: BackgroundServer) -> None:
    for _ in range(2):
        server.start()
        held = hold(server)
        with pytest.warns(RuntimeWarning, match="1 of its requests cut") as warned:
            result = server.stop(grace=0)
        assert warned[0].filename == __file__
        assert (result["outcome"], result["cut"]) == ("forced", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert server.stop() == result
        with pytest.raises(OSError):  # noqa: PT011 - it was cut
            held.result()
        server.entered.clear()


def test_the_end_of_a_with_warns_of_what_was_cut(server: BackgroundServer) -> None:
    server._app.config["CTL_GRACE"] = 0
    with pytest.warns(RuntimeWarning, match="cut") as warned, server:
        held = hold(server)
    assert warned[0].filename == __file__
    with pytest.raises(OSError):  # noqa: PT011 - it was cut
        held.result()
