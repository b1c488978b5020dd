"""What a service manager is told: single datagrams, their order, their moments and their repetition."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Scene
from harness import Program, Serve, Server
from managers import Manager, Told
from manyworkers import all_there

from flask_ctl import render_result, server_program, service_findings
from flask_ctl.lifecycle.history import Code, History
from flask_ctl.lifecycle.readiness import Drain
from flask_ctl.lifecycle.service_manager import ServiceManager
from flask_ctl.lifecycle.state import State
from flask_ctl.system.activation import STORED
from flask_ctl.system.notify_socket import MAX_KEPT, NotifySocket
from flask_ctl.system.sd_notify import datagram, held_back, socket_address, without_manager

SERVING = {"READY": "1", "STATUS": "serving, generation 1"}
EXTENDED = {"EXTEND_TIMEOUT_USEC": "10000000"}
MOMENT = {"MONOTONIC_USEC": "4200000"}
RELOADING = {"RELOADING": "1", "STATUS": "reloading", **MOMENT, **EXTENDED}
STOPPING = {"STOPPING": "1", "STATUS": "stopping", **EXTENDED}


@pytest.fixture
def manager(short_path: pathlib.Path) -> Iterator[Manager]:
    manager = Manager(short_path / "notify")
    yield manager
    manager.close()


def told(manager: Manager) -> list[dict[str, str]]:
    return [one.fields for one in manager.waiting()]


def test_a_datagram_has_one_assignment_a_line_whatever_is_in_a_text() -> None:
    assert datagram({"READY": 1, "STATUS": "a\nb  c"}) == b"READY=1\nSTATUS=a b c"
    assert datagram({"STATUS": "\udc80x" + "y" * 5000}).startswith(b"STATUS=?xyyy")
    assert len(datagram({"STATUS": "é" * 5000})) < 4096


@pytest.mark.parametrize(
    ("value", "address"),
    [("/run/notify", "/run/notify"), ("@a/b", "\0a/b"), ("vsock:2:3", None), ("relative", None), ("", None)],
)
def test_the_manager_is_at_a_path_or_at_an_abstract_address(value: str, address: str | None) -> None:
    assert socket_address(value) == address


def test_another_process_has_nothing_of_the_manager() -> None:
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE")
    given = {**dict.fromkeys(names, "1"), "PATH": "/bin"}
    assert without_manager(given) == {"PATH": "/bin"}
    assert without_manager(held_back(given)) == {"PATH": "/bin"}
    assert held_back({"PATH": "/bin"}) == {"PATH": "/bin"}


def stages(manager: Manager) -> list[Told]:
    """What has arrived, without the repeated extensions."""
    return [one for one in manager.waiting() if one.fields != EXTENDED]


SENTENCES = {
    "a start": ([State.RUNNING], [SERVING]),
    "a start that is told once": ([State.RUNNING, State.RUNNING], [SERVING]),
    "a reload": ([State.RUNNING, State.RELOADING, State.RUNNING], [SERVING, RELOADING, SERVING]),
    "a stop": ([State.RUNNING, State.STOPPING, State.STOPPED], [SERVING, STOPPING]),
    "a stop that calls a reload off": (
        [State.RUNNING, State.RELOADING, State.STOPPING, State.STOPPING],
        [SERVING, RELOADING, STOPPING],
    ),
    "a stop before it serves": ([State.STOPPING, State.STOPPED], [STOPPING]),
    "an end by itself": ([State.RUNNING, State.STOPPED], [SERVING]),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_state_is_told_in_one_datagram(manager: Manager, sentence: str) -> None:
    states, expected = SENTENCES[sentence]
    sock = NotifySocket(manager.env, os.getpid())
    service = ServiceManager(sock, History(), clock=lambda: 4.2)
    for state in states:
        service.enter(state)
    assert told(manager) == expected
    sock.close()


def test_a_tick_extends_the_time_of_a_reload_and_of_a_drain_only(manager: Manager) -> None:
    sock, history = NotifySocket(manager.env, os.getpid()), History()
    service = ServiceManager(sock, history, clock=lambda: 4.2)
    ticks: list[tuple[State, bool, list[dict[str, str]]]] = [
        (State.RUNNING, False, []),
        (State.RELOADING, False, [EXTENDED]),
        (State.RUNNING, False, []),
        (State.STOPPING, True, [EXTENDED]),
        (State.STOPPING, False, []),
        (State.STOPPED, False, []),
    ]
    for state, drains, expected in ticks:
        service.enter(state)
        told(manager)
        service.tick(state, drains)
        assert told(manager) == expected, state
    service.enter(State.RUNNING)
    told(manager)
    service.tick(State.RELOADING, False)
    assert told(manager) == [EXTENDED], "after the end of the HTTP server, before the exec"
    sock.close()


def test_the_status_says_why_a_reload_was_refused_and_whether_it_drains(manager: Manager) -> None:
    sock, history = NotifySocket(manager.env, os.getpid()), History()
    service = ServiceManager(sock, history, clock=lambda: 4.2)
    service.enter(State.RUNNING)
    service.enter(State.RELOADING)
    history.refused({"pid": 1}, 0.1, "SyntaxError: no", Code("/srv", None))
    service.enter(State.RUNNING)
    assert told(manager)[-1] == {"READY": "1", "STATUS": "reload refused: SyntaxError: no"}
    history.reloaded({"pid": 1}, 0.1, 0, Code("/srv", None))
    history.drain = Drain("", {})
    for _ in range(2):
        service.tick(State.RUNNING, False)
    assert told(manager) == [{"STATUS": "draining, generation 1"}]
    history.refused({"pid": 1}, 0.1, "SyntaxError: no", Code("/srv", None))
    service.tick(State.RUNNING, False)
    assert told(manager) == [{"STATUS": "draining, reload refused: SyntaxError: no"}]
    sock.close()


def test_a_program_that_the_service_has_started_tells_the_manager_nothing(manager: Manager) -> None:
    for pid, heard in ((os.getpid(), True), (os.getppid(), True), (1, False)):
        sock = NotifySocket({**manager.env, "SYSTEMD_EXEC_PID": str(pid)}, os.getpid())
        sock.send({"READY": 1})
        assert bool(told(manager)) is sock.is_there is heard
        sock.close()


def test_what_the_app_starts_has_nothing_by_which_it_could_speak_for_the_service(
    manager: Manager, short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {**manager.env, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "FDSTORE": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    scene = Scene(short_path, environment=variables)
    assert manager.until("READY").fields["READY"] == "1"
    assert not variables.keys() & os.environ.keys()
    scene.close()
    scene.instance._manager._socket.close()


@pytest.mark.parametrize(("socket", "has_it"), [("", False), ("/run/ctl.sock", False), ("off", True)])
def test_a_server_with_workers_tells_the_manager_itself_only_without_control(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, socket: str, has_it: bool
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("FLASK_CTL_SOCKET", socket)
    program = server_program("gunicorn", "app:app", "127.0.0.1", 8000, None)
    assert program is not None
    assert ("NOTIFY_SOCKET" in program.environment) is has_it
    assert ("FLASK_CTL_NOTIFY_SOCKET" in program.environment) is not has_it


def test_an_abstract_address_is_reached(short_path: pathlib.Path) -> None:
    manager = Manager(f"@{short_path}")
    sock = NotifySocket(manager.env, os.getpid())
    sock.send({"READY": 1})
    assert told(manager) == [{"READY": "1"}]
    sock.close()
    manager.close()


def test_a_manager_that_does_not_read_gets_the_last_datagrams_in_order_later(manager: Manager) -> None:
    sock = NotifySocket(manager.env, os.getpid())
    sent = 0
    # Until its queue is full, by net.unix.max_dgram_qlen, and then more than are kept.
    while len(sock._kept) < MAX_KEPT:
        sock.send({"STATUS": str(sent)})
        sent += 1
    for number in range(sent, sent + 5):
        sock.send({"STATUS": str(number)})
    for _ in range(MAX_KEPT):
        sock.send_now({"WATCHDOG": 1})
    first = told(manager)
    for _ in range(sent):
        sock.flush()
        first += told(manager)
    sock.send_now({"WATCHDOG": 1})
    assert told(manager) == [{"WATCHDOG": "1"}], "only when there is room"
    numbers = [int(fields["STATUS"]) for fields in first]
    assert numbers == [*range(sent - MAX_KEPT), *range(sent + 5 - MAX_KEPT, sent + 5)]
    sock.close()


def fill(sock: NotifySocket) -> None:
    """Send until the manager's queue is full."""
    while not sock._kept:
        sock.send({"STATUS": "busy"})


