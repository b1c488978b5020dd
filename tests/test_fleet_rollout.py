"""Rollouts over NATS: the lease, the fence, the record that another operator goes on with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from harness import TIMEOUT, Done, Serve, Server, run_cli, until
from nats import errors
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from natsserver import NatsServer
from test_fleet import all_known, environment

from flask_ctl import CommandError, ConfigurationError, ControlError, Fleet
from flask_ctl.fleet import leases
from flask_ctl.fleet.archive import MAX_RECORDS, Archive
from flask_ctl.fleet.buckets import open_bucket, read_entries
from flask_ctl.fleet.leases import CERTAIN, Holder, Lease
from flask_ctl.fleet.subjects import LEASES

# The lease


class Entry(NamedTuple):
    value: bytes
    revision: int


class Bucket:
    """As of JetStream, in memory. `fault` is raised by updates; `loses` has the next answer lost.

    Updates of a key in `silent` are not answered.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.fault: Exception | None = None
        self.loses = False
        self.silent: set[str] = set()

    async def create(self, key: str, value: bytes) -> int:
        if key in self.entries:
            raise KeyWrongLastSequenceError
        return self._put(key, value)

    async def update(self, key: str, value: bytes, last: int) -> int:
        if self.fault is not None:
            raise self.fault
        if key in self.silent:
            await asyncio.Event().wait()
        if key not in self.entries or self.entries[key].revision != last:
            raise KeyWrongLastSequenceError
        revision = self._put(key, value)
        if self.loses:
            self.loses = False
            raise errors.TimeoutError
        return revision

    async def get(self, key: str) -> Entry:
        if key not in self.entries:
            raise KeyNotFoundError
        return self.entries[key]

    async def delete(self, key: str, last: int) -> None:
        if self.entries[key].revision != last:
            raise KeyWrongLastSequenceError
        self.expire(key)

    def expire(self, key: str) -> None:
        del self.entries[key]

    def _put(self, key: str, value: bytes) -> int:
        self.revision += 1
        self.entries[key] = Entry(value, self.revision)
        return self.revision


def holder(user: str) -> Holder:
    return {"user": user, "host": "web-1", "pid": 7, "since": "2026-11-30T17:12:00Z", "rollout": "20261130-171200-abcd"}


class Operators:
    """Two that want the lease on the same apps, and a clock that a test sets."""

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.now = 100.0

    def lease(self, user: str, *apps: str) -> Lease:
        return Lease(self.bucket, apps or ("shop",), holder(user), lambda: self.now)


@pytest.fixture
def operators() -> Operators:
    return Operators()


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_the_second_operator_is_refused_and_told_who_the_first_is(operators: Operators) -> None:
    run(operators.lease("ann").take())
    with pytest.raises(ConfigurationError) as caught:
        run(operators.lease("bob").take())
    assert "rollout 20261130-171200-abcd of ann on web-1 (pid 7, since 2026-11-30T17:12:00Z) is at work on shop" in str(
        caught.value
    )


def test_who_gets_not_all_apps_keeps_none(operators: Operators) -> None:
    run(operators.lease("ann", "zoo").take())
    with pytest.raises(ConfigurationError, match="at work on zoo"):
        run(operators.lease("bob", "zoo", "app").take())
    assert set(operators.bucket.entries) == {"zoo"}


def test_a_released_lease_can_be_taken_and_has_a_higher_fence(operators: Operators) -> None:
    first, second = operators.lease("ann"), operators.lease("bob")
    run(first.take())
    run(first.renew())
    run(first.release())
    run(second.take())
    assert first.fence("shop") < second.fence("shop")


def test_a_renewal_leaves_the_fence(operators: Operators) -> None:
    lease = operators.lease("ann")
    run(lease.take())
    fence = lease.fence("shop")
    assert run(lease.renew()) is None
    assert lease.fence("shop") == fence
    assert operators.bucket.entries["shop"].revision > fence


def test_a_lease_that_has_expired_is_lost(operators: Operators) -> None:
    lease = operators.lease("ann")
    run(lease.take())
    operators.bucket.expire("shop")
    assert "has expired" in run(lease.renew())


def test_a_lease_that_another_has_taken_is_lost_and_not_released(operators: Operators) -> None:
    first, second = operators.lease("ann"), operators.lease("bob")
    run(first.take())
    operators.bucket.expire("shop")
    run(second.take())
    assert "has passed to another operator" in run(first.renew())
    run(first.release())
    assert run(second.renew()) is None


