"""Every limit, exceeded: what gives way, and who goes on unharmed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from harness import PYTHON, Serve, as_user, raw, read_all, until

from flask_ctl import AccessDenied, BackgroundServer, ConfigurationError, Control
from flask_ctl.dispatch.commands import command_from
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.limits import MAX_REFUSED_PEERS, REFUSAL_WINDOW, Limits
from flask_ctl.dispatch.peer import Peer, this_process
from flask_ctl.dispatch.policy import Policy
from flask_ctl.extension.settings import DEFAULTS


def look() -> None:
    """A command that observers may give."""


LOOK, ORDER = command_from(look, role="observe"), command_from(look, name="order")
OBSERVERS = Policy({"observe": frozenset([("uid", uid) for uid in range(50000, 60000)])})


def peer(uid: int = 50000) -> Peer:
    return Peer(42, uid, uid)


class Log:
    """A guard with a clock that stands still until it is moved, and its audit log."""

    def __init__(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.caplog = caplog
        self.guard = Guard(OBSERVERS, Limits(refusals=3))
        monkeypatch.setattr("flask_ctl.dispatch.guard.monotonic", lambda: self.now)

    def refuse(self, who: Peer | None = None, times: int = 1) -> AccessDenied:
        """The last of so many refusals."""
        for _ in range(times):
            with pytest.raises(AccessDenied) as caught:
                self.guard.authorize(who or peer(), "order", ORDER, {})
        return caught.value

    @property
    def counts(self) -> list[tuple[int, int]]:
        """The uid and the count of every record."""
        records = [vars(record)["audit"] for record in self.caplog.records if record.name == "flask_ctl.audit"]
        return [(fields["peer"]["uid"], fields["count"]) for fields in records]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(caplog, monkeypatch)


# Settings


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name.startswith("CTL_MAX")])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "64", None, []])
def test_a_limit_that_is_no_positive_number_is_refused(name: str, value: Any) -> None:
    values = {**DEFAULTS, name: value}
    with pytest.raises(ConfigurationError, match=f"{name} has to be a whole number, 1 or more, not "):
        Limits.from_config(values.__getitem__)


def test_without_settings_the_limits_are_the_named_constants() -> None:
    assert Limits.from_config(DEFAULTS.__getitem__) == Limits()


def test_every_limit_is_set_by_its_own_name() -> None:
    values = {"CTL_MAX_CONNECTIONS": 1, "CTL_MAX_PENDING": 2, "CTL_MAX_QUEUE": 3, "CTL_MAX_REFUSALS": 4}
    assert Limits.from_config(values.__getitem__) == Limits(connections=1, pending=2, queue=3, refusals=4)


def test_an_app_with_a_faulty_limit_does_not_start(serve: Serve) -> None:
    server = serve(env={"FLASK_CTL_MAX_QUEUE": "0"}, ready=False)
    assert server.wait() == 1
    assert "CTL_MAX_QUEUE has to be a whole number, 1 or more, not 0" in server.output


# Refusals


def test_beyond_the_rate_a_refused_peer_is_told_to_wait_and_no_longer_logged(log: Log) -> None:
    assert "may observe this server but not operate it" in log.refuse(times=3).message
    error = log.refuse(times=100)
    assert error.message == f"uid 50000 has been refused too often; wait {REFUSAL_WINDOW:g} s"
    assert error.data == {"retry_after": REFUSAL_WINDOW}
    assert log.counts == [(50000, 1)] * 3


def test_what_a_peer_may_do_it_may_do_beyond_the_rate_too(log: Log) -> None:
    log.refuse(times=100)
    log.guard.authorize(peer(), "look", LOOK, {})
    log.guard.authorize(peer(), "nothing", None, {})


def test_another_peer_is_not_affected(log: Log) -> None:
    log.refuse(times=100)
    assert "may observe" in log.refuse(peer(50001)).message
    log.guard.authorize(this_process(), "order", ORDER, {})


def test_the_programs_of_one_user_share_the_rate(log: Log) -> None:
    log.refuse(Peer(1, 50000, 7), times=3)
    assert "too often" in log.refuse(Peer(2, 50000, 8)).message


def test_after_the_time_what_was_not_logged_is_told_and_the_peer_heard_again(log: Log) -> None:
    log.refuse(times=10)
    log.now += REFUSAL_WINDOW - 1
    assert log.refuse().message.endswith("wait 1 s")
    log.now += 1
    assert "may observe" in log.refuse().message
    assert log.counts == [(50000, 1)] * 3 + [(50000, 8), (50000, 1)]


def test_it_is_told_at_the_next_tick_even_if_nobody_asks_again(log: Log) -> None:
    log.refuse(times=5)
    log.guard.tick()
    assert log.counts == [(50000, 1)] * 3
    log.now += REFUSAL_WINDOW
    log.guard.tick()
    log.guard.tick()
    assert log.counts == [(50000, 1)] * 3 + [(50000, 2)]
    assert "2 more refused in 10 s, without records of their own" in log.caplog.text


def test_it_is_told_at_the_end_of_the_server(log: Log) -> None:
    log.refuse(times=5)
    log.guard.close()
    log.guard.close()
    assert log.counts == [(50000, 1)] * 3 + [(50000, 2)]


def test_more_peers_than_can_be_counted_push_out_the_oldest_which_is_told(log: Log) -> None:
    log.refuse(times=5)
    for uid in range(50001, 50001 + MAX_REFUSED_PEERS):
        log.refuse(peer(uid))
    assert len(log.guard._windows) == MAX_REFUSED_PEERS
    assert (50000, 2) in log.counts


def test_peers_that_a_transport_turns_away_count_too(log: Log) -> None:
    key = Peer(address="10.0.0.1")
    assert [log.guard.reject(key, "no key").message for _ in range(3)] == ["no key"] * 3
    assert "too often" in log.guard.reject(key, "no key").message
    assert len(log.counts) == 3


def test_a_real_stranger_is_told_to_wait_and_can_go_on_looking(serve: Serve, short_path: pathlib.Path) -> None:
    """As `nobody` where we can become it, else as a substituted peer."""
    os.chmod(short_path, 0o755)
    real = os.geteuid() == 0
    substitute = (
        "import flask_ctl.transports.unix as unix; from flask_ctl.dispatch.peer import Peer;"
        "unix.peer_of = lambda sock: Peer(42, 65534, 65534);"
    )
    # The time of the refusals that are told together is 10 s otherwise.
    code = "from flask_ctl.dispatch import guard; guard.REFUSAL_WINDOW = 3.0; import sample; sample.app.run(port=0)"
    env = {"FLASK_CTL_ALLOW": '{"observe": ["uid:65534"]}', "FLASK_CTL_MAX_REFUSALS": "3"}
    server = serve(env=env, command=[*PYTHON, "-c", code if real else substitute + code])

    def talk() -> bytes:
        with raw(server.socket) as sock:
            sock.sendall(b'{"jsonrpc":"2.0","method":"stop","id":1}\n' * 50)
            sock.sendall(b'{"jsonrpc":"2.0","method":"ping","id":2}\n')
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    answers = [json.loads(line) for line in (as_user(65534, 65534, (), talk) if real else talk()).splitlines()]
    messages = [answer["error"]["message"] for answer in answers[:50]]
    assert {answer["error"]["code"] for answer in answers[:50]} == {-32003}
    assert ["too often" in message for message in messages] == [False] * 3 + [True] * 47
    assert answers[50]["result"]["pong"] is True
    until(lambda: "47 more refused" in server.output, "the rest is told in time")
    assert server.output.count(": refused: ") == 4


# Connections, pending commands, the queue


@contextlib.contextmanager
def served(path: str, **settings: Any) -> Iterator[threading.Event]:
    """An app with a command that waits for the gate."""
    app = Flask("limited")
    app.config.update(settings)
    control = Control(app)
    gate = threading.Event()

    @control.command(role="observe")
    def hang() -> str:
        gate.wait()
        return "released"

    with BackgroundServer(app, socket=path):
        yield gate
        gate.set()


def send(sock: socket.socket, method: str, count: int = 1) -> None:
    sock.sendall((json.dumps({"jsonrpc": "2.0", "method": method, "id": 1}) + "\n").encode() * count)


def receive(sock: socket.socket, count: int) -> list[dict[str, Any]]:
    with sock.makefile("rb") as file:
        return [json.loads(file.readline()) for _ in range(count)]


@pytest.fixture
def path(short_path: pathlib.Path) -> str:
    return str(short_path / "x.sock")


def test_over_the_connections_of_an_app_the_one_idle_longest_gives_way(path: str) -> None:
    with served(path, CTL_MAX_CONNECTIONS=3), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw(path)) for _ in range(4)]
        for client in clients[1:]:
            send(client, "ping")
            assert receive(client, 1)[0]["result"]["pong"]
        assert read_all(clients[0]) == b""


def test_over_the_connections_that_all_wait_for_an_answer_the_new_one_gives_way(path: str) -> None:
    with served(path, CTL_MAX_CONNECTIONS=3) as gate, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw(path)) for _ in range(3)]
        for client in clients:
            send(client, "hang")
            send(client, "ping")
            assert receive(client, 1)[0]["result"]["pong"]
        assert read_all(stack.enter_context(raw(path))) == b""
        gate.set()
        assert [receive(client, 1)[0]["result"] for client in clients] == ["released"] * 3


def test_observers_have_half_of_the_connections_between_them(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators get in, however busy the observers are."""
    who = this_process()
    monkeypatch.setattr("flask_ctl.transports.unix.peer_of", lambda sock: who)
    settings = {"CTL_MAX_CONNECTIONS": 4, "CTL_ALLOW": {"observe": ["uid:50000"]}}
    with served(path, **settings), contextlib.ExitStack() as stack:
        who = peer()
        strangers = [stack.enter_context(raw(path)) for _ in range(2)]
        for stranger in strangers:
            send(stranger, "hang")
            send(stranger, "ping")
            assert receive(stranger, 1)[0]["result"]["pong"]
        assert read_all(stack.enter_context(raw(path))) == b""
        who = this_process()
        for _ in range(2):
            own = stack.enter_context(raw(path))
            send(own, "ping")
            assert receive(own, 1)[0]["result"]["pong"]


