"""The units of the examples, and their worst days, under a real systemd."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPException

import pytest
from documents import ROOT
from harness import Pending, get, until
from realsystemd import Systemd

FLASK_CTL = str(pathlib.Path(sys.executable).parent / "flask-ctl")

EXAMPLES = ROOT / "examples" / "systemd"

APP = """
import os, pathlib, threading, time
from flask import Flask
from flask_ctl import Control

HERE = pathlib.Path(__file__).parent
app = Flask("shop")
app.config.from_prefixed_env("FLASK")
control = Control(app)
gate = threading.Event()
VERSION = "1"

@app.get("/")
def index():
    return f"{VERSION} {os.getpid()}"

@app.get("/hold")
def hold():
    (HERE / "held").touch()
    gate.wait()
    return "held"

@control.command
def release():
    gate.set()
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        machine = Systemd(pathlib.Path(name))
        yield machine
        machine.close()


@pytest.fixture
def systemd(machine: Systemd, free_port: int) -> Iterator[Systemd]:
    """With a new app, and without a unit that runs."""
    (machine.directory / "shop.py").write_text(APP)
    for left in ("out", "held"):
        (machine.directory / left).unlink(missing_ok=True)
    yield machine
    print(machine.output)
    machine("stop", "*.socket", "*.service")
    machine("reset-failed")


def example(name: str, port: int) -> str:
    return (EXAMPLES / name).read_text().replace("8000", str(port))


def edit(systemd: Systemd, version: str, more: str = "") -> None:
    (systemd.directory / "shop.py").write_text(APP.replace('VERSION = "1"', f"VERSION = {version!r}\n{more}"))


def ask(port: int) -> tuple[str, int]:
    """Version and pid."""
    code, body = get(("127.0.0.1", port), "/")
    assert code == 200
    version, pid = body.decode().split()
    return version, int(pid)


@pytest.mark.parametrize("name", ["shop.service", "shop-gunicorn.service"])
def test_a_service_starts_reloads_and_stops_as_systemctl_says(systemd: Systemd, free_port: int, name: str) -> None:
    systemd.add(name, example(name, free_port))
    assert systemd("start", name).returncode == 0, systemd.output
    assert ask(free_port)[0] == "1"
    assert systemd.show(name, "StatusText") == "serving, generation 1"
    main = systemd.show(name, "MainPID")

    edit(systemd, "2")
    assert systemd("reload", name).returncode == 0, systemd.output
    assert ask(free_port)[0] == "2"
    until(lambda: systemd.show(name, "StatusText") == "serving, generation 2", "the status")
    edit(systemd, "3", "raise RuntimeError('not today')")
    assert systemd("reload", name).returncode == 1
    assert ask(free_port)[0] == "2"
    assert systemd.show(name, "StatusText").startswith("reload refused: ")
    assert systemd.show(name, "StatusText").endswith("RuntimeError: not today")
    assert [systemd.show(name, key) for key in ("ActiveState", "MainPID", "NRestarts")] == ["active", main, "0"]

    edit(systemd, "2")
    assert systemd("stop", name).returncode == 0
    assert [systemd.show(name, key) for key in ("ActiveState", "Result")] == ["inactive", "success"]

    assert systemd("start", name).returncode == 0
    assert systemd.enter(FLASK_CTL, "stop", "--socket", "/run/shop/ctl.sock").returncode == 0
    until(lambda: systemd.show(name, "ActiveState") == "inactive", "the end of the unit")
    assert [systemd.show(name, key) for key in ("Result", "NRestarts")] == ["success", "0"]


def test_a_template_runs_as_many_as_there_are_ports(systemd: Systemd, free_port: int, other_free_port: int) -> None:
    systemd.add("shop@.service", (EXAMPLES / "shop@.service").read_text())
    units = [f"shop@{port}" for port in (free_port, other_free_port)]
    assert systemd("start", *units).returncode == 0, systemd.output
    assert ask(free_port)[1] != ask(other_free_port)[1]
    assert systemd("stop", units[0]).returncode == 0
    assert ask(other_free_port)[0] == "1"


CONTROL = """
[Socket]
ListenStream=/run/shop-ctl.sock
SocketMode=0600
FileDescriptorName=control
Service=shop.service
"""


def test_sockets_start_their_service_and_start_it_again_after_a_stop_but_for_good(
    systemd: Systemd, free_port: int
) -> None:
    systemd.add("shop.service", example("shop.service", free_port).replace("=/run/shop/ctl.sock", "="))
    systemd.add("shop.socket", example("shop.socket", free_port))
    systemd.add("shop-control.socket", CONTROL)
    assert systemd("start", "shop.socket", "shop-control.socket").returncode == 0
    # The first connection is one to systemd, pid 1, which is not the server.
    found = systemd.enter(FLASK_CTL, "status", "--json", "--socket", "/run/shop-ctl.sock")
    assert found.returncode == 0, found.stderr
    status = json.loads(found.stdout)
    assert str(status["pid"]) == systemd.show("shop.service", "MainPID")
    assert status["server"]["activated"] == ["control", "http"]
    _, first = ask(free_port)
    edit(systemd, "2")
    reloaded = systemd.enter(FLASK_CTL, "reload", "--socket", "/run/shop-ctl.sock")
    assert reloaded.returncode == 0, reloaded.stderr
    assert ask(free_port) == ("2", first)
    stopped = systemd.enter(FLASK_CTL, "stop", "--socket", "/run/shop-ctl.sock")
    assert stopped.returncode == 0, stopped.stderr
    assert "systemd starts it again at the next connection to its sockets: control, http; stop --for" in stopped.stdout
    version, second = ask(free_port)
    assert version == "2"
    assert second != first
    stopped = systemd.enter(FLASK_CTL, "stop", "--for-good", "--socket", "/run/shop-ctl.sock")
    assert stopped.returncode == 0, stopped.stderr
    assert "starts it again" not in stopped.stdout
    with pytest.raises(ConnectionRefusedError):
        ask(free_port)
    for unit in ("shop.socket", "shop-control.socket", "shop.service"):
        until(lambda unit=unit: systemd.show(unit, "ActiveState") == "inactive", unit)  # type: ignore[misc]


