"""A service that systemd always starts again, and what keeps it down. A real systemd."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest
from documents import ROOT
from harness import TIMEOUT, Pending, get, until
from realsystemd import Systemd

FLASK_CTL = str(pathlib.Path(sys.executable).parent / "flask-ctl")

EXAMPLES = ROOT / "examples" / "systemd"

APP = """
import pathlib, threading
from flask import Flask
from flask_ctl import Control

app = Flask("shop")
control = Control(app)
gate = threading.Event()

@app.get("/")
def index():
    return "served"

@app.get("/hold")
def hold():
    (pathlib.Path(__file__).parent / "held").touch()
    gate.wait()
    return "held"

@control.command
def release():
    gate.set()
"""


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        machine = Systemd(pathlib.Path(name))
        (machine.directory / "shop.py").write_text(APP)
        yield machine
        print(machine.output)
        machine.close()


@pytest.fixture(params=["shop.service", "shop-gunicorn.service"])
def unit(request: pytest.FixtureRequest, systemd: Systemd, free_port: int) -> Iterator[str]:
    """A unit of the examples, with Restart=always, that serves."""
    name: str = request.param
    (systemd.directory / "held").unlink(missing_ok=True)
    text = (EXAMPLES / name).read_text().replace("8000", str(free_port))
    # The tests start it more often than systemd permits a service: five times in ten seconds.
    text = text.replace("[Unit]\n", "[Unit]\nStartLimitIntervalSec=0\n")
    systemd.add(name, text, Restart="always", RestartSec="0")
    assert systemd("start", name).returncode == 0, systemd.output
    yield name
    systemd("stop", "*.socket", "*.service")


def ctl(systemd: Systemd, *arguments: str) -> CompletedProcess[str]:
    return systemd.enter(FLASK_CTL, *arguments, "--socket", "/run/shop/ctl.sock")


def pid_of(systemd: Systemd) -> int:
    pid = json.loads(ctl(systemd, "status", "--json").stdout)["pid"]
    assert isinstance(pid, int)
    return pid


def test_stops_waits_and_restarts_are_told_apart_while_it_comes_back_each_time(systemd: Systemd, unit: str) -> None:
    for _ in range(1 if "gunicorn" in unit else 3):
        before = pid_of(systemd)
        done = ctl(systemd, "stop", "--json")
        told = json.loads(done.stdout)
        assert (done.returncode, told["pid"], told["starts_again"]) == (0, before, True)
        assert told["supervisor"] == {"kind": "systemd", "unit": unit, "restart": "always"}
        assert ctl(systemd, "wait", "gone", "--pid", str(before)).returncode == 0
        assert ctl(systemd, "wait", "ready", "--timeout", str(TIMEOUT)).returncode == 0

        before = pid_of(systemd)
        done = ctl(systemd, "restart", "--json")
        told = json.loads(done.stdout)
        assert (done.returncode, told["stopped"]["pid"]) == (0, before)
        assert told["pid"] == pid_of(systemd) != before
    assert systemd.show(unit, "ActiveState") == "active"


def test_stopped_for_good_it_answers_what_is_in_flight_and_stays_down(
    systemd: Systemd, unit: str, free_port: int
) -> None:
    before = pid_of(systemd)
    held = Pending(("127.0.0.1", free_port), "/hold")
    until((systemd.directory / "held").exists, "the request in flight")
    stop = Pending.call(lambda: ctl(systemd, "stop", "--for-good", "--json"))
    until(lambda: systemd.show(unit, "ActiveState") == "deactivating", "the order to systemd")
    assert ctl(systemd, "call", "release").returncode == 0
    assert held.result() == (200, b"held")
    done = stop.result()
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"], told["drained"], told["proof"]) == (0, "drained", 1, "process")
    assert (told["pid"], told["for_good"], told["starts_again"]) == (before, True, False)
    until(lambda: systemd.show(unit, "ActiveState") == "inactive", "the end of the unit")
    assert systemd.show(unit, "NRestarts") == "0"


@pytest.mark.parametrize("unit", ["shop.service"], indirect=True)
def test_an_idle_service_tells_what_became_of_its_requests_however_fast_it_ends(systemd: Systemd, unit: str) -> None:
    for _ in range(5):
        done = ctl(systemd, "stop", "--for-good")
        assert done.returncode == 0, done.stdout
        assert f"systemd {unit} does not start it again: it was told to stop it" in done.stdout
        assert systemd("start", unit).returncode == 0


@pytest.mark.parametrize("unit", ["shop.service"], indirect=True)
def test_sockets_that_would_start_it_again_are_stopped_too(systemd: Systemd, unit: str, free_port: int) -> None:
    systemd("stop", unit)
    systemd.add("shop.socket", (EXAMPLES / "shop.socket").read_text().replace("8000", str(free_port)))
    systemd.add(unit, (EXAMPLES / unit).read_text().replace("8000", str(free_port)), Restart="no")
    assert systemd("start", "shop.socket").returncode == 0
    assert get(("127.0.0.1", free_port), "/") == (200, b"served")
    done = ctl(systemd, "stop", "--json")
    assert (done.returncode, json.loads(done.stdout)["starts_again"]) == (0, True)
    assert get(("127.0.0.1", free_port), "/") == (200, b"served")
    done = ctl(systemd, "stop", "--for-good", "--json")
    assert (done.returncode, json.loads(done.stdout)["starts_again"]) == (0, False)
    with pytest.raises(ConnectionRefusedError):
        get(("127.0.0.1", free_port), "/")
