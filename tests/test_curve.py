"""CURVE and plain TCP: who is let in, and how a client is told why not, each reason by its own words and exit code."""

from __future__ import annotations

import contextlib
import http.server
import os
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness import TIMEOUT, Keys, Serve, Site, first_quick, make_keys, run_cli, until
from wires import GUARD, Peer, curve_wire, zmq_wire

from flask_ctl import (
    AccessDenied,
    ConfigurationError,
    ControlClient,
    InsecureConfiguration,
    NotRunning,
    RemoteProtocolError,
    TimedOut,
)
from flask_ctl.system.addresses import parse_address
from flask_ctl.transports.factory import CurveFiles, make_listener
from flask_ctl.transports.zeromq.curve import load_public_key


@pytest.fixture
def peer(short_path: pathlib.Path, free_port: int) -> Iterator[Peer]:
    """A server with CURVE."""
    peer = Peer(curve_wire(short_path, free_port))
    yield peer
    peer.close()


@pytest.fixture
def keys(short_path: pathlib.Path) -> Keys:
    return make_keys(short_path / "own-keys")


@pytest.fixture
def address(free_port: int) -> str:
    return f"tcp://127.0.0.1:{free_port}"


@pytest.fixture
def plain(address: str) -> Iterator[Peer]:
    """A server without CURVE."""
    peer = Peer(zmq_wire(address, None))
    yield peer
    peer.close()


@contextlib.contextmanager
def http_server(port: int) -> Iterator[None]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def speaker(port: int, words: bytes) -> Iterator[None]:
    """A server that says something to everybody, and closes."""
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as sock:
                        sock.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def told(address: str, options: dict[str, Any], kind: type[Exception], words: str, exit_code: int) -> None:
    """What a client gets in Python, and on the command line."""
    with ControlClient(address, **options) as client, pytest.raises(kind, match=words):
        client.ping(timeout=TIMEOUT)
    arguments = [item for name, value in options.items() for item in (f"--{name.replace('_', '-')}", value)]
    done = run_cli("ping", "--timeout", str(TIMEOUT), "--socket", address, *arguments)
    assert done.returncode == exit_code, done.stderr
    assert address in done.stderr


# Who is refused, and why.


def test_the_wrong_server_key_is_denied(peer: Peer, keys: Keys) -> None:
    """It is another server, or somebody who wants to be taken for it."""
    options = {**peer.wire.options, "server_key": keys.server_public}
    told(peer.wire.target, options, AccessDenied, "does not have the key .*own-keys/server.pub; it is another", 5)
    assert peer.answers()


def test_an_unknown_client_key_is_denied(peer: Peer, keys: Keys) -> None:
    """The message holds the public key, for the one who may let it in."""
    public = load_public_key(keys.clients / "me.pub").decode()
    options = {**peer.wire.options, "client_key": keys.client}
    told(peer.wire.target, options, AccessDenied, "does not know your key", 5)
    with ControlClient(peer.wire.target, **options) as client, pytest.raises(AccessDenied) as caught:
        client.ping()
    assert public in caught.value.message
    assert peer.answers()


def test_no_key_where_one_is_wanted_is_denied(peer: Peer) -> None:
    told(peer.wire.target, {}, AccessDenied, "wants a key: give --client-key and --server-key", 5)


def test_a_server_that_can_not_prove_who_it_is_is_denied(plain: Peer, keys: Keys) -> None:
    told(plain.wire.target, keys.options, AccessDenied, "has no CURVE key, which would prove who it is", 5)


@pytest.mark.parametrize("with_keys", [False, True])
def test_where_nobody_listens_nothing_is_running(address: str, keys: Keys, with_keys: bool) -> None:
    told(address, keys.options if with_keys else {}, NotRunning, "nothing is running at", 3)


