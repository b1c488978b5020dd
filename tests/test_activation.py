"""Sockets that systemd has opened: by their names, over reloads and stops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from harness import TIMEOUT, Program, Serve, Server, first_quick, raw, until
from managers import Manager

from flask_ctl import ConfigurationError, ControlClient, RemoteProtocolError, render_result, server_program
from flask_ctl.servers import urls
from flask_ctl.system.activation import PREFLIGHT, STORED, Activation, passed_names
from flask_ctl.system.credentials import peer_credentials
from flask_ctl.system.handover import Handover
from flask_ctl.system.processes import program_name

ACTIVATOR = pathlib.Path(__file__).parent / "activator.py"
BASE = 300
"""Where the sockets of these tests are passed, instead of 3."""


def passed(*names: str, **more: str) -> dict[str, str]:
    """The environment of this process, if systemd had passed so many sockets to it."""
    fixed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    return {**fixed, **more}


def test_the_sockets_of_another_process_are_not_ours() -> None:
    assert passed_names(passed("http", "control")) == ["http", "control"]
    assert passed_names(passed("http", LISTEN_PID="1")) == []
    assert passed_names({}) == []
    assert passed_names(passed("http", LISTEN_FDS="many")) == []
    assert passed_names(passed("http", LISTEN_FDS="2")) == ["http", "unknown"]


@pytest.fixture
def sockets(short_path: pathlib.Path) -> Iterator[dict[str, socket.socket]]:
    """One of each kind."""
    made = {kind: socket.socket(socket.AF_UNIX) for kind in ("unix", "abstract", "deaf")}
    made["unix"].bind(str(short_path / "unix"))
    made["deaf"].bind(str(short_path / "deaf"))
    made["abstract"].bind(f"\0{short_path}")
    for kind in ("unix", "abstract"):
        made[kind].listen()
    made["tcp"] = socket.create_server(("127.0.0.1", 0))
    made["datagram"] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made["datagram"].bind(str(short_path / "datagram"))
    yield made
    for sock in made.values():
        sock.close()


WRONG = {
    "a unit without names": ([("shop.socket", "tcp")], "'shop.socket', which is not one of http, control; set FileDes"),
    "two of a name": ([("http", "tcp"), ("http", "unix")], "two sockets named http"),
    "control by TCP": ([("control", "tcp")], "passes as control is not a Unix socket at a path that listens"),
    "control without a file": ([("control", "abstract")], "passes as control"),
    "HTTP without a file": ([("http", "abstract")], "passes as http is not a TCP or Unix socket that listens"),
    "a datagram socket": ([("http", "datagram")], "Accept=no"),
    "a connection": ([("http", "deaf")], "Accept=no"),
    "no socket at all": ([("http", "none")], "Accept=no"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_known_is_refused(
    case: str, sockets: dict[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, message = WRONG[case]
    monkeypatch.setattr("flask_ctl.system.activation.FIRST", BASE)
    descriptors = [fcntl.fcntl(sockets[kind], fcntl.F_DUPFD, BASE) for _, kind in given if kind in sockets]
    try:
        with pytest.raises(ConfigurationError, match=message):
            Activation().take(passed(*(name for name, _ in given)))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_they_are_kept_at_their_numbers_for_the_next_image_alone(
    sockets: dict[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_ctl.system.activation.FIRST", BASE)
    descriptor = fcntl.fcntl(sockets["tcp"], fcntl.F_DUPFD, BASE)
    os.set_inheritable(descriptor, True)
    activation = Activation()
    activation.take(passed("http"))
    assert activation.addresses == {"http": list(sockets["tcp"].getsockname())}
    assert not os.get_inheritable(descriptor), "a program that the app starts"
    activation.duplicate("http").close()
    activation.keep()
    assert os.get_inheritable(descriptor)
    os.close(descriptor)
    preflight = Activation()
    preflight.take(activation.for_preflight())
    assert preflight.addresses == activation.addresses
    assert list(activation.for_preflight()) == [PREFLIGHT]
    assert Activation().for_preflight() == {}


@pytest.fixture
def manager(short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """The service manager of this process, which closes what it is given late."""
    manager = Manager(short_path / "notify")
    monkeypatch.setattr("flask_ctl.system.program.program.environment", manager.env)
    monkeypatch.setattr(urls, "REMOVAL_TIMEOUT", 0)
    yield manager
    manager.close()


REMOVED = [{"FDSTOREREMOVE": "1", "FDNAME": STORED}, {"BARRIER": "1"}]


@pytest.mark.parametrize(("server", "name"), [("werkzeug", "both.test"), ("waitress", "127.0.0.1")])
def test_a_listener_that_was_stored_is_taken_for_a_name_that_has_its_address_among_others(
    sockets: dict[str, socket.socket], manager: Manager, monkeypatch: pytest.MonkeyPatch, server: str, name: str
) -> None:
    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "both.test"
        return [(socket.AF_INET6, 1, 6, "", ("::1", port, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("flask_ctl.system.activation.FIRST", BASE)
    monkeypatch.setattr(urls, "activation", activation := Activation())
    monkeypatch.setattr(urls, "inherited", inherited := Handover({}))
    storable: set[str] = set()
    monkeypatch.setattr(urls, "storable", storable)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    descriptor = fcntl.fcntl(sockets["tcp"], fcntl.F_DUPFD, BASE)
    activation.take(passed(STORED))
    port = sockets["tcp"].getsockname()[1]
    assert urls.activate(server, "both.test", port) == ("both.test", port)
    assert inherited.take_listener(f"{name}:{port}") == descriptor
    assert f"{name}:{port}" in storable
    assert manager.waiting() == []
    os.close(descriptor)


def test_what_was_stored_and_does_not_listen_goes(
    sockets: dict[str, socket.socket], manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_ctl.system.activation.FIRST", BASE)
    monkeypatch.setattr(urls, "activation", activation := Activation())
    monkeypatch.setattr(urls, "inherited", inherited := Handover({}))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        fcntl.fcntl(deaf, fcntl.F_DUPFD, BASE)
        port = deaf.getsockname()[1]
    activation.take(passed(STORED))
    urls.activate("werkzeug", "127.0.0.1", port)
    assert inherited.take_listener(f"127.0.0.1:{port}") is None
    assert [one.fields for one in manager.waiting()] == REMOVED


@pytest.mark.parametrize("wanted", ["its own", "another", "any"])
def test_a_listener_that_was_stored_is_taken_for_the_address_that_it_has(
    sockets: dict[str, socket.socket], manager: Manager, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr("flask_ctl.system.activation.FIRST", BASE)
    monkeypatch.setattr(urls, "activation", activation := Activation())
    monkeypatch.setattr(urls, "inherited", inherited := Handover({}))
    monkeypatch.setattr(urls, "storable", set())
    descriptor = fcntl.fcntl(sockets["tcp"], fcntl.F_DUPFD, BASE)
    activation.take(passed(STORED))
    own = sockets["tcp"].getsockname()[1]
    port = {"its own": own, "another": own - 1, "any": 0}[wanted]
    assert urls.activate("waitress", "127.0.0.1", port) == ("127.0.0.1", port)
    taken = inherited.take_listener(f"127.0.0.1:{port}")
    assert taken == (None if wanted == "another" else descriptor)
    assert [one.fields for one in manager.waiting()] == (REMOVED if wanted == "another" else [])
    assert activation.addresses == {}, "it is not systemd's"
    if taken is None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    else:
        os.close(taken)


@pytest.mark.parametrize(
    ("server", "names", "refused"),
    [
        ("gunicorn", ["http"], ""),
        ("gunicorn", ["http", "control"], "gunicorn can be given a socket named http, and no other one, not http, con"),
        ("uwsgi", ["http"], "uwsgi can be given no sockets of systemd"),
        ("granian", ["http"], "granian can be given no sockets"),
        ("granian", [], ""),
    ],
)
def test_a_server_with_workers_gets_none_that_it_would_take_for_another(
    server: str, names: list[str], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in passed(*names).items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(ConfigurationError, match=refused):
            server_program(server, "app:app", "127.0.0.1", 8000, None)
    else:
        assert server_program(server, "app:app", "127.0.0.1", 8000, None) is not None


def activated(serve: Serve, program: Program, port: int, server: str, path: pathlib.Path) -> Server:
    """A unit that is not started, with its two sockets."""
    command = [sys.executable, "-m", "flask_ctl_cli", "run", "--app", "sample", "--server", server]
    unit = serve(
        command=[sys.executable, str(ACTIVATOR), str(path), str(port), *command],
        socket=path,
        ready=False,
        cwd=program.directory,
    )
    until(lambda: "listening" in unit.lines, lambda: f"the sockets: {unit.output}")
    return unit


def starts(unit: Server) -> list[int]:
    return [int(line.split()[1]) for line in unit.lines if line.startswith("started ")]


@pytest.mark.parametrize("server", first_quick(["waitress", "werkzeug", "cheroot", "pywsgi"]))
def test_a_server_that_is_started_by_a_connection_is_reloaded_in_place_and_stopped_until_the_next_one(
    serve: Serve, program: Program, free_port: int, short_path: pathlib.Path, server: str
) -> None:
    path = short_path / "0.sock"
    unit = activated(serve, program, free_port, server, path)
    address = ("127.0.0.1", free_port)
    assert not starts(unit)
    with unit.client() as client:
        status = client.status(timeout=TIMEOUT)
    (pid,) = starts(unit)
    assert status["pid"] == pid
    assert status["server"]["listeners"] == [f"http://127.0.0.1:{free_port}"]
    assert status["server"]["activated"] == ["control", "http"]
    assert status["control"]["sockets"] == [str(path)]
    with raw(path) as connection:
        assert peer_credentials(connection)[0] == pid, "and not the activator"
    assert unit.get("/version", address) == (200, b"old")

    program.edit("new")
    idle = HTTPConnection(*address, timeout=TIMEOUT)
    idle.connect()
    assert unit.reload()["generation"] == 2
    idle.request("GET", "/version")
    assert idle.getresponse().read() == b"new"
    idle.close()
    assert unit.status()["pid"] == pid
    with unit.client() as client:
        stopped = client.stop()
    again = "\nsystemd starts it again at the next connection to its sockets: control, http\n"
    assert render_result("stop", stopped).endswith(again)
    assert stopped.get("starts_again", True) is True
    assert path.exists(), "the file is systemd's"
    assert unit.get("/version", address) == (200, b"new")
    assert starts(unit) == [pid, unit.status()["pid"]]
    assert len(set(starts(unit))) == 2
    os.kill(unit.pid, signal.SIGTERM)
    assert unit.wait() == 0


def test_another_program_at_a_socket_of_systemds_is_told_so_at_once(
    short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, and the kernel goes on to name systemd as the listener."""
    monkeypatch.setattr("flask_ctl.client.unix.SYSTEMD", program_name(os.getpid()))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short_path / "x.sock"))
    listener.listen()
    connections = []

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                connections[-1].sendall(b"220 ready\n")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with ControlClient(str(short_path / "x.sock")) as client, pytest.raises(RemoteProtocolError, match="not speak"):
            client.ping(timeout=TIMEOUT)
        assert len(connections) <= 3
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for each in (listener, *connections):
            each.close()
