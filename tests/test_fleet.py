"""flask-ctl fleet: instances at a NATS server, as an operator sees and commands them."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import pytest
from conftest import isolated
from harness import PYTHON, TIMEOUT, Child, Done, Serve, Server, SharedServer, run_cli, until
from natsserver import NatsServer, SharedNatsServer, StartNats
from natsuser import NatsUser

from flask_ctl import AccessDenied, ConfigurationError, ControlError, Fleet, NotRunning
from flask_ctl.client.fleetclient import ROLES
from flask_ctl.fleet.connection import CLOSED, REFUSED
from flask_ctl.fleet.presence import Presence, is_lost
from flask_ctl.lifecycle.commands import builtin_commands
from flask_ctl_cli.fleet.top import watched
from flask_ctl_cli.settings import settings


def environment(url: str, zone: str = "a", **more: str) -> dict[str, str]:
    """What an instance finds in its environment."""
    labels = json.dumps({"zone": zone})
    return {"FLASK_CTL_FLEET": url, "FLASK_CTL_FLEET_OPERATE": "true", "FLASK_CTL_FLEET_LABELS": labels, **more}


def all_known(url: str, *servers: Server) -> None:
    """Each has told that it is there, and serves."""
    with Fleet(url) as fleet:

        def there() -> bool:
            states = {one.presence.pid: one.presence.state for one in fleet.roster().instances}
            return all(states.get(server.pid) == "running" for server in servers)

        until(there, lambda: f"presences of {[server.pid for server in servers]}: {fleet.roster()}")


class Shared:
    """A NATS server with one instance in zone a, and one in zone b, which tests only ask."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.nats = SharedNatsServer(directory / "nats")
        self.servers = []
        for zone in "ab":
            (directory / zone).mkdir()
            env = environment(self.nats.url, zone)
            self.servers.append(SharedServer([*PYTHON, "sample.py"], directory / zone, env=env))
        all_known(self.nats.url, *self.servers)

    def cli(self, *arguments: str) -> Done:
        return run_cli("fleet", "--timeout", str(TIMEOUT), *arguments, env={"FLASK_CTL_FLEET": self.nats.url})

    def end(self) -> None:
        for server in self.servers:
            server.kill()
        self.nats.kill()


@pytest.fixture(scope="module")
def two() -> Iterator[Shared]:
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        with isolated(pathlib.Path(name)):
            shared = Shared(pathlib.Path(name))
        yield shared
        shared.end()


def names(done: Done) -> list[str]:
    return [item["instance"] for item in json.loads(done.stdout)]


def codes(done: Done) -> list[int]:
    return [item["exit"] for item in json.loads(done.stdout)]


# Which there are


def test_the_list_has_a_line_for_each_instance(two: Shared) -> None:
    done = two.cli("ls")
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head.split()[:5] == ["APP", "INSTANCE", "HOST", "PID", "STATE"]
    assert sorted(int(line.split()[3]) for line in lines) == sorted(server.pid for server in two.servers)
    assert all("running" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--name", "s*"], [0, 1]),
        (["--label", "zone=b"], [1]),
        (["--label", "zone=a", "--label", "zone=b"], [1]),
        (["--instance", "*-{a}-*"], [0]),
        (["--host", "*", "--label", "zone=a"], [0]),
    ],
)
def test_options_select_instances(two: Shared, options: list[str], found: list[int]) -> None:
    words = [word.format(a=two.servers[0].pid) for word in options]
    done = two.cli("status", "--json", *words)
    assert {item["pid"] for item in json.loads(done.stdout)} == {two.servers[number].pid for number in found}
    assert done.returncode == 0


def test_options_may_stand_before_the_name_of_the_command(two: Shared) -> None:
    done = run_cli("fleet", "--nats", two.nats.url, "--json", "--label", "zone=b", "status")
    assert [item["result"]["pid"] for item in json.loads(done.stdout)] == [two.servers[1].pid]


def test_an_empty_selection_is_exit_code_3(two: Shared) -> None:
    done = two.cli("status", "--name", "other")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no instance at the NATS server is selected by --name other" in done.stderr