@pytest.mark.parametrize("with_keys", [False, True])
def test_an_http_server_does_not_speak_this(free_port: int, address: str, keys: Keys, with_keys: bool) -> None:
    with http_server(free_port):
        told(address, keys.options if with_keys else {}, RemoteProtocolError, "does not speak ZeroMQ", 8)


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-OpenSSH\r\n", b"\xff", b"\xff" * 64, bytes(64)])
def test_a_server_of_another_protocol_is_reported(free_port: int, address: str, words: bytes) -> None:
    """What it says may be lost, because it ends the connection before it has read what the client says."""
    with speaker(free_port, words):
        told(address, {}, RemoteProtocolError, "does not speak ZeroMQ|ends every connection", 8)


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_silent_server_is_a_timeout(free_port: int, address: str, keys: Keys, with_keys: bool) -> None:
    options = keys.options if with_keys else {}
    with socket.create_server(("127.0.0.1", free_port)):
        with ControlClient(address, **options) as client, pytest.raises(TimedOut, match="it is still there"):
            client.ping(timeout=0.2)
        assert run_cli("ping", "--timeout", "0.2", "--socket", address).returncode == 4


@pytest.mark.parametrize("given", ["client_key", "server_key"])
def test_one_key_alone_is_not_enough(address: str, keys: Keys, given: str) -> None:
    client = ControlClient(address, **{given: keys.options[given]})
    with pytest.raises(ConfigurationError, match="a key alone is not enough; give --"):
        client.ping()