def drain(sock: NotifySocket, manager: Manager) -> list[Told]:
    """What the manager reads when it goes on."""
    read = manager.waiting()
    while sock._kept:
        sock.flush()
        read += manager.waiting()
    return read


def test_pings_and_extensions_that_wait_take_the_place_of_nothing_else(manager: Manager) -> None:
    sock = NotifySocket(manager.env, os.getpid())
    service = ServiceManager(sock, History(), clock=lambda: 4.2)
    fill(sock)
    service.enter(State.RUNNING)
    for _ in range(MAX_KEPT):
        service.ping()
        service.tick(State.RELOADING, False)
    told = [one.fields for one in drain(sock, manager) if one.fields != {"STATUS": "busy"}]
    assert told == [SERVING]
    sock.close()


def test_a_descriptor_that_waits_for_the_manager_stays_what_it_was(manager: Manager) -> None:
    sock = NotifySocket(manager.env, os.getpid())
    fill(sock)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number, name = listener.fileno(), listener.getsockname()
        sock.send({"FDSTORE": 1}, number)
    with open(os.devnull) as other:
        assert other.fileno() == number
        (descriptor,) = drain(sock, manager)[-1].descriptors
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        assert copy.getsockname() == name
    fill(sock)
    sock.send({"FDSTORE": 1}, descriptor)
    duplicate = sock._kept[-1][1]
    for number in range(MAX_KEPT):
        sock.send({"STATUS": str(number)})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(duplicate)
    sock.close()