def test_a_renewal_whose_answer_was_lost_is_found(operators: Operators) -> None:
    lease = operators.lease("ann")
    run(lease.take())
    operators.bucket.loses = True
    assert run(lease.renew()) is None
    assert run(lease.renew()) is None


@pytest.mark.parametrize(("silent_for", "lost"), [(CERTAIN - 1, False), (CERTAIN + 1, True)])
def test_a_server_that_does_not_answer_has_as_long_as_the_lease_is_certain(
    operators: Operators, silent_for: float, lost: bool
) -> None:
    lease = operators.lease("ann")
    run(lease.take())
    operators.bucket.fault = errors.TimeoutError()
    operators.now += silent_for
    assert (run(lease.renew()) is not None) == lost


@pytest.mark.parametrize("fault", [None, errors.TimeoutError()])
def test_a_lease_of_several_apps_is_lost_once_it_is_not_certain_that_one_is_renewed(
    operators: Operators, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    """Whether the server answers with an error, or not at all."""
    monkeypatch.setattr(leases, "CERTAIN", 0.05)
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    lease = Lease(operators.bucket, ("app", "zoo"), holder("ann"))

    async def keep() -> str:
        await lease.take()
        operators.bucket.silent = {"zoo"}
        operators.bucket.fault = fault
        return await asyncio.wait_for(lease.keep(), TIMEOUT)

    assert "could not be renewed" in run(keep())


# The records


def test_a_record_whose_answer_was_lost_is_written_again(operators: Operators) -> None:
    archive = Archive(None, operators.bucket)
    operators.bucket.entries["one"] = Entry(b"", 0)
    operators.bucket.loses = True
    with pytest.raises(ControlError, match="the NATS server does not answer"):
        run(archive.write("one", {"n": 1}))
    run(archive.write("one", {"n": 2}))
    assert run(archive.read("one")) == {"n": 2}


# Over a real server


class Site:
    """Instances at a NATS server."""

    def __init__(self, nats: NatsServer, serve: Serve, count: int) -> None:
        self.nats = nats
        self.servers: list[Server] = [serve(env=environment(nats.url), ready=False) for _ in range(count)]
        for server in self.servers:
            server.ready()
        # As a rollout takes them.
        all_known(nats.url, *self.servers)
        self.servers.sort(key=lambda server: f"{server.pid}")
        self.env = {"FLASK_CTL_FLEET": nats.url}

    def cli(self, *arguments: str) -> Done:
        return run_cli("fleet", "--timeout", str(TIMEOUT), *arguments, env=self.env)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.cli("rollout", "status", "--json").stdout)
        return document

    def operator(self, *arguments: str) -> subprocess.Popen[str]:
        """An operator's process, which can be killed."""
        return subprocess.Popen(
            [sys.executable, "-m", "flask_ctl_cli", "fleet", *arguments],
            env={**os.environ, **self.env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def generations(self) -> list[int]:
        return [server.status()["generation"] for server in self.servers]


@pytest.fixture
def two(nats_server: NatsServer, serve: Serve) -> Site:
    return Site(nats_server, serve, 2)


def outcomes(document: dict[str, Any]) -> list[str | None]:
    return [target["outcome"] for target in document["targets"]]


def test_a_rollout_reloads_one_after_the_other_and_its_record_is_at_the_server(two: Site) -> None:
    done = two.cli("reload", "--rolling", "--all", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert outcomes(document) == ["done", "done"]
    assert two.generations() == [2, 2]
    assert two.document() == {**document, "state": "ended"}
    assert two.cli("rollout", "history").stdout == f"rollout {document['id']}, reload: 2 done\n"
    done = two.cli("rollout", "resume")
    assert (done.returncode, done.stderr) == (0, f"rollout {document['id']}: nothing to go on with\n")


@pytest.mark.full
def test_a_rollout_stops_all(two: Site) -> None:
    assert two.cli("stop", "--rolling", "--name", "sample", "--quiet").returncode == 0
    assert [server.wait() for server in two.servers] == [0, 0]


def test_another_operator_goes_on_with_the_rollout_of_one_who_was_killed(two: Site) -> None:
    """While the lease of the first one lasts, the others are told whose it is."""
    _, second = two.servers
    request = second.begin("/hold/gate")
    operator = two.operator("reload", "--rolling", "--all")
    until(lambda: second.status()["state"] == "reloading", "the second instance at work")
    refused = two.cli("reload", "--rolling", "--all")
    assert refused.returncode == 2
    assert f"(pid {operator.pid}, since" in refused.stderr
    os.kill(operator.pid, signal.SIGKILL)
    operator.communicate()
    refused = two.cli("rollout", "resume")
    assert refused.returncode == 2
    assert "if that process was killed, the lease is free 30 s later: then go on by flask-ctl" in refused.stderr
    _forget_leases(two)
    document = two.document()
    assert (document["state"], outcomes(document)) == ("abandoned", ["done", None])
    second.release("gate")
    assert request.result()[0] == 200
    until(lambda: second.status()["generation"] == 2, "the reload of the second instance")
    done = two.cli("rollout", "resume", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, outcomes(document)) == (0, ["done", "done"])
    assert document["targets"][1]["message"] == "found when the rollout was resumed"
    assert two.generations() == [2, 2]


def _forget_leases(two: Site) -> None:
    """As the server does it after LEASE_TIME."""
    with Fleet(two.nats.url) as fleet:

        async def forget() -> None:
            bucket = await open_bucket(fleet._link.connection, LEASES)
            for entry in await read_entries(fleet._link.connection.client, LEASES):
                await bucket.purge(entry.key)

        fleet._link.run(forget())
        assert fleet.lease_holders() == []


def test_an_instance_refuses_the_command_of_an_operator_who_has_lost_the_lease(two: Site) -> None:
    """That is what protects it: an operator may not know yet that the lease is lost."""
    with Fleet(two.nats.url) as fleet:
        one = fleet.roster().instances[0]
        with fleet.client(one, fence=8) as successor:
            successor.resume()
        with fleet.client(one, fence=7) as late, pytest.raises(CommandError, match="nothing was done") as caught:
            late.reload(timeout=30)
        assert caught.value.data == {"fence": 8, "begun": False}
        with fleet.client(one) as client:
            assert client.status()["generation"] == 1


def test_an_instance_that_can_not_be_asked_ends_the_rollout(two: Site) -> None:
    two.servers[0].suspend()
    done = two.cli("reload", "--rolling", "--all", "--json", "--timeout", "60")
    document = json.loads(done.stdout)
    assert (done.returncode, document["end"]) == (1, "too many failures")
    assert outcomes(document) == ["unreachable", "not started"]
    assert two.servers[1].status()["generation"] == 1


@pytest.mark.full
def test_a_rollout_goes_on_after_the_nats_server_was_killed(two: Site) -> None:
    """Each instance is reloaded once: the commands are sent again by their ids."""
    request = two.servers[1].begin("/hold/gate")
    operator = two.operator("reload", "--rolling", "--all", "--json", "--quiet")
    until(lambda: two.servers[1].status()["state"] == "reloading", "the second instance at work")
    two.nats.kill()
    two.nats.start()
    until(lambda: two.servers[1].status()["fleet"]["problem"] is None, "the instance at the server again")
    two.servers[1].release("gate")
    assert request.result()[0] == 200
    output, _ = operator.communicate(timeout=TIMEOUT)
    assert operator.returncode == 0, output
    assert outcomes(json.loads(output)) == ["done", "done"]
    assert two.generations() == [2, 2]
    assert two.document()["state"] == "ended"


def test_as_many_records_are_kept_as_on_one_machine(nats_server: NatsServer) -> None:
    with Fleet(nats_server.url) as fleet:
        ids = [f"20261130-{number:06}-aaaa" for number in range(MAX_RECORDS + 2)]
        for id in ids:
            fleet.write_rollout(id, {"id": id})
        fleet.remove_old_rollouts()
        assert fleet.rollout_ids() == ids[2:]
        assert fleet.read_rollout(ids[2]) == {"id": ids[2]}
        with pytest.raises(ConfigurationError, match="there is no record"):
            fleet.read_rollout(ids[0])


def test_a_record_that_another_operator_has_changed_is_not_overwritten(nats_server: NatsServer) -> None:
    with Fleet(nats_server.url) as first, Fleet(nats_server.url) as second:
        first.write_rollout("one", {"by": "first"})
        second.read_rollout("one")
        second.write_rollout("one", {"by": "second"})
        with pytest.raises(Exception, match="the record one can't be written"):
            first.write_rollout("one", {"by": "first again"})
        assert first.read_rollout("one") == {"by": "second"}


def test_before_the_first_rollout_there_is_nothing_to_show(nats_server: NatsServer) -> None:
    done = run_cli("fleet", "rollout", "status", env={"FLASK_CTL_FLEET": nats_server.url})
    assert done.returncode == 2
    assert "no rollout has been begun" in done.stderr


def test_a_rollout_is_chosen_by_its_id_alone() -> None:
    done = run_cli("fleet", "rollout", "history", "--name", "other")
    assert done.returncode == 2
    assert "give its ID, and no options that select" in done.stderr