def test_keys_may_stand_in_the_environment(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_CTL_CLIENT_KEY", peer.wire.options["client_key"])
    monkeypatch.setenv("FLASK_CTL_SERVER_KEY", load_public_key(peer.wire.options["server_key"]).decode())
    with ControlClient(peer.wire.target) as client:
        assert client.ping()["pong"]
    assert run_cli("ping", "--socket", peer.wire.target).returncode == 0


def test_a_secret_that_others_can_read_is_not_used(peer: Peer, keys: Keys) -> None:
    os.chmod(keys.client, 0o644)
    client = ControlClient(peer.wire.target, **keys.options)
    with pytest.raises(InsecureConfiguration, match="can be read by others"):
        client.ping()


# Keys that come and go.


def clients_of(peer: Peer) -> pathlib.Path:
    return pathlib.Path(peer.wire.options["client_key"]).parent / "clients"


def test_a_key_that_is_added_is_let_in_and_one_that_is_removed_shut_out_at_once(peer: Peer, keys: Keys) -> None:
    """Over the connection that is there, too."""
    options = {**peer.wire.options, "client_key": keys.client}
    added = clients_of(peer) / "added.pub"
    with ControlClient(peer.wire.target, **options) as client:
        with pytest.raises(AccessDenied):
            client.ping()
        added.write_text((keys.clients / "me.pub").read_text())
        assert client.ping()["pong"]
        added.unlink()
        with pytest.raises(AccessDenied):
            client.ping()
    assert peer.answers()


def test_a_key_that_is_replaced_shuts_out_the_old_one(peer: Peer, keys: Keys) -> None:
    with peer.client() as client:
        assert client.ping()["pong"]
        (clients_of(peer) / "me.pub").write_text((keys.clients / "me.pub").read_text())
        with pytest.raises(AccessDenied):
            client.ping()
        with ControlClient(peer.wire.target, **{**peer.wire.options, "client_key": keys.client}) as other:
            assert other.ping()["pong"]


@pytest.mark.parametrize("spoil", ["others can write", "gone"])
def test_a_spoiled_directory_shuts_out_everybody_until_it_is_mended(
    peer: Peer, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    clients = clients_of(peer)
    with peer.client() as client:
        assert client.ping()["pong"]
        if spoil == "gone":
            clients.rename(clients.with_name("moved"))
        else:
            clients.chmod(0o777)
        with pytest.raises(AccessDenied):
            client.ping()
        with peer.client() as other, pytest.raises(AccessDenied):
            other.ping()
        if spoil == "gone":
            clients.with_name("moved").rename(clients)
        else:
            clients.chmod(0o700)
        assert peer.answers()
    assert str(clients) in caplog.text
    assert peer.server.restarts == 0


# Plain TCP.


def test_over_plain_tcp_anybody_may_look_and_nobody_touch(serve: Serve, address: str) -> None:
    server = serve(socket=address)
    with server.client() as client:
        assert client.status()["pid"] == server.pid
        assert client.call("look") == "old"
        for command in (client.stop, client.reload, lambda: client.call("greet", name="x")):
            with pytest.raises(AccessDenied, match="CTL_TCP_OPERATE"):
                command()
    done = run_cli("stop", "--socket", address)
    assert done.returncode == 5
    assert "CTL_TCP_OPERATE" in done.stderr
    assert "may operate" not in server.output
    assert server.status()["state"] == "running"


def test_ctl_tcp_operate_lifts_that_with_a_warning(serve: Serve, address: str) -> None:
    server = serve(socket=address, env={"FLASK_CTL_TCP_OPERATE": "true"})
    assert f"every user of this machine may operate the app over {address} (CTL_TCP_OPERATE)" in server.output
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.parametrize("host", first_quick(["0.0.0.0", "*", "[::]"]))
@pytest.mark.parametrize("operate", ["false", "true"])
def test_a_door_to_the_network_without_curve_keeps_the_app_from_starting(
    serve: Serve, free_port: int, host: str, operate: str
) -> None:
    """Whether or not it is said that anybody may operate: that is for this machine."""
    env = {"FLASK_CTL_TCP_OPERATE": operate}
    server = serve(socket=f"tcp://{host}:{free_port}", env=env, ready=False)
    assert server.wait() == 1
    assert "can be reached from the network, where anybody could send commands" in server.output
    with pytest.raises(InsecureConfiguration):
        make_listener(parse_address(f"tcp://{host}:{free_port}"), GUARD, CurveFiles())


def test_with_curve_it_may_listen_to_the_network(serve: Serve, free_port: int, keys: Keys) -> None:
    server = serve(socket=Site(f"tcp://0.0.0.0:{free_port}", keys), ready=False)
    address = f"tcp://127.0.0.1:{free_port}"
    with ControlClient(address, **keys.options) as client:
        until(lambda: _answers(client), "an answer")
        assert client.stop()["outcome"] == "drained"
    assert server.wait() == 0


def _answers(client: ControlClient) -> bool:
    with contextlib.suppress(NotRunning):
        return bool(client.ping()["pong"])
    return False


def test_ipv6_works_too(serve: Serve, free_port: int, keys: Keys) -> None:
    server = serve(socket=Site(f"tcp://[::1]:{free_port}", keys))
    with server.client() as client:
        assert client.endpoint == f"tcp://[::1]:{free_port}"
        assert client.stop()["outcome"] == "drained"


HALVES = {
    "the key alone": ("CTL_CURVE_KEY", "CTL_CURVE_CLIENTS"),
    "the clients alone": ("CTL_CURVE_CLIENTS", "CTL_CURVE_KEY"),
}


@pytest.mark.parametrize(("given", "missing"), HALVES.values(), ids=HALVES)
def test_half_of_the_settings_is_an_error_that_names_the_other_half(
    serve: Serve, address: str, keys: Keys, given: str, missing: str
) -> None:
    env = {f"FLASK_{given}": keys.server_env[f"FLASK_{given}"]}
    server = serve(socket=address, env={**env, "FLASK_CTL_REQUIRED": "true"}, ready=False)
    assert server.wait() == 1
    assert f"CURVE needs {missing}, too" in server.output


def test_a_loose_server_key_keeps_the_app_from_starting(serve: Serve, address: str, keys: Keys) -> None:
    os.chmod(keys.server, 0o640)
    server = serve(socket=Site(address, keys), ready=False)
    assert server.wait() == 1
    assert "can be read by others" in server.output


def test_a_port_that_is_taken_costs_a_warning(serve: Serve, address: str, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        server = serve(socket=address, ready=False)
        until(lambda: f"can't listen at {address}: it is in use" in server.output, "a warning")
        until(lambda: "Running on" in server.output, "it serves")


def test_a_key_has_the_role_that_its_name_is_given(serve: Serve, address: str, keys: Keys) -> None:
    """Being let in means to observe."""
    watcher = keys.new_client("watcher", allowed=True)
    server = serve(socket=Site(address, keys))
    with ControlClient(address, server_key=keys.server_public, client_key=watcher) as client:
        assert client.status()["pid"] == server.pid
        with pytest.raises(AccessDenied, match="the key 'watcher' may observe this server but not operate it"):
            client.stop()
    assert server.client().stop()["outcome"] == "drained"
