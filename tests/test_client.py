"""`ControlClient`: what sibling processes see, of good servers, bad ones and none."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from harness import TIMEOUT, Pending, Serve, Server, raw, until

from flask_ctl import (
    AccessDenied,
    CommandError,
    ConfigurationError,
    ControlClient,
    ControlError,
    LocalProtocolError,
    NotRunning,
    RemoteProtocolError,
    ServerDied,
    ServerReloaded,
    TimedOut,
)


def test_commands_of_the_app_take_and_give_json(shared: Server) -> None:
    with shared.client() as client:
        assert client.call("greet", name="you", times=2) == {"greeting": "hello youhello you"}


def test_one_client_asks_again_and_again_and_after_close(shared: Server) -> None:
    client = shared.client()
    assert client.ping()["pong"]
    client.close()
    assert client.ping()["pong"]
    client.close()
    client.close()


@pytest.mark.parametrize("address", ["{}/x.sock"], ids=["unix"])
def test_a_kept_connection_that_a_reload_has_ended_is_made_anew(
    serve: Serve, short_path: pathlib.Path, address: str
) -> None:
    server = serve(socket=address.format(short_path))
    with server.client() as kept:
        assert kept.call("greet", name="you") == {"greeting": "hello you"}
        assert server.reload()["generation"] == 2
        assert kept.call("greet", name="me") == {"greeting": "hello me"}


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda client: client.call("nope"), -32601),
        (lambda client: client.call("greet"), -32602),
        (lambda client: client.call("greet", name=5), -32602),
        (lambda client: client.call("fail", message="boo"), -32603),
        (lambda client: client.stop("gentle"), -32602),
    ],
    ids=["unknown", "missing", "type", "exception", "mode"],
)
def test_a_refusal_is_an_exception_with_its_code_and_the_server_goes_on(
    shared: Server, call: Callable[[ControlClient], Any], code: int
) -> None:
    with shared.client() as client, pytest.raises(CommandError) as refusal:
        call(client)
    assert refusal.value.code == code
    assert shared.status()["state"] == "running"


def test_the_traceback_of_a_failed_command_is_in_the_servers_log_only(shared: Server) -> None:
    with shared.client() as client, pytest.raises(CommandError) as refusal:
        client.call("fail", message="boo")
    assert refusal.value.message == "ValueError: boo"
    assert "Traceback" not in f"{refusal.value.message}{refusal.value.data}"
    until(lambda: "Traceback" in shared.output, "the traceback")


@pytest.mark.parametrize("name", ["grace", "delay"])
def test_negative_durations_are_refused_by_the_server(shared: Server, name: str) -> None:
    with raw(shared.socket) as sock:
        sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"stop","params":{"%s":-1}}\n' % name.encode())
        assert json.loads(sock.recv(65536))["error"]["code"] == -32602
    assert shared.status()["state"] == "running"


@pytest.mark.parametrize("value", [-1, -2, float("inf"), float("nan"), "5"], ids=str)
@pytest.mark.parametrize("name", ["grace", "delay", "kill_after", "timeout"])
def test_what_is_no_duration_is_not_sent(name: str, value: Any) -> None:
    with ControlClient("/no/such.sock") as client, pytest.raises(LocalProtocolError, match=name):
        client.stop(**{name: value})


def test_what_is_not_json_is_not_sent(shared: Server) -> None:
    with shared.client() as client, pytest.raises(LocalProtocolError):
        client.call("greet", name=object())


@pytest.mark.parametrize("kind", ["nothing", "stale"])
def test_where_nothing_runs_it_says_so(short_path: pathlib.Path, kind: str) -> None:
    path = short_path / "x.sock"
    if kind == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    with pytest.raises(NotRunning, match="nothing is running at"):
        ControlClient(path).ping()


@pytest.mark.parametrize("address", ["off", "nonsense:x", "/" + "x" * 200], ids=["off", "scheme", "long"])
def test_what_is_no_address_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigurationError):
        ControlClient(address).ping()


@pytest.fixture
def stopped(serve: Serve) -> Server:
    """A server that SIGSTOP holds."""
    return serve().suspend()


@pytest.mark.parametrize("method", ["ping", "status", "stop"])
def test_a_server_that_hangs_is_a_timeout_and_still_there(stopped: Server, method: str) -> None:
    client = ControlClient(stopped.socket)
    with client, pytest.raises(TimedOut, match="still there"):
        getattr(client, method)(timeout=0.2)
    assert stopped.process.poll() is None


def test_kill_after_ends_the_very_process_that_hangs(stopped: Server) -> None:
    result = stopped.client().stop(kill_after=0.2)
    assert result["outcome"] == "killed"
    assert result["pid"] == stopped.pid
    assert stopped.wait() == -signal.SIGKILL


def test_kill_after_ends_both_processes_of_the_reloader(serve: Serve) -> None:
    server = serve("app.run debug")
    held = server.begin("/hold/a")
    result = server.client().stop(kill_after=0.2)
    assert (result["outcome"], result["cut"]) == ("killed", 1)
    assert server.wait() == -signal.SIGKILL
    with pytest.raises(OSError):  # noqa: PT011
        held.result()


def test_kill_after_does_nothing_to_a_server_that_ends_in_time(serve: Serve) -> None:
    server = serve()
    assert server.client().stop(kill_after=TIMEOUT)["outcome"] == "drained"
    assert server.wait() == 0


def test_kill_after_ends_what_threads_keep_alive_and_tells_what_was_drained(serve: Serve) -> None:
    from harness import PYTHON

    server = serve(command=[*PYTHON, "sample.py", "keeper"])
    server.get("/")
    result = server.client().stop(kill_after=0.3)
    assert (result["outcome"], result["cut"]) == ("killed", 0)


def test_a_server_that_is_killed_meanwhile_has_died(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.process.kill()
    assert stop.result()["outcome"] == "died"
    with pytest.raises(OSError):  # noqa: PT011
        held.result()


def test_a_command_whose_server_is_killed_meanwhile_raises_server_died(serve: Serve) -> None:
    server = serve()
    call = Pending.call(lambda: server.call("wait_for", name="a"))
    until(lambda: "waits for a" in server.lines, "the command")
    server.process.kill()
    with pytest.raises(ServerDied):
        call.result()


def test_progress_tells_what_a_stop_waits_for(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    seen: list[Mapping[str, Any]] = []
    stop = Pending.call(lambda: server.client().stop(grace=TIMEOUT, on_progress=seen.append))
    until(lambda: seen, "progress")
    server.release("a")
    assert held.result() == (200, b"held a")
    stop.result()
    assert seen[0]["in_flight"] == 1
    assert 0 < seen[0]["remaining"] <= TIMEOUT
    assert seen[-1]["phase"] == "end"


@pytest.fixture
def fake(short_path: pathlib.Path) -> Iterator[SimpleNamespace]:
    """A Unix socket that answers every message with the same bytes, or with nothing."""
    path = short_path / "fake.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = SimpleNamespace(path=path, answers=[])

    def run() -> None:
        while True:
            try:
                sock = listener.accept()[0]
            except OSError:
                return
            # A client that has seen enough of it closes.
            with sock, contextlib.suppress(OSError):
                for answer in server.answers:
                    if not sock.recv(65536):
                        break
                    sock.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    yield server
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(TIMEOUT)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"{}\n",
        b"[]\n",
        b'{"jsonrpc":"2.0","id":1}\n',
        b'{"jsonrpc":"2.0","id":1,"result":5}\n',
        b'{"jsonrpc":"2.0","id":1,"error":5}\n',
        b'{"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n',
        b"\xff\xff\n",
        b"x" * (2 * 1024 * 1024),
        b"",
    ],
    ids=["HTTP", "object", "array", "empty", "number", "error", "no version", "bytes", "endless", "silent"],
)
def test_what_does_not_speak_the_protocol_is_a_remote_protocol_error(fake: SimpleNamespace, answer: bytes) -> None:
    fake.answers = [answer]
    with ControlClient(fake.path, timeout=TIMEOUT) as client, pytest.raises(RemoteProtocolError):
        client.ping()


RELOADED = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32006,"message":"reloaded","data":{"may_have_run":true}}}\n'
PONG = b'{"jsonrpc":"2.0","id":1,"result":{"protocol":1}}\n'
END = b""


def test_a_question_that_a_reload_cuts_off_is_asked_again(fake: SimpleNamespace) -> None:
    fake.answers = iter([RELOADED, END, PONG, END, PONG, RELOADED])
    with ControlClient(fake.path, timeout=TIMEOUT) as client:
        assert client.ping() == {"protocol": 1}
    with ControlClient(fake.path, timeout=TIMEOUT) as client, pytest.raises(ServerReloaded) as error:
        client.call("greet")
    assert error.value.data == {"may_have_run": True}


def test_a_server_that_has_ended_after_a_reload_cut_the_stop_off_is_not_said_to_have_died(
    fake: SimpleNamespace,
) -> None:
    def answers() -> Iterator[bytes]:
        # Where it stopped in order, its socket is gone when a slow client is back.
        fake.path.unlink()
        yield RELOADED

    fake.answers = answers()
    unknown = pytest.raises(ServerReloaded, match="has ended, and whether by this stop is not known")
    with ControlClient(fake.path, timeout=TIMEOUT) as client, unknown:
        client.stop()


def test_a_newer_protocol_is_refused_for_all_but_the_frozen_commands(fake: SimpleNamespace) -> None:
    fake.answers = [b'{"jsonrpc":"2.0","id":1,"result":{"protocol":9}}\n', b'{"jsonrpc":"2.0","id":2,"result":{}}\n']
    with ControlClient(fake.path) as client:
        assert client.ping()["protocol"] == 9
        assert client.status() == {}
    with ControlClient(fake.path) as client, pytest.raises(RemoteProtocolError, match="protocol 9, this client 1"):
        client.call("greet")


def test_every_error_is_a_control_error() -> None:
    for kind in (AccessDenied, ConfigurationError, NotRunning, RemoteProtocolError, ServerDied, TimedOut):
        assert issubclass(kind, ControlError)


def test_a_stop_that_the_server_can_not_have_got_finds_that_nothing_is_running(serve: Serve) -> None:
    server = serve()
    with server.client() as kept:
        kept.ping()
        server.client().stop()
        server.wait()
        with pytest.raises(NotRunning):
            kept.stop()
