"""Addresses as they are written, and texts that are not addresses."""

from __future__ import annotations

import os
import pathlib

import pytest

from flask_ctl import ConfigurationError, ControlClient, NotRunning
from flask_ctl.system.addresses import Address, as_list, from_environment, is_loopback, parse_address, resolve

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