@pytest.mark.parametrize("server", ["waitress", "werkzeug"])
def test_clients_wait_through_a_crash_and_not_after_a_stop(systemd: Systemd, free_port: int, server: str) -> None:
    text = example("shop.service", free_port).replace("--server waitress", f"--server {server}")
    systemd.add("shop.service", text, FileDescriptorStoreMax="1", Environment="FDSTORE=1", RestartSec="1")
    assert systemd("start", "shop.service").returncode == 0
    _, first = ask(free_port)
    assert systemd.show("shop.service", "NFileDescriptorStore") == "1"
    assert systemd("reload", "shop.service").returncode == 0
    assert ask(free_port) == ("1", first)
    assert systemd("kill", "--signal=KILL", "shop.service").returncode == 0
    _, second = ask(free_port)
    assert second != first
    edit(systemd, "2")
    assert systemd("reload", "shop.service").returncode == 0, systemd.output
    assert ask(free_port) == ("2", second)
    assert systemd.enter(FLASK_CTL, "stop", "--socket", "/run/shop/ctl.sock").returncode == 0
    with pytest.raises(ConnectionRefusedError):
        ask(free_port)


def test_a_drain_may_take_longer_than_the_time_to_stop(systemd: Systemd, free_port: int) -> None:
    systemd.add("shop.service", example("shop.service", free_port), TimeoutStopSec="10")
    assert systemd("start", "shop.service").returncode == 0
    held = Pending(("127.0.0.1", free_port), "/hold")
    until((systemd.directory / "held").exists, "the request in flight")
    stopped = Pending.call(lambda: systemd("stop", "shop.service"))
    until(lambda: systemd.show("shop.service", "StatusText") == "stopping", "the drain")
    began = float(systemd.enter("cat", "/proc/uptime").stdout.split()[0])
    until(lambda: float(systemd.enter("cat", "/proc/uptime").stdout.split()[0]) > began + 12, "more than it")
    assert systemd.enter(FLASK_CTL, "call", "release", "--socket", "/run/shop/ctl.sock").returncode == 0
    assert held.result() == (200, b"held")
    assert stopped.result().returncode == 0
    assert systemd.show("shop.service", "Result") == "success"


def test_the_watchdog_lets_an_import_of_ten_seconds_be_and_ends_a_deadlock(systemd: Systemd, free_port: int) -> None:
    text = example("shop.service", free_port).replace("--server waitress", "--server waitress --threads 1")
    systemd.add("shop.service", text, WatchdogSec="5", Environment="FLASK_CTL_WATCHDOG_REQUEST=0.5", Restart="always")
    assert systemd("start", "shop.service").returncode == 0
    _, first = ask(free_port)
    edit(systemd, "2", "time.sleep(10)")
    assert systemd("reload", "shop.service").returncode == 0, systemd.output
    assert ask(free_port) == ("2", first)
    assert systemd.show("shop.service", "NRestarts") == "0"
    edit(systemd, "3")
    held = Pending(("127.0.0.1", free_port), "/hold")
    until(lambda: int(systemd.show("shop.service", "NRestarts")) >= 1, "the end of the deadlock")
    with pytest.raises((OSError, HTTPException)):
        held.result()
    assert "no other one gets through" in systemd.output
    until(lambda: systemd.show("shop.service", "ActiveState") == "active", "another process")
    assert ask(free_port)[0] == "3"


def test_without_notify_access_a_hub_is_not_heard(systemd: Systemd, free_port: int) -> None:
    text = example("shop-gunicorn.service", free_port)
    systemd.add("shop-gunicorn.service", text, NotifyAccess="main", TimeoutStartSec="15", Restart="no", WatchdogSec="0")
    assert systemd("start", "shop-gunicorn.service").returncode == 1
    assert systemd.show("shop-gunicorn.service", "Result") == "timeout"
    systemd.add("shop-gunicorn.service", text, Type="exec", NotifyAccess="main", WatchdogSec="0")
    assert systemd("start", "shop-gunicorn.service").returncode == 0
    until(lambda: systemd.enter(FLASK_CTL, "ping", "--socket", "/run/shop/ctl.sock").returncode == 0, "an answer")
    status = systemd.enter(FLASK_CTL, "status", "--socket", "/run/shop/ctl.sock")
    assert ", which systemd hears only with NotifyAccess=all" in status.stdout
    doctor = systemd.enter(FLASK_CTL, "doctor", "--socket", "/run/shop/ctl.sock")
    assert doctor.returncode == 1
    assert "is lost: NotifyAccess=main\n    set NotifyAccess=all in shop-gunicorn.service" in doctor.stdout
