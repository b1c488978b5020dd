"""What `BackgroundServer` tells of its stop."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest
from flask import Flask
from harness import TIMEOUT, Pending, add_hold, until

from flask_ctl import BackgroundServer, Control


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


class Holding(BackgroundServer):
    """A server whose request at /hold waits for a gate."""

    def __init__(self, app: Flask, gate: threading.Event) -> None:
        super().__init__(app)
        self._entered = add_hold(app, gate)

    def hold(self) -> Pending:
        self._entered.clear()
        held = Pending(("127.0.0.1", self.port), "/hold")
        assert self._entered.wait(TIMEOUT)
        return held


@pytest.fixture(params=["with a Control", "without"])
def server(gate: threading.Event, request: pytest.FixtureRequest) -> Holding:
    app = Flask(__name__)
    if request.param == "with a Control":
        Control(app)
    return Holding(app, gate)


def test_a_stop_returns_its_result(server: Holding, gate: threading.Event) -> None:
    server.start()
    held = server.hold()
    stop = Pending.call(server.stop)
    instance = server._instance
    assert instance is not None
    until(lambda: instance.stopping, "the stop")
    gate.set()
    assert held.result() == (200, b"held")
    result = stop.result()
    assert (result["outcome"], result["drained"], result["cut"], result["embedded"]) == ("drained", 1, 0, True)
    assert server.stop() == result, "a second one has the same"


def test_a_stop_without_a_start_has_no_result(server: Holding) -> None:
    assert server.stop() is None


def test_a_cut_is_a_warning_once_for_each_start(server: Holding) -> None:
    for _ in range(2):
        server.start()
        held = server.hold()
        with pytest.warns(RuntimeWarning, match="1 of its requests cut") as warned:
            result = server.stop(grace=0)
        assert warned[0].filename == __file__
        assert result is not None
        assert (result["outcome"], result["cut"]) == ("forced", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert server.stop() == result
        with pytest.raises(OSError):  # noqa: PT011 - it was cut
            held.result()


def test_the_end_of_a_with_warns_of_what_was_cut(server: Holding) -> None:
    server.app.config["CTL_GRACE"] = 0
    with pytest.warns(RuntimeWarning, match="cut") as warned, server:
        held = server.hold()
    assert warned[0].filename == __file__
    with pytest.raises(OSError):  # noqa: PT011 - it was cut
        held.result()
