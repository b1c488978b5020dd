"""Control over NATS on bad days: nodes, instances and operators that die, hang, or don't read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nats
import pytest
from harness import TIMEOUT, Pending, Program, Serve, Server, connections, run_cli, until
from natsserver import NatsServer, StartNats
from natsuser import NatsUser
from ports import free_port
from test_fleet import all_known, environment

from flask_ctl import ConfigurationError, ControlError, Fleet
from flask_ctl.fleet import buckets, roster
from flask_ctl.fleet.presence import Presence
from flask_ctl.fleet.subjects import LEASES, PRESENCE, ROLLOUTS


def start_cluster(start_nats: StartNats) -> list[NatsServer]:
    """Three nodes, whose bucket has a copy on each."""
    ports = [free_port() for _ in range(3)]
    routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    common = ("--cluster_name", "c", "--routes", routes)
    return [
        start_nats("--name", f"node{number}", "--cluster", f"nats://127.0.0.1:{port}", *common)
        for number, port in enumerate(ports)
    ]


def replicas(url: str) -> int:
    """Of the bucket of presences; 0 as long as there is none, or its nodes are not ready."""
    with NatsUser(url) as user:
        return user.replicas(PRESENCE)


def connected_to(server: Server, nodes: Sequence[NatsServer]) -> NatsServer:
    """The node at which an instance is."""
    ports = {other.raddr.port for other in connections(server.pid, "tcp") if other.raddr}
    return next(node for node in nodes if node.port in ports)


@pytest.mark.full
def test_a_rollout_goes_on_when_a_node_of_the_cluster_is_killed_and_runs_nothing_twice(
    start_nats: StartNats, serve: Serve
) -> None:
    nodes = start_cluster(start_nats)
    urls = ",".join(node.url for node in nodes)
    servers = [serve(env=environment(urls), ready=False) for _ in range(3)]
    for server in servers:
        server.ready()
    until(lambda: replicas(urls.partition(",")[0]) == 3, "a bucket with three copies")
    all_known(urls, *servers)
    servers.sort(key=lambda server: f"{server.pid}")
    held = servers[1].begin("/hold/gate")
    operator = Pending.call(
        lambda: run_cli("fleet", "reload", "--rolling", "--all", "--json", env={"FLASK_CTL_FLEET": urls})
    )
    until(
        lambda: operator.done or servers[1].status()["state"] == "reloading",
        "the second instance at work",
    )
    assert not operator.done, operator.result()
    connected_to(servers[1], nodes).kill()
    servers[1].release("gate")
    assert held.result()[0] == 200
    done = operator.result()
    assert (done.returncode, done.stderr.count("unknown")) == (0, 0), done.stderr
    assert [target["outcome"] for target in json.loads(done.stdout)["targets"]] == ["done"] * 3
    assert [server.status()["generation"] for server in servers] == [2, 2, 2]


@pytest.mark.full
def test_an_instance_that_is_killed_while_it_is_commanded_is_unknown(nats_server: NatsServer, serve: Serve) -> None:
    servers = [serve(env=environment(nats_server.url)) for _ in range(2)]
    all_known(nats_server.url, *servers)
    servers.sort(key=lambda server: f"{server.pid}")
    held = servers[0].begin("/hold/gate")
    command = ("fleet", "reload", "--rolling", "--all", "--json", "--timeout", "5")
    operator = Pending.call(lambda: run_cli(*command, env={"FLASK_CTL_FLEET": nats_server.url}))
    until(lambda: servers[0].status()["state"] == "reloading", "the first instance at work")
    servers[0].kill()
    with pytest.raises((OSError, AssertionError)):
        held.result()
    done = operator.result()
    document = json.loads(done.stdout)
    assert (done.returncode, document["end"]) == (1, "an unknown outcome")
    assert [target["outcome"] for target in document["targets"]] == ["unknown", "not started"]
    assert servers[1].status()["generation"] == 1


def test_a_broker_that_hangs_for_a_while_has_lost_nothing(nats_server: NatsServer, serve: Serve) -> None:
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    held = server.begin("/hold/gate")
    operator = subprocess.Popen(
        [sys.executable, "-m", "flask_ctl_cli", "fleet", "reload", "--all", "--json"],
        env={**os.environ, "FLASK_CTL_FLEET": nats_server.url}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: server.status()["state"] == "reloading", "the reload")
    nats_server.suspend()
    server.release("gate")
    assert held.result()[0] == 200
    until(lambda: server.status()["generation"] == 2, "the new code")
    nats_server.go_on()
    stdout, _ = operator.communicate(timeout=60)
    [told] = json.loads(stdout)
    assert (operator.returncode, told["result"]["generation"]) == (0, 2)
    assert server.status()["generation"] == 2


def test_a_user_who_does_not_read_delays_nobody(start_nats: StartNats, serve: Serve, program: Program) -> None:
    """The server ends the connection of a slow consumer."""
    nats_server = start_nats(config="write_deadline: 300ms")
    program.edit("first", "@control.command\ndef text(size: int) -> str:\n    return 'x' * size")
    server = serve(env=environment(nats_server.url), cwd=program.directory)
    all_known(nats_server.url, server)
    with Fleet(nats_server.url) as fleet, socket.create_connection(("127.0.0.1", nats_server.port)) as slow:
        [one] = fleet.roster().instances
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b'{"jsonrpc":"2.0","id":1,"method":"text","params":{"size":500000}}'
        subject = f"flask_ctl.operate.sample.{one.instance}"
        slow.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB box 1\r\n')
        for _ in range(40):
            slow.sendall(f"PUB {subject} box {len(request)}\r\n".encode() + request + b"\r\n")
        until(lambda: "Slow Consumer" in nats_server.output, lambda: f"a slow consumer: {nats_server.output}")
        with fleet.client(one) as client:
            assert client.call("text", size=3) == "xxx"
    assert server.status()["fleet"]["problem"] is None


def test_presences_of_other_versions_are_read_as_far_as_they_are_known(nats_server: NatsServer, serve: Serve) -> None:
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    later = Presence("shop", "later-1", "later", 1, 7, "running", "2026-11-30T12:00:00.000Z", "9.0.0", ["observe"])
    with NatsUser(nats_server.url) as user:
        user.put(PRESENCE, "shop.later-1", json.dumps({**json.loads(later.encoded()), "new": [1]}).encode())
        user.put(PRESENCE, "shop.other-1", b'{"form": "unknown"}')
        user.put(PRESENCE, "shop.other-2", b"\xff\x00")
    with Fleet(nats_server.url) as fleet:
        assert {one.instance for one in fleet.roster().instances if one.app == "shop"} == {"later-1"}
    done = run_cli("fleet", "ls", "--name", "sample", env={"FLASK_CTL_FLEET": nats_server.url})
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_many_instances_that_lose_their_broker_come_back(nats_server: NatsServer, serve: Serve) -> None:
    servers: list[Server] = [serve(env=environment(nats_server.url), ready=False) for _ in range(3)]
    for server in servers:
        server.ready()
    all_known(nats_server.url, *servers)
    nats_server.kill()
    nats_server.start()
    for server in servers:
        until(lambda: server.status()["fleet"]["problem"] is None, "connected again")  # noqa: B023
    done = run_cli("fleet", "status", "--json", env={"FLASK_CTL_FLEET": nats_server.url})
    told: list[dict[str, Any]] = json.loads(done.stdout)
    assert {one["result"]["pid"] for one in told} == {server.pid for server in servers}


@pytest.mark.parametrize(
    ("bucket", "ttl", "told"),
    [(LEASES, None, "live for ever, not for 30 s"), (ROLLOUTS, 60, "live for 60 s, not for ever")],
)
def test_a_bucket_of_another_form_is_told(nats_server: NatsServer, bucket: str, ttl: float | None, told: str) -> None:
    with NatsUser(nats_server.url) as user:
        user.make_bucket(bucket, ttl)
    with Fleet(nats_server.url) as fleet, pytest.raises(ConfigurationError) as raised:
        fleet.lease_holders() if bucket == LEASES else fleet.rollout_ids()
    assert told in raised.value.message
    assert f"set the max age of its stream, KV_{bucket}," in raised.value.message


@contextlib.contextmanager
def jetstream_that_says(url: str, err_code: int | None) -> Iterator[None]:
    """In the place of JetStream at a server without it: all is refused by a 503 with that code; with None, unanswered.

    It takes a cluster to make a real one say so, and an election that lasts.
    """
    error = {"code": 503, "err_code": err_code, "description": "unavailable"}
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def answer(message: Any) -> None:
        if err_code is not None:
            await message.respond(json.dumps({"error": error}).encode())

    async def begin() -> Any:
        client = await nats.connect(url)
        await client.subscribe("$JS.API.>", cb=answer)
        await client.flush()
        return client

    client = asyncio.run_coroutine_threadsafe(begin(), loop).result(TIMEOUT)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(client.close(), loop).result(TIMEOUT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


USES_OF_BUCKETS: dict[str, Callable[[Fleet], Any]] = {
    "a lease": lambda fleet: fleet.lease(["shop"], "1", "now", lambda reason: None),
    "who has leases": lambda fleet: fleet.lease_holders(),
    "the records": lambda fleet: fleet.rollout_ids(),
    "the instances": lambda fleet: fleet.roster(),
}


@pytest.mark.parametrize("use", USES_OF_BUCKETS.values(), ids=USES_OF_BUCKETS)
def test_jetstream_that_does_not_answer_is_told(
    start_nats: StartNats, monkeypatch: pytest.MonkeyPatch, use: Callable[[Fleet], Any]
) -> None:
    for module in (buckets, roster):
        monkeypatch.setattr(module, "READ_TIMEOUT", 0.05)
    nats_server = start_nats(jetstream=False)
    with (
        jetstream_that_says(nats_server.url, None),
        Fleet(nats_server.url) as fleet,
        pytest.raises(ControlError) as told,
    ):
        use(fleet)
    assert "can't be" in told.value.message
    assert "the NATS server does not answer, or its JetStream does not" in told.value.message


@pytest.mark.parametrize("use", USES_OF_BUCKETS.values(), ids=USES_OF_BUCKETS)
def test_jetstream_without_a_leader_is_not_taken_for_none(start_nats: StartNats, use: Callable[[Fleet], Any]) -> None:
    """Where it were, nothing would tell that silent instances are missing."""
    nats_server = start_nats(jetstream=False)
    with (
        jetstream_that_says(nats_server.url, 10008),
        Fleet(nats_server.url) as fleet,
        pytest.raises(ControlError) as told,
    ):
        use(fleet)
    assert "JetStream is not available at the moment" in told.value.message


@pytest.mark.parametrize("err_code", [10039, 10076])
def test_jetstream_that_is_off_is_told(start_nats: StartNats, err_code: int) -> None:
    """For the account, or at all."""
    nats_server = start_nats(jetstream=False)
    with jetstream_that_says(nats_server.url, err_code), Fleet(nats_server.url) as fleet:
        assert not fleet.roster().complete
        with pytest.raises(ConfigurationError, match="the NATS server has no JetStream; switch it on"):
            fleet.rollout_ids()