def test_a_socket_selects_no_instance_at_a_nats_server(two: Shared) -> None:
    done = run_cli("--socket", two.servers[0].socket, "fleet", "--nats", two.nats.url, "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--socket is for instances of one machine" in done.stderr


def test_a_command_that_changes_something_needs_a_selection(two: Shared) -> None:
    done = two.cli("drain")
    assert done.returncode == 2
    assert "or all of them by --all" in done.stderr


def test_a_label_has_a_value(two: Shared) -> None:
    done = two.cli("ls", "--label", "zone")
    assert done.returncode == 2
    assert "'zone' is not of the form KEY=VALUE" in done.stderr


# Commands


def test_each_instance_answers_a_call(two: Shared) -> None:
    done = two.cli("call", "greet", "name=you", "--all", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [item["result"] for item in json.loads(done.stdout)] == [{"greeting": "hello you"}] * 2
    [one] = json.loads(two.cli("call", "whoami", "--label", "zone=b", "--json").stdout)
    assert one["pid"] == two.servers[1].pid


def test_a_wrong_parameter_is_wrong_usage(two: Shared) -> None:
    done = two.cli("call", "greet", "times=many", "name=x", "--all")
    assert done.returncode == 2
    assert "times" in done.stderr


def test_a_drain_of_some_leaves_the_others(two: Shared) -> None:
    try:
        done = two.cli("drain", "--label", "zone=a", "--json")
        assert [item["result"]["state"] for item in json.loads(done.stdout)] == ["draining"]
        assert two.servers[1].status()["state"] == "running"
    finally:
        done = two.cli("resume", "--all", "--json")
    assert [item["result"]["state"] for item in json.loads(done.stdout)] == ["running", "running"]
    assert done.returncode == 0


def test_a_long_result_comes_whole(two: Shared) -> None:
    """In parts that the NATS server takes."""
    with Fleet(two.nats.url) as fleet:
        [one, _] = fleet.roster().instances
        with fleet.client(one) as client:
            assert len(client.call("greet", name="x" * 1000, times=1500, _chunks=True)["greeting"]) > 1024 * 1024


def test_a_stop_ends_them_and_the_answer_is_the_proof(nats_server: NatsServer, serve: Serve) -> None:
    servers = [serve(env=environment(nats_server.url, zone)) for zone in "ab"]
    all_known(nats_server.url, *servers)
    env = {"FLASK_CTL_FLEET": nats_server.url}
    done = run_cli("fleet", "stop", "--label", "zone=a", "--json", env=env)
    [one] = json.loads(done.stdout)
    assert (done.returncode, one["result"]["outcome"], one["result"]["proof"]) == (0, "drained", "answer")
    assert servers[0].wait() == 0
    assert [item["pid"] for item in json.loads(run_cli("fleet", "ls", "--json", env=env).stdout)] == [servers[1].pid]
    assert run_cli("fleet", "stop", "--all", env=env).returncode == 2
    assert run_cli("fleet", "stop", "--all", "--yes", "--quiet", env=env).stdout == ""
    assert servers[1].wait() == 0


def test_a_process_that_stays_after_its_answer_to_a_stop_is_told_with_what_keeps_it(
    nats_server: NatsServer, serve: Serve
) -> None:
    server = serve(command=[*PYTHON, "sample.py", "keeper"], env=environment(nats_server.url))
    all_known(nats_server.url, server)
    env = {"FLASK_CTL_FLEET": nats_server.url}
    done = run_cli("fleet", "stop", "--all", "--yes", "--timeout", "3", "--json", env=env)
    [one] = json.loads(done.stdout)
    assert done.returncode == one["exit"] == 1
    assert "has answered the stop, but has not left NATS: kept alive by keeper; " in one["error"]["message"]
    assert one["error"]["data"]["may_have_run"]
    server.release("keeper")
    assert server.wait() == 0


@pytest.mark.full
def test_a_reload_of_all_tells_what_has_become_of_each(nats_server: NatsServer, serve: Serve) -> None:
    """Also that one can't be asked: the gravest exit code is that of the command."""
    servers = [serve(env=environment(nats_server.url)) for _ in range(2)]
    all_known(nats_server.url, *servers)
    servers[1].suspend()
    done = run_cli("fleet", "reload", "--all", "--timeout", "20", "--json", env={"FLASK_CTL_FLEET": nats_server.url})
    by_pid = {item["pid"]: item for item in json.loads(done.stdout)}
    assert by_pid[servers[0].pid]["result"]["generation"] == 2
    assert by_pid[servers[1].pid]["exit"] == done.returncode == 1


def test_commands_and_parameters_are_completed(two: Shared) -> None:
    """As one of the instances describes them; nothing where nobody answers."""

    def complete(line: str, url: str) -> list[str]:
        words = line.split(" ")
        env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_FLASK_CTL_COMPLETE": "bash_complete"}
        done = run_cli(env={**env, "FLASK_CTL_FLEET": url})
        return [word.removeprefix("plain,") for word in done.stdout.split()]

    assert complete("flask-ctl fleet st", two.nats.url) == ["status", "stop"]
    # Who presses the key waits only a moment, which may be too short here.
    until(lambda: complete("flask-ctl fleet call gr", two.nats.url) == ["greet"], "the name of the command")
    until(lambda: complete("flask-ctl fleet call greet na", two.nats.url) == ["name="], "its parameter")
    assert complete("flask-ctl fleet call gr", "nats://127.0.0.1:1") == []


# Streams


def test_past_events_of_all_are_in_the_order_of_their_times(two: Shared) -> None:
    two.cli("call", "greet", "name=x", "--all")
    done = two.cli("events", "--json")
    items = [json.loads(line) for line in done.stdout.splitlines()]
    times = [item["time"] for item in items if "time" in item]
    assert times == sorted(times)
    assert {item["instance"] for item in items if item.get("command") == "greet"} == {
        server.status()["fleet"]["instance"] for server in two.servers
    }
    assert done.returncode == 0


def test_log_records_stand_behind_the_name_of_their_instance(two: Shared) -> None:
    warning = "anybody who reaches the NATS server may operate sample"
    # The thread that writes the log records it a moment later.
    shown = until(lambda: warning in (text := two.cli("logs", "--label", "zone=b").stdout) and text, "the warning")
    assert shown.startswith(f"sample/{platform.node()}-{two.servers[1].pid}-")


def follow(url: str, *arguments: str) -> Child:
    words = ["fleet", "--nats", url, "--timeout", str(TIMEOUT), "events", "--follow", "--lines", "0", "--json"]
    return Child(sys.executable, "-m", "flask_ctl_cli", *words, *arguments)


def until_told(child: Child, url: str, count: int = 2) -> None:
    """Both instances have told the follower of a call: from now on it misses nothing."""
    seen: set[str] = set()
    env = {"FLASK_CTL_FLEET": url}
    until(lambda: run_cli("fleet", "call", "release", "name=x", "--all", env=env).returncode == 0, "a call")
    while len(seen) < count:
        if not select.select([child.stdout], [], [], 1)[0]:
            run_cli("fleet", "call", "release", "name=x", "--all", env=env)
            continue
        seen.add(json.loads(child.stdout.readline())["instance"])


def test_followed_events_end_quietly_by_ctrl_c(two: Shared) -> None:
    with follow(two.nats.url) as child:
        until_told(child, two.nats.url)
        child.send_signal(signal.SIGINT)
        assert child.stdout.read().splitlines()[-1] == '{"end": "interrupted"}'
    assert child.returncode == 0


@pytest.mark.full
def test_the_end_of_each_followed_instance_is_told(nats_server: NatsServer, serve: Serve) -> None:
    """With exit code 3 when all have ended."""
    servers = [serve(env=environment(nats_server.url)) for _ in range(2)]
    all_known(nats_server.url, *servers)
    with follow(nats_server.url) as child:
        until_told(child, nats_server.url)
        for server in servers:
            with server.client() as client:
                client.stop()
        items = [json.loads(line) for line in child.stdout.read().splitlines()]
    assert [item["end"] for item in items if "end" in item] == ["the server has ended"] * 2
    assert child.returncode == 3


# The view


def test_the_view_is_for_a_terminal() -> None:
    done = run_cli("fleet", "top")
    assert done.returncode == 2
    assert "top is for a terminal" in done.stderr


def test_the_view_has_the_instances_that_are_there(nats_server: NatsServer, serve: Serve) -> None:
    servers = [serve(env=environment(nats_server.url)) for _ in range(2)]
    all_known(nats_server.url, *servers)
    with Fleet(nats_server.url) as fleet, click.Context(click.Command("top")):
        discover = watched(fleet, settings())
        shown = discover()
        for one in shown:
            one.ask()
        assert {one.status["pid"] for one in shown if one.status} == {server.pid for server in servers}
        assert [one.problem for one in shown] == ["", ""]
        with servers[0].client() as client:
            client.stop()
        until(lambda: len(discover()) == 1, "the instance has gone from the view")
        assert discover()[0] in shown
        for one in shown:
            one.close()


# Who does not answer


def test_an_instance_that_does_not_answer_is_listed(nats_server: NatsServer, serve: Serve) -> None:
    """With exit code 1 of `status`, and 0 of `ls`, which only lists."""
    servers = [serve(env=environment(nats_server.url)) for _ in range(2)]
    all_known(nats_server.url, *servers)
    servers[0].suspend()
    env = {"FLASK_CTL_FLEET": nats_server.url}
    done = run_cli("fleet", "status", "--timeout", "1.5", env=env)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 instances, 1 no answer"
    done = run_cli("fleet", "ls", "--timeout", "1.5", "--json", env=env)
    assert {item["pid"]: item["state"] for item in json.loads(done.stdout)} == {
        servers[0].pid: "no answer",
        servers[1].pid: "running",
    }
    assert done.returncode == 0
    done = run_cli("fleet", "call", "greet", "name=x", "--all", "--timeout", "1.5", "--json", env=env)
    assert sorted(codes(done)) == [0, 1]
    assert done.returncode == 1


def test_without_presences_those_who_answer_are_listed(start_nats: StartNats, serve: Serve) -> None:
    nats = start_nats(jetstream=False)
    server = serve(env=environment(nats.url))

    def listed() -> Any:
        done = run_cli("fleet", "status", "--json", env={"FLASK_CTL_FLEET": nats.url})
        assert done.returncode == 0
        assert "who is missing is not known" in done.stderr
        return json.loads(done.stdout)

    [one] = until(listed, "the instance")
    assert (one["pid"], one["result"]["state"], one["labels"]) == (server.pid, "running", {"zone": "a"})
    with Fleet(nats.url) as fleet:
        [found] = fleet.roster().instances
        with fleet.client(found) as client:
            assert client.stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_streams_without_presences_bring_what_comes(start_nats: StartNats, serve: Serve) -> None:
    """Nothing tells that their instance has left, so it has not."""
    nats = start_nats(jetstream=False)
    server = serve(env=environment(nats.url))
    until(lambda: server.status()["fleet"]["roles"], "at the server")
    server.call("greet", name="x")
    done = run_cli("fleet", "events", "--json", env={"FLASK_CTL_FLEET": nats.url})
    assert done.returncode == 0
    assert "greet" in {json.loads(line).get("command") for line in done.stdout.splitlines()}
    with follow(nats.url) as child:
        until_told(child, nats.url, 1)
        child.send_signal(signal.SIGINT)
        assert child.stdout.read().splitlines()[-1] == '{"end": "interrupted"}'
    with Fleet(nats.url) as fleet:
        [one] = fleet.roster().instances
        with fleet.client(one) as client:
            assert len(client.call("greet", name="x" * 1000, times=1500, _chunks=True)["greeting"]) > 1024 * 1024


WITH_LOST_ONES = """
from flask_ctl.fleet import roster
roster.is_lost = lambda age, interval: interval == 99
from flask_ctl_cli.main import main
main()
"""
"""The program, for which those are lost that would renew their presence every 99 seconds."""


def test_lost_instances_are_forgotten_and_no_others(nats_server: NatsServer, serve: Serve) -> None:
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    with NatsUser(nats_server.url) as user:
        for name in ("dead", "gone"):
            lost = Presence("sample", name, "vm", 7, 1, "running", "2026-11-30T17:12:00Z", "1.0", interval=99)
            user.put("flask_ctl_presence", f"sample.{name}", lost.encoded())

    def cli(*arguments: str) -> Done:
        words = [sys.executable, "-c", WITH_LOST_ONES, "fleet", *arguments]
        env = {**os.environ, "FLASK_CTL_FLEET": nats_server.url}
        return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, env=env)

    refused = cli("reload", "--instance", "dead")
    assert refused.returncode == 1
    assert "(flask-ctl fleet forget takes it from the list); nothing was done" in refused.stdout
    assert cli("forget").returncode == 2
    done = cli("forget", "--instance", "dead")
    assert (done.returncode, done.stdout.partition(",")[0]) == (0, "sample/dead  forgotten")
    assert names(cli("forget", "--all", "--json")) == ["gone"]
    done = cli("forget", "--all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no selected instance is lost\n")
    assert [item["pid"] for item in json.loads(cli("ls", "--json").stdout)] == [server.pid]


def test_the_key_of_a_presence_says_whose_it_is(nats_server: NatsServer, serve: Serve) -> None:
    """Who may write those of one app can't put instances of another into the list."""
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    started = "2026-11-30T17:12:00Z"
    with NatsUser(nats_server.url) as user:
        for key, app, name in (
            ("evil.a", "sample", "a"),
            ("evil.b", "evil", "other"),
            ("evil.x.y", "evil", "x.y"),
            ("evil.c", "evil", "c"),
        ):
            forged = Presence(app, name, "vm", 7, 1, "running", started, "1.0")
            user.put("flask_ctl_presence", key, forged.encoded())
    with Fleet(nats_server.url) as fleet:
        assert [(one.app, one.instance) for one in fleet.roster().instances] == [
            ("evil", "c"),
            ("sample", server.status()["fleet"]["instance"]),
        ]


def test_a_presence_can_not_put_off_its_loss_for_ever() -> None:
    assert is_lost(36.0)
    assert not is_lost(301.0, 99.0)
    assert is_lost(366.0, float("inf"))


def test_one_that_was_heard_of_meanwhile_is_not_forgotten(nats_server: NatsServer, serve: Serve) -> None:
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    server.suspend()
    with Fleet(nats_server.url) as fleet:
        [one] = fleet.roster().instances
        assert not fleet.forget(replace(one, revision=one.revision + 1))
        assert fleet.roster().instances
        assert fleet.forget(one)
        assert not fleet.roster().instances


@pytest.mark.full
def test_an_instance_that_was_killed_is_not_waited_for(nats_server: NatsServer, serve: Serve) -> None:
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    server.kill()
    with Fleet(nats_server.url) as fleet:
        roster = fleet.roster()
        [answer] = fleet.ask("status", roster.instances, roster, timeout=30).values()
        assert isinstance(answer, NotRunning)
        with fleet.client(roster.instances[0]) as client, pytest.raises(NotRunning, match="nothing was done") as caught:
            client.reload(timeout=30)
    assert caught.value.data == {"begun": False}


# Who may


USERS = """
accounts {
  shop {
    jetstream: enabled
    users: [
      {user: app, password: a}
      {user: boss, password: b}
      {
        user: viewer, password: v
        permissions: {publish: ["flask_ctl.observe.>", "$JS.API.>", "$JS.ACK.>", "$SYS.REQ.USER.INFO", "_R_.>"]}
      }
      {
        user: reader, password: r
        permissions: {
          publish: {allow: ["flask_ctl.>", "$JS.API.>", "$SYS.REQ.USER.INFO"], deny: "$JS.API.DIRECT.GET.>"}
        }
      }
      {user: stranger, password: s, permissions: {publish: ["_R_.>"], subscribe: ["_INBOX.>"]}}
    ]
  }
}
jetstream: {}
"""


def user(url: str, name: str) -> dict[str, str]:
    return {"FLASK_CTL_FLEET": url, "FLASK_CTL_FLEET_USER": name, "FLASK_CTL_FLEET_PASSWORD": name[0]}


def test_what_the_server_does_not_permit_is_told_at_once(start_nats: StartNats, serve: Serve) -> None:
    """As permission, with the subject, not as a time-out."""
    nats = start_nats(config=USERS)
    server = serve(env={**environment(nats.url), **user(nats.url, "app")})
    until(lambda: names(run_cli("fleet", "ls", "--json", env=user(nats.url, "boss"))), "the instance")
    done = run_cli("fleet", "status", "--json", env=user(nats.url, "viewer"))
    assert codes(done) == [0]
    done = run_cli("fleet", "drain", "--all", "--json", "--timeout", "25", env=user(nats.url, "viewer"))
    [one] = json.loads(done.stdout)
    assert done.returncode == one["exit"] == 5
    assert f"may not publish to flask_ctl.operate.sample.{one['instance']}" in one["error"]["message"]
    done = run_cli("fleet", "ls", "--timeout", "25", env=user(nats.url, "stranger"))
    assert done.returncode == 5
    assert "stranger may not publish to $JS.API" in done.stderr
    assert server.status()["state"] == "running"


def test_who_may_not_read_the_presence_of_one_instance_has_its_streams(start_nats: StartNats, serve: Serve) -> None:
    nats = start_nats(config=USERS)
    server = serve(env={**environment(nats.url), **user(nats.url, "app")})
    until(lambda: names(run_cli("fleet", "ls", "--json", env=user(nats.url, "boss"))), "the instance")
    server.call("greet", name="x")
    done = run_cli("fleet", "events", "--json", env=user(nats.url, "reader"))
    assert done.returncode == 0
    assert "greet" in {json.loads(line).get("command") for line in done.stdout.splitlines()}


def test_wrong_credentials_are_exit_code_5(start_nats: StartNats) -> None:
    nats = start_nats(config=USERS)
    done = run_cli("fleet", "ls", env={**user(nats.url, "boss"), "FLASK_CTL_FLEET_PASSWORD": "wrong"})
    assert done.returncode == 5
    # Its words are lost if it has closed the connection before our last ones.
    assert done.stderr in {f"Error: {nats.url}: {reason}\n" for reason in (REFUSED, CLOSED)}


def test_an_instance_that_takes_no_operators_says_why(nats_server: NatsServer, serve: Serve) -> None:
    server = serve(env={"FLASK_CTL_FLEET": nats_server.url})
    all_known(nats_server.url, server)
    with Fleet(nats_server.url) as fleet:
        [one] = fleet.roster().instances
        with fleet.client(one) as client:
            assert client.status()["pid"] == server.pid
            with pytest.raises(AccessDenied, match="needs operate: its server has no TLS or no authentication"):
                client.drain()


def test_without_a_server_the_reason_is_told(free_port: int) -> None:
    done = run_cli("fleet", "ls", "--nats", f"nats://127.0.0.1:{free_port}", "--timeout", "0.2")
    assert done.returncode == 1
    assert f"Error: nats://127.0.0.1:{free_port}: " in done.stderr
    assert "no NATS server listens there" in done.stderr


def test_without_an_address_the_variable_is_named() -> None:
    done = run_cli("fleet", "ls")
    assert done.returncode == 2
    assert "name them by --nats or FLASK_CTL_FLEET" in done.stderr


# At most once, when the server was away


def test_a_command_is_sent_again_by_its_id_after_the_server_was_lost(nats_server: NatsServer, serve: Serve) -> None:
    """It runs once, and its answer comes, although the first one was lost."""
    server = serve(env=environment(nats_server.url))
    all_known(nats_server.url, server)
    request = server.begin("/hold/gate")
    with Fleet(nats_server.url) as fleet:
        [one] = fleet.roster().instances
        with fleet.client(one, timeout=60) as client:
            killed: list[Any] = []

            def kill_once(progress: Any) -> None:
                if not killed:
                    killed.append(progress)
                    nats_server.kill()
                    nats_server.start()
                    until(lambda: server.status()["fleet"]["problem"] is None, "the instance at the server again")
                    until(lambda: fleet.connected, "the operator at the server again")
                    server.release("gate")

            result = client.stop(on_progress=kill_once)
    assert (result["outcome"], result["drained"], len(killed)) == ("drained", 1, 1)
    assert request.result()[0] == 200
    assert server.wait() == 0


# The tables


def test_the_roles_that_are_known_are_those_of_the_commands() -> None:
    from flask_ctl.dispatch.commands import CommandRegistry

    nothing: Any = None
    roles = {command.name: command.role for command in builtin_commands(nothing, nothing, CommandRegistry([]))}
    assert {name: roles[name] for name in ROLES if name in roles} == {
        name: role for name, role in ROLES.items() if name in roles
    }
    assert ROLES.keys() - roles.keys() <= {"cancel", "reopen_logs"}


def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_CTL_FLEET_USER", "me")
    with pytest.raises(ConfigurationError, match="FLASK_CTL_FLEET_USER and FLASK_CTL_FLEET_PASSWORD belong together"):
        Fleet("nats://127.0.0.1")


def test_a_closed_fleet_says_so(nats_server: NatsServer) -> None:
    fleet = Fleet(nats_server.url)
    fleet.close()
    fleet.close()
    with pytest.raises(ControlError, match="the connection is closed"):
        fleet.roster()
