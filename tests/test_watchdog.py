"""When the watchdog of a service manager is pinged: only while requests are served."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from harness import Pending, Program, Serve, Server, get, suspend, until
from managers import Manager

from flask_ctl.lifecycle.probe import LINE, Probe, address_of
from flask_ctl.lifecycle.state import State
from flask_ctl.lifecycle.watchdog import Load, Watchdog
from flask_ctl.system.notify_socket import NotifySocket
from flask_ctl.system.waiting import wait_readable
from flask_ctl.workers.hub.status import WorkersStatus

LIMIT = 10.0


class FakeWay:
    """Says whether the probe has got through, and notes whether it was asked."""

    def __init__(self) -> None:
        self.open = False
        self.asked = False

    def passed(self, address: Any) -> bool:
        self.asked = True
        return self.open

    def close(self) -> None:
        self.asked = False


IDLE = Load(7, None, 0)
BUSY = Load(7, 9.0, 0)
OLD = Load(7, 11.0, 0)
RUNNING = State.RUNNING

# By a sentence: what is seen, second by second, as (state, load, whether a probe gets through), and the pings.
LOOKS: dict[str, tuple[list[tuple[State, Load, bool]], list[bool]]] = {
    "idle": ([(RUNNING, IDLE, False)] * 20, [True] * 20),
    "a request that is not old": ([(RUNNING, BUSY, False)] * 3, [True] * 3),
    "an old one, and the others end": ([(RUNNING, Load(n, 11.0 + n, 0), False) for n in range(4)], [True] * 4),
    "an old one, and no other can get in": ([(RUNNING, OLD, False)] * 4, [True, False, False, False]),
    "an old one, and others can get in": ([(RUNNING, OLD, True)] * 4, [True] * 4),
    "an old one that ends": (
        [(RUNNING, OLD, False), (RUNNING, OLD, False), (RUNNING, Load(8, None, 0), False)],
        [True, False, True],
    ),
    "nobody accepts": ([(RUNNING, Load(7, None, 3), False)] * 13, [True] * 10 + [False] * 3),
    "connections that wait for a moment": (
        [(RUNNING, Load(7, None, second % 2), False) for second in range(30)],
        [True] * 30,
    ),
    "no worker": ([(RUNNING, IDLE, False), (RUNNING, Load(7, math.inf, 0), False)], [True, False]),
    "a start": ([(State.STARTING, IDLE, False), (RUNNING, IDLE, False)], [False, True]),
    "a reload, and a stop, which have deadlines of their own": (
        [(state, OLD, False) for state in (RUNNING, State.RELOADING, State.STOPPING, State.STOPPED)],
        [True, True, True, True],
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", LOOKS)
def test_it_is_pinged_while_requests_end_none_is_old_or_another_gets_through(sentence: str) -> None:
    looks, expected = LOOKS[sentence]
    pings: list[int] = []
    way, seen, second = FakeWay(), IDLE, 0
    dog = Watchdog(
        lambda: pings.append(second), way, lambda: seen, lambda: None, lambda: LIMIT, clock=lambda: float(second)
    )
    for second, (state, seen, way.open) in enumerate(looks):  # noqa: B007
        dog.look(state)
    assert [second in pings for second in range(len(looks))] == expected


@pytest.mark.parametrize(
    ("load", "trouble"),
    [
        (OLD, "requests are older than CTL_WATCHDOG_REQUEST, or the workers silent for so long, and no other one"),
        (Load(7, None, 3), "connections wait longer than CTL_WATCHDOG_REQUEST to be accepted, and no other one"),
        (Load(7, math.inf, 0), "there is no worker, and no request"),
    ],
)
def test_it_says_once_what_is_not_served_and_that_it_is_again(
    load: Load, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flask_ctl")
    moment, seen = iter(range(40)), load
    dog = Watchdog(
        lambda: None, FakeWay(), lambda: seen, lambda: None, lambda: LIMIT, clock=lambda: float(next(moment))
    )
    for _ in range(20):
        dog.look(RUNNING)
    told = f"{trouble} gets through: the service manager is not pinged until that changes"
    assert [record.getMessage() for record in caplog.records] == [told]
    seen = IDLE
    for _ in range(3):
        dog.look(RUNNING)
    assert [record.getMessage() for record in caplog.records] == [told, "the service manager is pinged again"]


def test_of_workers_the_one_that_is_least_stuck_counts() -> None:
    def worker(oldest: float | None, silent: float = 0.0) -> Any:
        figures = SimpleNamespace(apps={"": SimpleNamespace(oldest=oldest)}, waiting=2)
        return SimpleNamespace(figures=figures, heard=time.monotonic() - silent)

    def load(*workers: Any) -> Load:
        class Workers(list):  # type: ignore[type-arg]
            def finished(self) -> int:
                return 5

        return WorkersStatus(Workers(workers)).load()  # type: ignore[arg-type]

    assert load(worker(90.0), worker(None)) == (5, None, 2)
    assert load() == (5, math.inf, 0)
    assert load(worker(90.0), worker(None, silent=3.0)).oldest is None, "it is asked every other second"
    frozen = load(worker(90.0), worker(None, silent=20.0)).oldest
    assert frozen is not None
    assert 20.0 <= frozen < 90.0, "an idle worker that answers nothing is as old as its silence"
    oldest = load(worker(90.0), worker(1.0, silent=20.0)).oldest
    assert oldest is not None
    assert 21.0 <= oldest < 90.0, "what is silent grows older"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("https://[::1]:8443", ("::1", 8443)),
        ("unix:/run/shop/http", "/run/shop/http"),
        ("nonsense", None),
    ],
)
def test_the_address_of_a_url(url: str, address: Any) -> None:
    assert address_of(url) == address


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        yield listener


def gets_through(probe: Probe, address: Any) -> bool:
    """Whether a look at the probe, or the one after it, finds an answer that is there already."""
    return any(probe.passed(address) for _ in range(2))


def test_a_probe_gets_through_when_it_is_answered_or_closed_and_not_before(listener: socket.socket) -> None:
    probe, address = Probe(), listener.getsockname()
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
        assert not gets_through(probe, address)
        connection, _ = listener.accept()
        assert wait_readable([connection.fileno()], 30)
        assert connection.recv(100) == LINE
        assert not gets_through(probe, address)
        connection.sendall(answer)
        connection.close()
        assert probe._socket is not None
        assert wait_readable([probe._socket.fileno()], 30)
        assert probe.passed(address)
    probe.close()


def test_a_probe_whose_connection_was_closed_before_the_request_is_answered(listener: socket.socket) -> None:
    probe, address = Probe(), listener.getsockname()
    probe._connect(address)
    connection, _ = listener.accept()
    connection.close()
    assert probe._socket is not None
    assert wait_readable([probe._socket.fileno()], 30)
    # The peer resets the connection at the first byte.
    with contextlib.suppress(BrokenPipeError):
        while True:
            probe._socket.send(b"x")
    assert gets_through(probe, address)


def test_a_probe_is_neither_blocked_nor_answered_by_a_full_backlog(listener: socket.socket) -> None:
    address = listener.getsockname()
    full = [socket.socket() for _ in range(4)]
    for sock in full:
        sock.setblocking(False)
        sock.connect_ex(address)
    probe = Probe()
    assert not any(probe.passed(address) for _ in range(5))
    probe.close()
    for sock in full:
        sock.close()


def test_a_probe_that_is_refused_or_has_no_address_does_not_get_through(short_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    for where in (address, str(short_path / "nobody"), None):
        probe = Probe()
        assert not any(probe.passed(where) for _ in range(3))
        probe.close()


def test_the_time_is_that_of_the_service_alone() -> None:
    told = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1500000"}
    times: list[tuple[dict[str, str], float]] = [
        (told, 1.5),
        ({**told, "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({**told, "WATCHDOG_PID": "1"}, 0.0),
        ({**told, "WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "1500000"}, 0.0),
    ]
    for environment, seconds in times:
        assert NotifySocket(environment, os.getpid()).watchdog == seconds


def served(serve: Serve, program: Program, manager: Manager, *options: str, microseconds: int = 400000) -> Server:
    command = [sys.executable, "-m", "flask_ctl_cli", "run", "--app", "sample", "--port", "0", *options]
    env = {**manager.env, "WATCHDOG_USEC": str(microseconds), "FLASK_CTL_WATCHDOG_REQUEST": "0.2"}
    return serve(command=command, cwd=program.directory, env=env)


@pytest.fixture
def manager(short_path: Any) -> Iterator[Manager]:
    manager = Manager(short_path / "notify")
    yield manager
    manager.close()


def test_a_pool_without_a_free_thread_is_not_pinged_for_until_it_has_one(
    serve: Serve, program: Program, manager: Manager
) -> None:
    server = served(serve, program, manager, "--server", "waitress", "--threads", "1")
    assert manager.until("READY").fields["WATCHDOG_USEC"] == "400000"
    manager.until("WATCHDOG")
    held = server.begin("/hold/a")
    until(lambda: "no other one gets through" in server.output, "the deadlock is seen")
    manager.waiting()
    server.release("a")
    assert held.result() == (200, b"held a")
    manager.until("WATCHDOG")

    reload = Pending.call(server.reload)
    # Read meanwhile: a manager's queue is short.
    while (told := manager.until("WATCHDOG_USEC")).fields["WATCHDOG_USEC"] != "400000":
        assert told.fields == {"EXTEND_TIMEOUT_USEC": "70000000", "WATCHDOG_USEC": "60400000", "WATCHDOG": "1"}
    assert told.fields["READY"] == "1"
    assert any("EXTEND_TIMEOUT_USEC" in one.fields and "WATCHDOG_USEC" in one.fields for one in manager.all)
    assert reload.result()["generation"] == 2


@pytest.mark.full
def test_a_worker_that_is_frozen_while_it_is_idle_is_not_pinged_for_until_it_goes_on(
    no_hubs_left: None, serve: Serve, program: Program, manager: Manager
) -> None:
    server = served(serve, program, manager, "--server", "gunicorn")
    manager.until("READY")
    (worker,) = server.status()["workers"]
    suspend(worker["pid"])
    try:
        until(lambda: "no other one gets through" in server.output, "its silence is seen")
        manager.waiting()
    finally:
        os.kill(worker["pid"], signal.SIGCONT)
    manager.until("WATCHDOG")
    with server.client() as client:
        client.stop()


@pytest.mark.parametrize("name", ["pywsgi", "gunicorn", "uwsgi"])
@pytest.mark.full
def test_a_server_that_answers_beside_an_old_request_is_pinged_for(
    no_hubs_left: None, serve: Serve, program: Program, manager: Manager, name: str
) -> None:
    threads = [] if name == "pywsgi" else ["--threads", "2"]
    # Enough for three probes in a row to be answered on a busy machine.
    server = served(serve, program, manager, "--server", name, *threads, microseconds=8000000)
    assert manager.until("READY").pid == server.status()["control"].get("hub", server.pid)
    held = server.begin("/hold/a")
    until(lambda: (server.status()["requests"]["oldest"] or 0) > 1.5, "the request is old")
    manager.waiting()
    manager.until("WATCHDOG")
    assert "no other one gets through" not in server.output
    server.release("a")
    assert held.result() == (200, b"held a")
    assert get(server.address, "/version") == (200, b"old")
    with server.client() as client:
        client.stop()
