"""New code that asks for another HTTP address: it is bound for trial, and a taken one is a refused reload."""

from __future__ import annotations

import errno
import pathlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from harness import Program, Serve, Server, first_quick, get, run_cli
from servers import SERVERS

from flask_ctl.servers import checkconfig
from flask_ctl.servers import urls as listening
from flask_ctl.servers.checkconfig import ConfigCheck
from flask_ctl.servers.urls import end_preflight, try_to_bind


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


# Binding for trial


def test_a_free_address_is_free_again_afterwards(free_port: int) -> None:
    for _ in range(2):
        try_to_bind(("127.0.0.1", free_port))
    with socket.create_server(("127.0.0.1", free_port)):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", ""])
def test_a_taken_one_is_named(taken: int, host: str) -> None:
    with pytest.raises(OSError, match=f"{host}:{taken} can't be bound: Address already in use") as failure:
        try_to_bind((host, taken))
    assert failure.value.errno == errno.EADDRINUSE


def test_one_that_is_no_address_of_this_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1:80 can't be bound"):
        try_to_bind(("192.0.2.1", 80))


def test_sockets_that_share_a_port_share_it(free_port: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", free_port))
        other.listen()
        try_to_bind(("127.0.0.1", free_port), shared=True)
        with pytest.raises(OSError, match="can't be bound"):
            try_to_bind(("127.0.0.1", free_port))


def test_unix_sockets_are_left_alone(tmp_path: pathlib.Path) -> None:
    try_to_bind(str(tmp_path / "http.sock"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A preflight, as far as addresses are concerned, that has come to its end when `ended` is not empty."""
    ended: list[Any] = []
    for module in (listening, checkconfig):
        monkeypatch.setattr(module, "preflighting", True)
    monkeypatch.setattr(listening, "end_if_preflighting", ended.append)
    return ended


def test_what_is_served_is_not_bound(preflight: list[Any], monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(listening, "served", [f"127.0.0.1:{taken}"])
    end_preflight(print, ("127.0.0.1", taken))
    assert preflight == [print]


@pytest.mark.parametrize("count", [0, 1])
def test_every_address_is_bound(
    preflight: list[Any], monkeypatch: pytest.MonkeyPatch, taken: int, free_port: int, count: int
) -> None:
    monkeypatch.setattr(listening, "served", [])
    with pytest.raises(OSError, match=str(taken)):
        end_preflight(print, *[("127.0.0.1", free_port)] * count, ("127.0.0.1", taken))
    assert not preflight


class Configuration:
    reuse_port = False

    def __init__(self, *address: Any) -> None:
        self.address = list(address)


@pytest.mark.parametrize("keeps", ["all", "one", "none"])
def test_gunicorn_binds_all_or_nothing(
    preflight: list[Any], monkeypatch: pytest.MonkeyPatch, taken: int, free_port: int, keeps: str
) -> None:
    """An address that is kept beside a new one is still taken by old workers."""
    served, other = ("127.0.0.1", taken), ("127.0.0.1", free_port)
    monkeypatch.setattr(checkconfig, "served", [str(served)])
    gunicorn = ConfigCheck()
    gunicorn._configuration = Configuration(*{"all": [served], "one": [other, served], "none": [other]}[keeps])
    if keeps == "one":
        with pytest.raises(OSError, match=str(taken)):
            gunicorn.check()
    else:
        gunicorn.check()


# Real servers


def refused(server: Server, port: int) -> None:
    done = run_cli("reload", "-s", server.socket)
    assert done.returncode == 7, done
    assert f"127.0.0.1:{port} can't be bound" in done.stderr
    assert "Address already in use" in done.stderr
    assert "The old code still serves." in done.stderr
    assert server.get("/version") == (200, b"old")


SINGLE = ["werkzeug", "waitress", "cheroot", "pywsgi"]


def moved(program: Program, port: int) -> None:
    """Have the program ask for another port."""
    text = program.file.read_text()
    for before in ("port=0", '("127.0.0.1", 0)', '{"port": 0}'):
        last = before.rindex("0")
        text = text.replace(before, f"{before[:last]}{port}{before[last + 1 :]}")
    program.file.write_text(text)


@pytest.mark.parametrize("name", first_quick(SINGLE))
def test_a_taken_address_is_a_refused_reload_and_a_free_one_is_taken_by_the_new_code(
    start: Serve, program: Program, taken: int, free_port: int, name: str
) -> None:
    server = start(SERVERS[name])
    program.edit("new")
    moved(program, taken)
    refused(server, taken)
    program.edit("new")
    moved(program, free_port)
    assert server.reload()["generation"] == 2
    assert get(("127.0.0.1", free_port), "/version") == (200, b"new")


def test_gunicorns_new_addresses_are_bound_for_trial_and_one_that_is_free_is_taken(
    start: Serve, program: Program, free_port: int, taken: int
) -> None:
    config = program.directory / "gunicorn.conf.py"
    config.write_text(f"bind = ['127.0.0.1:{free_port}']\n")
    one = SERVERS["gunicorn sync, 1 worker"]
    server = start(replace(one, command=[word for word in one.command if word not in ("-b", "127.0.0.1:0")]))
    config.write_text(f"bind = '127.0.0.1:{taken}'\n")
    refused(server, taken)
    # Its old workers have what it would bind anew.
    config.write_text(f"bind = ['127.0.0.1:{free_port}', '127.0.0.1:0']\n")
    refused(server, free_port)
    program.edit("new")
    config.write_text("bind = '127.0.0.1:0'\n")
    assert server.reload()["generation"] == 2
    assert server.address[1] != free_port
    assert server.get("/version") == (200, b"new")