def test_it_can_be_waited_for_until_the_manager_has_done_what_it_was_told(manager: Manager) -> None:
    sock = NotifySocket(manager.env, os.getpid())
    assert not sock.wait_until_done(0)
    manager.waiting()
    reading = threading.Thread(target=lambda: os.close(manager.until("BARRIER").descriptors.pop()))
    reading.start()
    assert sock.wait_until_done(60)
    reading.join()
    assert NotifySocket({}, os.getpid()).wait_until_done(60), "there is nothing to wait for"
    sock.close()


def test_a_manager_that_is_gone_costs_one_warning(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    sock = NotifySocket(manager.env, os.getpid())
    os.unlink(manager.address)
    sock.send({"READY": 1})
    sock.send({"STATUS": "still"})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    other.bind(manager.address)
    sock.flush()
    assert [other.recv(100), other.recv(100)] == [b"READY=1", b"STATUS=still"]
    other.close()
    sock.close()


def test_the_listener_is_stored_until_a_stop_where_the_unit_has_a_store(manager: Manager) -> None:
    for store, kept in (("", False), ("0", False), ("1", True)):
        sock = NotifySocket({**manager.env, "FDSTORE": store}, os.getpid())
        service = ServiceManager(sock, History(), clock=lambda: 4.2)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service.store([listener.fileno()])
            name = listener.getsockname()
        service.enter(State.RUNNING)
        arrived = manager.waiting()
        assert [one.fields.get("FDSTORE") for one in arrived] == ([None, "1", None] if kept else [None])
        service.enter(State.STOPPING)
        removed = {"FDSTOREREMOVE": "1", "FDNAME": STORED}
        assert told(manager) == ([removed, STOPPING] if kept else [STOPPING])
        if kept:
            assert [one.fields for one in arrived[:2]] == [removed, {"FDSTORE": "1", "FDNAME": STORED}]
            (descriptor,) = arrived[1].descriptors
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                assert copy.getsockname() == name
        sock.close()


HUB = {"told_by": 9, "is_main": False, "watchdog": None}
MAIN = {"told_by": 42, "is_main": True, "watchdog": 30.0}
SHOP = {"kind": "systemd", "unit": "shop.service", "restart": "unknown"}


@pytest.mark.parametrize(
    ("by", "access", "severity"),
    [
        (HUB, "main", "problem"),
        (HUB, "exec", "problem"),
        (HUB, "none", "problem"),
        (HUB, "", "note"),
        (HUB, "all", None),
        (MAIN, "main", None),
        (MAIN, "none", "problem"),
        ({**MAIN, "is_main": None}, "main", None),
        (None, "none", None),
    ],
)
def test_doctor_says_what_systemd_does_not_hear(
    by: dict[str, Any] | None,
    access: str,
    severity: str | None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_ctl.client.supervision.ASK_TIMEOUT", 30.0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho MainPID=42\necho NotifyAccess={access}\n")
    systemctl.chmod(0o755)
    found = service_findings({"service_manager": by, "supervisor": SHOP, "pid": 42})
    assert [finding["severity"] for finding in found] == ([] if severity is None else [severity])
    if severity:
        assert found[0]["remedy"] == "set NotifyAccess=all in shop.service"
        assert f"what pid {by and by['told_by']} tells systemd" in found[0]["message"]


def run(serve: Serve, program: Program, manager: Manager, *options: str) -> Server:
    """`flask-ctl run`, a service of the manager."""
    command = [sys.executable, "-m", "flask_ctl_cli", "run", "--app", "sample", "--port", "0", *options]
    return serve(command=command, cwd=program.directory, ready=False, env=manager.env)


def test_a_process_tells_of_its_start_reloads_drains_and_its_stop(
    serve: Serve, program: Program, manager: Manager
) -> None:
    server = run(serve, program, manager)
    ready = manager.until("READY")
    assert (ready.pid, ready.fields) == (server.pid, SERVING)
    assert manager.all == [ready], "only once it serves"
    assert server.get("/version") == (200, b"old")
    status = server.status()
    assert status["service_manager"] == {"told_by": server.pid, "is_main": None, "watchdog": None}
    assert f"the service manager, from pid {server.pid}\n" in render_result("status", status) + "\n"

    program.edit("broken", "raise RuntimeError('not today')")
    began = time.monotonic()
    os.kill(server.pid, signal.SIGHUP)  # as systemd does with Type=notify-reload
    reloading, refused = manager.until("RELOADING"), manager.until("READY")
    assert set(reloading.fields) == {"RELOADING", "MONOTONIC_USEC", "STATUS", "EXTEND_TIMEOUT_USEC"}
    assert began < int(reloading.fields["MONOTONIC_USEC"]) / 1e6 <= reloading.at
    assert refused.fields["READY"] == "1"
    assert refused.fields["STATUS"].endswith("RuntimeError: not today")

    program.edit("new")
    assert server.reload()["generation"] == 2
    reloading, leaving, ready = stages(manager)
    assert "RELOADING" in reloading.fields
    assert leaving.fields == {"EXTEND_TIMEOUT_USEC": "70000000"}, "the next image may take its time"
    assert ready.fields == {"READY": "1", "STATUS": "serving, generation 2"}
    assert {one.pid for one in manager.all} == {server.pid}, "no preflight has told anything"

    with server.client() as client:
        client.call("drain")
        client.call("resume")
    assert not any("STOPPING" in one.fields for one in manager.waiting())
    held = server.begin("/hold/a")
    os.kill(server.pid, signal.SIGTERM)
    assert manager.until("STOPPING").fields == STOPPING
    assert manager.next().fields == EXTENDED, "and again while it drains"
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0
    assert not stages(manager)


def test_gunicorn_does_not_tell_that_it_is_ready_before_a_worker_serves(
    no_hubs_left: None, serve: Serve, program: Program, manager: Manager
) -> None:
    server = run(serve, program, manager, "--server", "gunicorn")
    ready = manager.until("READY")
    assert manager.all == [ready]
    hub = all_there(server, 1).status()["control"]["hub"]
    assert (ready.pid, ready.fields) == (hub, SERVING)
    server.reload(preflight=False)
    assert [next(iter(one.fields)) for one in stages(manager)] == ["RELOADING", "READY"]
    with server.client() as client:
        client.stop()
    assert manager.until("STOPPING").fields == STOPPING
    server.wait()
    assert {one.pid for one in manager.all} == {hub}
