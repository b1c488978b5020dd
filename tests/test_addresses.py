"""Addresses as they are written, and texts that are not addresses."""

from __future__ import annotations

import os
import pathlib

import pytest

from flask_ctl import ConfigurationError, ControlClient, NotRunning, live_instances
from flask_ctl.system.addresses import (
    Address,
    as_list,
    default_sockets,
    from_environment,
    is_loopback,
    own_uid,
    parse_address,
    registry_directories,
    resolve,
    users_with_registry,
)

FORMS = {
    "/tmp/a.sock": Address("unix", "/tmp/a.sock"),
    "unix:/tmp/a.sock": Address("unix", "/tmp/a.sock"),
    "/tmp/with:colon": Address("unix", "/tmp/with:colon"),
    "a.sock": Address("unix", os.path.abspath("a.sock")),
    "./a:b": Address("unix", os.path.abspath("a:b")),
    "/tmp/../tmp//a.sock": Address("unix", "/tmp/a.sock"),
    "ipc:///tmp/a.zmq": Address("ipc", "/tmp/a.zmq"),
    "ipc://a.zmq": Address("ipc", os.path.abspath("a.zmq")),
    "ipc:///tmp/grüße": Address("ipc", "/tmp/grüße"),
    "tcp://127.0.0.1:5555": Address("tcp", host="127.0.0.1", port=5555),
    "tcp://localhost:1": Address("tcp", host="localhost", port=1),
    "tcp://*:65535": Address("tcp", host="*", port=65535),
    "tcp://[::1]:5555": Address("tcp", host="::1", port=5555),
    "tcp://[::]:5555": Address("tcp", host="::", port=5555),
}


@pytest.mark.parametrize(("text", "address"), FORMS.items(), ids=FORMS)
def test_an_address_is_understood(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("address", FORMS.values(), ids=FORMS)
def test_what_is_shown_leads_to_the_same_address(address: Address) -> None:
    assert parse_address(str(address)) == address


BAD = [
    "",
    "unix:",
    "ipc://",
    "ipc:///a\0b",
    "/a\0b",
    "ipc://@abstract",
    "@abstract",
    "tcp://",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://:5555",
    "tcp://127.0.0.1:0",
    "tcp://127.0.0.1:*",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:-1",
    "tcp://127.0.0.1:+1",
    "tcp://127.0.0.1: 1",
    "tcp://127.0.0.1:5_5",
    "tcp://127.0.0.1:٣",
    "tcp://127.0.0.1:http",
    "tcp://127.0.0.1:5555/",
    "tcp://::1:5555",
    "tcp://[::1:5555",
    "tcp://a b:1",
    "tcp://[localhost]:1",
    "tcp://grüße:1",
    "tcp://user@host:1",
    "tcp://h;h2:1",
    "tcp://127.0.0.1:1\n",
    "udp://127.0.0.1:5555",
    "http://127.0.0.1:5555",
    "inproc://x",
    "tcp:127.0.0.1:5555",
    "ipc:/tmp/x",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_address_is_refused_with_the_forms_that_there_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write .*tcp://host:port"):
        parse_address(text)


@pytest.mark.parametrize("text", ["tcp://*:5555", "tcp://no-such-host.invalid:1", *BAD[1:]])
def test_a_client_refuses_it_before_it_connects(text: str) -> None:
    with ControlClient(text) as client, pytest.raises((ConfigurationError, NotRunning)):
        client.ping(timeout=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_what_only_this_machine_reaches_is_loopback(host: str) -> None:
    assert is_loopback(parse_address(f"tcp://{host}:5555"))


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "[::]", "192.0.2.1", "[2001:db8::1]", "0"])
def test_what_others_reach_is_not(host: str) -> None:
    assert not is_loopback(parse_address(f"tcp://{host}:5555"))


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"tcp://no-such-host\.invalid:5555: "):
        resolve(parse_address("tcp://no-such-host.invalid:5555"))


def test_a_setting_may_hold_one_or_several(tmp_path: pathlib.Path) -> None:
    assert as_list(None) == as_list("") == as_list([]) == []
    assert as_list("tcp://127.0.0.1:1") == ["tcp://127.0.0.1:1"]
    assert as_list(tmp_path) == [str(tmp_path)]
    assert as_list(["ipc:///x", tmp_path]) == ["ipc:///x", str(tmp_path)]


def test_the_environment_may_hold_one_or_a_json_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, addresses in {
        "": [],
        "ipc:///x": ["ipc:///x"],
        '["/x", "tcp://127.0.0.1:1"]': ["/x", "tcp://127.0.0.1:1"],
        '["/x"': ['["/x"'],
    }.items():
        monkeypatch.setenv("FLASK_CTL_SOCKET", text)
        assert from_environment() == addresses


# The directories of running instances


@pytest.fixture
def machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory with a `tmp` and a `run` of its own, and no XDG_RUNTIME_DIR."""
    for name in ("tmp", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("flask_ctl.system.addresses.RUNTIME", str(tmp_path / "run"))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    return tmp_path


def directory(path: pathlib.Path, uid: int | None = None) -> str:
    path.mkdir(mode=0o700, parents=True)
    if uid is not None:
        os.chown(path, uid, uid)
    return str(path)


def test_names_in_a_temporary_directory_do_not_hide_the_users_behind_them(machine: pathlib.Path) -> None:
    """Anybody can make them, but only a user can make a directory of that user."""
    mine = os.geteuid()
    directory(machine / f"tmp/flask-ctl-{mine}")
    for number in range(1200):
        (machine / f"tmp/flask-ctl-{mine + 1 + number}").mkdir(mode=0o700)
    for name in (f"flask-ctl-0{mine}", f"flask-ctl-{mine}x", "flask-ctl-", "flask-ctl-٣", "flask-ctl-99999999999"):
        (machine / "tmp" / name).mkdir()
    assert users_with_registry() == [mine]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_user_is_found_by_either_directory(machine: pathlib.Path) -> None:
    directory(machine / "tmp/flask-ctl-54321", 54321)
    directory(machine / "run/54322/flask-ctl", 54322)
    directory(machine / "run/54323/flask-ctl", 54322)
    (machine / "run/54324").mkdir()
    assert users_with_registry() == [54321, 54322]


@pytest.mark.parametrize("given", [None, "another user's", "gone"])
def test_a_user_without_a_runtime_directory_in_the_environment_still_has_one(
    machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """As in a cron job, and after su."""
    mine = os.geteuid()
    if given == "another user's":
        other = directory(machine / "run/other")
        monkeypatch.setattr("flask_ctl.system.addresses._belongs_to", lambda directory, uid: False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
    elif given == "gone":
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(machine / "run/gone"))
    places = [directory(machine / f"tmp/flask-ctl-{mine}"), directory(machine / f"run/{mine}/flask-ctl")]
    assert registry_directories(mine) == places


def test_a_runtime_directory_in_the_environment_is_the_only_one(
    machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory(machine / f"run/{os.geteuid()}/flask-ctl")
    own = directory(machine / "own/flask-ctl")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(machine / "own"))
    assert registry_directories(os.geteuid()) == [own]


def test_a_system_without_uids_has_no_registry(machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Windows: nothing is found there, and nothing fails."""
    monkeypatch.delattr(os, "geteuid")
    assert registry_directories(own_uid()) == []
    assert (default_sockets(), live_instances()) == ([], [])