def test_strangers_take_no_place_from_those_who_may_operate(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    who = this_process()
    monkeypatch.setattr("flask_ctl.transports.unix.peer_of", lambda sock: who)
    settings = {"CTL_MAX_CONNECTIONS": 3, "CTL_ALLOW": {"observe": ["uid:50000"]}}
    with served(path, **settings), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw(path)) for _ in range(3)]
        for client in clients:
            send(client, "ping")
            assert receive(client, 1)[0]["result"]["pong"]
        for uid in (50000, 50001):
            who = peer(uid)
            assert read_all(stack.enter_context(raw(path))) == b""
        for client in clients:
            send(client, "ping")
            assert receive(client, 1)[0]["result"]["pong"]


def test_those_who_may_operate_take_the_place_of_a_stranger(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    who = peer()
    monkeypatch.setattr("flask_ctl.transports.unix.peer_of", lambda sock: who)
    settings = {"CTL_MAX_CONNECTIONS": 2, "CTL_ALLOW": {"observe": ["uid:50000"]}}
    with served(path, **settings), contextlib.ExitStack() as stack:
        stranger = stack.enter_context(raw(path))
        send(stranger, "ping")
        assert receive(stranger, 1)[0]["result"]["pong"]
        who = this_process()
        for _ in range(2):
            own = stack.enter_context(raw(path))
            send(own, "ping")
            assert receive(own, 1)[0]["result"]["pong"]
        assert read_all(stranger) == b""


def test_those_without_a_role_have_one_in_sixteen_of_the_connections_between_them(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = peer(50001)
    monkeypatch.setattr("flask_ctl.transports.unix.peer_of", lambda sock: who)
    settings = {"CTL_MAX_CONNECTIONS": 32, "CTL_ALLOW": {"observe": ["uid:50000"]}}
    with served(path, **settings), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw(path)) for _ in range(5)]
        for client in clients[:3]:
            assert read_all(client) == b""
        for client in clients[3:]:
            send(client, "ping")
            assert receive(client, 1)[0]["error"]["code"] == -32003


def test_over_the_pending_commands_of_a_connection_it_is_not_read(path: str) -> None:
    with served(path, CTL_MAX_PENDING=2) as gate, raw(path) as sock, raw(path) as other:
        send(sock, "hang", 2)
        send(sock, "ping")
        send(other, "ping")
        assert receive(other, 1)[0]["result"]["pong"]
        gate.set()
        results = [answer["result"] for answer in receive(sock, 3)]
        assert results[0] == "released", "the ping was read although two commands were pending"
        assert results.count("released") == 2


def test_over_the_queue_a_command_is_refused(path: str) -> None:
    with served(path, CTL_MAX_QUEUE=1) as gate, raw(path) as sock:
        send(sock, "hang", 6)
        [refused] = receive(sock, 1)
        assert refused["error"] == {"code": -32002, "message": "no more than 1 can wait for a thread; try again later"}
        gate.set()
