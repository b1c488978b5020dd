"""An instance that is controlled over NATS, by a real server and a user that speaks to it by nats-py alone."""

from __future__ import annotations

import json
import platform
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from harness import PYTHON, Program, Serve, Server, connections, first_quick, until
from natsserver import NatsServer, StartNats
from natsuser import NatsUser
from servers import SERVERS
from test_audit import LOGGING, audit_of

from flask_ctl.errors import CONFLICT, PERMISSION_DENIED, SERVER_RELOADED

OPEN = {"FLASK_CTL_FLEET_OPERATE": "true"}
"""Of an app that is operated by a server without TLS."""

Join = Callable[..., Server]


@pytest.fixture
def join(serve: Serve, program: Program) -> Join:
    """Serve the program that can be edited, under control over NATS: `join(server.url)`."""

    def join(url: str, **more: Any) -> Server:
        env = {"FLASK_CTL_FLEET": url, **OPEN, **more.pop("env", {})}
        return serve(cwd=program.directory, env=env, **more)

    return join


@pytest.fixture
def user(nats_server: NatsServer) -> Iterator[NatsUser]:
    with NatsUser(nats_server.url) as user:
        yield user


def instance_of(server: Server, user: NatsUser) -> str:
    """Its name, once it is there."""
    fleet: dict[str, Any] = until(lambda: joined(server), lambda: f"connected: {server.status()['fleet']}")
    return str(fleet["instance"])


def joined(server: Server) -> dict[str, Any] | None:
    fleet: dict[str, Any] = server.status()["fleet"]
    return fleet if fleet["problem"] is None and fleet["roles"] else None


def remote_ports(process: psutil.Process) -> list[int]:
    return [other.raddr.port for other in connections(process.pid, "tcp") if other.raddr]


def at(role: str, instance: str) -> str:
    return f"flask_ctl.{role}.sample.{instance}"


# What an instance is


def test_an_instance_is_a_micro_service_with_what_it_is_as_metadata(join: Join, user: NatsUser) -> None:
    server = join(user.url, env={"FLASK_CTL_FLEET_LABELS": '{"zone": "a"}'})
    instance = instance_of(server, user)
    assert re.fullmatch(f"{platform.node()}-{server.pid}-[0-9a-f]{{6}}", instance)
    [info] = user.services("INFO")
    assert info["name"] == "flask-ctl"
    assert info["metadata"] == {
        "app": "sample", "instance": instance, "host": platform.node(), "pid": str(server.pid), "label.zone": "a",
    }  # fmt: skip
    subjects = {endpoint["name"]: endpoint["subject"] for endpoint in info["endpoints"]}
    assert subjects == {
        **{role: at(role, instance) for role in ("observe", "inspect", "operate")},
        "observe-all": at("observe", "_all"),
    }
    assert {endpoint["queue_group"] for endpoint in info["endpoints"]} == {f"sample.{instance}"}
    [ping] = user.services("PING")
    assert ping["id"] == info["id"]

    def load() -> Any:
        [stats] = user.services("STATS")
        return stats["endpoints"][0]["data"].get("state") == "running" and stats["endpoints"][0]["data"]

    data = until(load, "running in the statistics")
    assert (data["generation"], data["in_flight"]) == (1, 0)


def test_every_instance_answers_what_is_for_all(join: Join, user: NatsUser) -> None:
    servers = [join(user.url) for _ in range(3)]
    assert len(user.services("PING", count=3)) == 3
    user.send(at("observe", "_all"), b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    answers = [user.next() for _ in servers]
    assert {json.loads(answer.data)["result"]["pid"] for answer in answers} == {server.pid for server in servers}
    assert {(answer.headers or {})["Flask-Ctl-Instance"] for answer in answers} == {
        server.status()["fleet"]["instance"] for server in servers
    }


def test_presence_shows_state_and_generation_and_ends_with_the_server(
    join: Join, user: NatsUser, program: Program
) -> None:
    server = join(user.url, env={"FLASK_CTL_FLEET_LABELS": '{"zone": "a"}'})
    instance = instance_of(server, user)

    def presence() -> dict[str, Any]:
        return user.presences().get(instance, {})

    until(lambda: presence().get("state") == "running", lambda: f"running: {presence()}")
    shown = presence()
    assert (shown["app"], shown["pid"], shown["generation"]) == ("sample", server.pid, 1)
    assert (shown["labels"], shown["roles"]) == ({"zone": "a"}, ["observe", "inspect", "operate"])
    assert user.call(at("operate", instance), "reload")["result"]["generation"] == 2
    until(lambda: presence().get("generation") == 2, lambda: f"generation 2: {presence()}")
    assert user.call(at("operate", instance), "drain")["result"]["state"] == "draining"
    until(lambda: presence().get("state") == "draining", lambda: f"draining: {presence()}")
    assert user.call(at("operate", instance), "stop")["result"]["outcome"] == "drained"
    assert server.wait() == 0
    # The server was told, and not waited for.
    until(lambda: user.presences() == {}, lambda: f"no presence: {user.presences()}")


def test_the_presence_of_a_killed_instance_stays(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)
    until(lambda: instance in user.presences(), "present")
    server.kill()
    assert instance in user.presences()


@pytest.mark.parametrize("row", first_quick(["gunicorn gthread", "pywsgi"]))
def test_an_instance_with_workers_or_greenlets_is_one_service_over_a_reload(
    start: Serve, user: NatsUser, row: str
) -> None:
    server = start(SERVERS[row], env={"FLASK_CTL_FLEET": user.url, **OPEN})
    instance = instance_of(server, user)
    assert instance.startswith(f"{platform.node()}-{server.status()['pid']}-")
    assert user.call(at("operate", instance), "greet", {"name": "x"}).headers["Flask-Ctl-Instance"] == instance
    assert user.call(at("operate", instance), "reload")["result"]["generation"] == 2
    assert user.call(at("observe", instance), "status")["result"]["generation"] == 2
    assert len(user.services("PING")) == 1
    assert user.call(at("operate", instance), "stop")["result"]["outcome"] == "drained"
    assert server.wait() == 0


# Who may what

ROLES_TABLE = [
    ("observe", "ping", True),
    ("observe", "stacks", False),
    ("observe", "stop", False),
    ("inspect", "stacks", True),
    ("inspect", "release", False),
    ("operate", "release", True),
]


def test_the_subject_says_what_its_sender_may_do(join: Join, user: NatsUser) -> None:
    instance = instance_of(join(user.url), user)
    for role, method, may in ROLES_TABLE:
        params = {"name": "x"} if method == "release" else {}
        answer = user.call(at(role, instance), method, params, Flask_Ctl_User="ann")
        if may:
            assert "result" in answer, (role, method, answer)
        else:
            assert answer["error"]["code"] == PERMISSION_DENIED, (role, method, answer)
            assert answer["error"]["data"]["role"] == role
            assert answer.headers["Nats-Service-Error-Code"] == str(PERMISSION_DENIED)
            assert "'ann' may observe" in answer.headers["Nats-Service-Error"] or role != "observe"


def test_a_server_without_tls_and_users_may_only_observe(join: Join, user: NatsUser, program: Program) -> None:
    server = join(user.url, env={"FLASK_CTL_FLEET_OPERATE": "false"})
    instance = instance_of(server, user)
    assert server.status()["fleet"]["roles"] == ["observe"]
    assert user.call(at("observe", instance), "ping")["result"]["pong"]
    for role in ("inspect", "operate"):
        user.send(at(role, instance), b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
        assert (user.next().headers or {})["Status"] == "503", "no responders"
    until(lambda: "over NATS sample can only be observed" in server.output, "a warning")


def test_the_audit_log_has_account_and_user(join: Join, user: NatsUser, program: Program) -> None:
    program.edit("first", LOGGING)
    server = join(user.url)
    instance = instance_of(server, user)
    user.call(at("operate", instance), "release", {"name": "x"}, Flask_Ctl_User='ann", uid 0\n')
    user.call(at("observe", instance), "stop")
    released, refused = audit_of(server, 2)
    assert released.startswith('INFO|release(name="x") by via "nats", account "$G", user "ann\\"')
    assert refused.startswith('WARNING|stop() by via "nats", account "$G": refused: -32003')


def test_who_may_less_can_not_speak_at_the_reply_subject_of_one_who_may_more(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)
    reply = user.send(
        at("operate", instance),
        b'{"jsonrpc":"2.0","id":1,"method":"wait_for","params":{"name":"a"}}',
    )
    until(lambda: "waits for a" in server.lines, "the command")
    user.send(at("observe", instance), b'{"jsonrpc":"2.0","id":2,"method":"stop"}', reply=reply)
    assert user.response(reply)["error"]["code"] == PERMISSION_DENIED
    server.release("a")
    assert user.response(reply)["result"] == "a"


def test_what_would_make_us_write_elsewhere_is_no_reply_subject(join: Join, user: NatsUser) -> None:
    """Who may only observe could have a presence, or another instance, get an answer of ours."""
    server = join(user.url)
    instance = instance_of(server, user)
    until(lambda: instance in user.presences(), "present")
    for reply in (f"$KV.flask_ctl_presence.sample.{instance}", at("operate", instance)):
        user.send(at("observe", instance), b'{"jsonrpc":"2.0","id":1,"method":"ping"}', reply=reply)
    assert user.call(at("observe", instance), "ping")["result"]["pong"]
    assert user.presences()[instance]["pid"] == server.pid


def test_half_a_character_in_a_request_costs_only_its_own_answer(join: Join, user: NatsUser) -> None:
    """It can't be in a header."""
    instance = instance_of(join(user.url), user)
    answer = user.call(at("observe", instance), "a\ud800b", {"a\ud800": 1})
    assert answer["error"]["code"] == -32601
    assert user.call(at("observe", instance), "ping")["result"]["pong"]


# At most once


def test_a_command_that_was_seen_is_answered_from_memory(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)
    first = user.call(at("operate", instance), "wait_for_not", Flask_Ctl_Id="wrong")
    assert first["error"]["code"] == -32601
    answers = [
        user.call(at("operate", instance), "reload", number=number, Flask_Ctl_Id="reload 1") for number in (3, 4)
    ]
    assert [answer["id"] for answer in answers] == [3, 4]
    assert answers[0]["result"] == answers[1]["result"]
    assert server.status()["generation"] == 2
    other = user.call(at("operate", instance), "reload", Flask_Ctl_Id="reload 2")
    assert other["result"]["generation"] == 3


def test_a_command_for_another_process_of_the_same_name_is_not_run(join: Join, user: NatsUser) -> None:
    """As behind a hub that was killed: the next one does not know what was sent to it."""
    server = join(user.url)
    instance = instance_of(server, user)
    until(lambda: instance in user.presences(), "present")
    life = user.presences()[instance]["life"]
    assert user.call(at("operate", instance), "release", {"name": "x"}, Flask_Ctl_Life=life)["result"] == "x"
    refused = user.call(at("operate", instance), "release", {"name": "x"}, Flask_Ctl_Life="another")
    assert refused["error"]["data"] == {"life": life, "begun": False}
    server.reload()
    instance_of(server, user)
    assert user.call(at("operate", instance), "release", {"name": "x"}, Flask_Ctl_Life=life)["result"] == "x"


def test_a_command_that_still_runs_is_told_as_such(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)
    request = b'{"jsonrpc":"2.0","id":1,"method":"wait_for","params":{"name":"a"}}'
    reply = user.send(at("operate", instance), request, Flask_Ctl_Id="one")
    until(lambda: "waits for a" in server.lines, "the command")
    again = user.call(at("operate", instance), "wait_for", {"name": "a"}, Flask_Ctl_Id="one")
    assert (again["error"]["code"], again["error"]["data"]) == (CONFLICT, {"running": True})
    server.release("a")
    assert user.response(reply)["result"] == "a"
    assert user.call(at("operate", instance), "wait_for", {"name": "a"}, Flask_Ctl_Id="one")["result"] == "a"
    assert server.lines.count("waits for a") == 1


def test_a_command_that_a_reload_cuts_off_is_not_run_again(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)
    request = b'{"jsonrpc":"2.0","id":1,"method":"wait_for","params":{"name":"never"}}'
    reply = user.send(at("operate", instance), request, Flask_Ctl_Id="one")
    until(lambda: "waits for never" in server.lines, "the command")
    assert server.reload(grace=0, cut=True)["generation"] == 2
    assert user.response(reply)["error"]["code"] == SERVER_RELOADED
    instance_of(server, user)
    again = user.call(at("operate", instance), "wait_for", {"name": "never"}, Flask_Ctl_Id="one")
    assert again["error"]["data"] == {"may_have_run": True}
    assert server.lines.count("waits for never") == 1


def test_a_lower_fence_than_one_seen_is_refused_after_a_reload_too(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)

    def answer(fence: int) -> dict[str, Any]:
        return user.call(at("operate", instance), "release", {"name": "x"}, Flask_Ctl_Fence=str(fence))

    assert answer(5)["result"] == "x"
    assert answer(5)["result"] == "x"
    assert answer(4)["error"]["data"] == {"fence": 5, "begun": False}
    server.reload()
    instance_of(server, user)
    assert answer(4)["error"]["data"] == {"fence": 5, "begun": False}
    assert answer(6)["result"] == "x"


# What is long, or too much


def test_an_answer_longer_than_a_message_comes_in_parts_and_one_of_2_mib_in_chunks(
    join: Join, user: NatsUser, program: Program
) -> None:
    program.edit("first", "@control.command\ndef text(size: int) -> str:\n    return 'x' * size")
    server = join(user.url)
    instance = instance_of(server, user)
    size = 1024 * 1024 - 200
    assert user.call(at("operate", instance), "text", {"size": size})["result"] == "x" * size
    refused = user.call(at("operate", instance), "text", {"size": 2 * size})
    assert "call with _chunks" in refused["error"]["message"]
    request = {"jsonrpc": "2.0", "id": 1, "method": "text", "params": {"size": 2 * size, "_chunks": True}}
    reply = user.send(at("operate", instance), json.dumps(request).encode(), Flask_Ctl_Id="long")
    head = user.response(reply)["result"]
    pieces: list[str] = []
    while len(pieces) < head["chunks"]:
        value = json.loads(user.next().data)
        pieces.append(value["params"]["chunk"])
    assert json.loads("".join(pieces)) == "x" * 2 * size
    again = user.call(at("operate", instance), "text", {"size": 1}, Flask_Ctl_Id="long")
    assert again["error"]["data"] == {"ran": True}
    assert server.status()["state"] == "running"


def test_a_flood_of_commands_is_refused_and_the_local_socket_answers(join: Join, user: NatsUser) -> None:
    server = join(user.url)
    instance = instance_of(server, user)
    request = b'{"jsonrpc":"2.0","id":1,"method":"wait_for","params":{"name":"a"}}'
    for _ in range(300):
        user.send(at("operate", instance), request)
    refused = [json.loads(user.next().data)["error"]["code"] for _ in range(200)]
    assert set(refused) == {CONFLICT}
    assert server.status()["state"] == "running"


# The worst day


def test_without_a_broker_nothing_waits_for_it(join: Join, start_nats: StartNats, free_port: int) -> None:
    server = join(f"nats://127.0.0.1:{free_port}")
    assert server.status()["fleet"]["problem"]
    assert server.reload()["generation"] == 2
    with server.client() as client:
        assert client.stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_a_broker_that_comes_back_finds_the_instance_again(
    join: Join, nats_server: NatsServer, program: Program
) -> None:
    server = join(nats_server.url)
    with NatsUser(nats_server.url) as user:
        instance = instance_of(server, user)
    nats_server.kill()
    until(lambda: server.status()["fleet"]["problem"], "not connected")
    assert server.call("look") == "old"
    nats_server.start()
    with NatsUser(nats_server.url) as user:
        assert instance_of(server, user) == instance
        until(lambda: instance in user.presences(), "present")
        assert user.call(at("operate", instance), "greet", {"name": "x"})["result"]


def test_without_jetstream_only_the_presence_is_missing(join: Join, start_nats: StartNats) -> None:
    """Also where that is to be told as soon as there is a connection."""
    nats_server = start_nats(jetstream=False)
    nats_server.kill()
    server = join(nats_server.url)
    nats_server.start()
    with NatsUser(nats_server.url) as user:
        instance = instance_of(server, user)
        missing = f"the presence of {instance} can't be renewed: the NATS server has no JetStream"
        until(lambda: missing in server.output, lambda: f"a warning: {server.output}")
        assert joined(server)
        assert user.call(at("operate", instance), "stop")["result"]["outcome"] == "drained"
    assert server.wait() == 0


def test_a_stop_does_not_wait_for_a_broker_that_hangs(join: Join, nats_server: NatsServer) -> None:
    server = join(nats_server.url)
    with NatsUser(nats_server.url) as user:
        instance_of(server, user)
    nats_server.suspend()
    try:
        with server.client() as client:
            assert client.stop()["outcome"] == "drained"
        assert server.wait() == 0
    finally:
        nats_server.go_on()


def test_what_a_command_has_done_is_known_when_the_broker_has_come_back(join: Join, nats_server: NatsServer) -> None:
    server = join(nats_server.url)
    with NatsUser(nats_server.url) as user:
        instance = instance_of(server, user)
        request = b'{"jsonrpc":"2.0","id":1,"method":"wait_for","params":{"name":"a"}}'
        user.send(at("operate", instance), request, Flask_Ctl_Id="one")
        until(lambda: "waits for a" in server.lines, "the command")
        nats_server.kill()
        until(lambda: server.status()["fleet"]["problem"], "not connected")
        server.release("a")
        nats_server.start()
    with NatsUser(nats_server.url) as user:
        instance_of(server, user)
        assert user.call(at("operate", instance), "wait_for", {"name": "a"}, Flask_Ctl_Id="one")["result"] == "a"
    assert server.lines.count("waits for a") == 1


USERS = """
authorization { users: [{user: shop, password: right}] }
"""


def test_credentials_that_are_refused_are_told_and_tried_again(
    join: Join, start_nats: StartNats, program: Program
) -> None:
    nats_server = start_nats(config=USERS)
    server = join(nats_server.url, env={"FLASK_CTL_FLEET_USER": "shop", "FLASK_CTL_FLEET_PASSWORD": "wrong"})
    until(
        lambda: server.status()["fleet"]["problem"] == "the server refuses these credentials",
        lambda: f"refused: {server.status()['fleet']}",
    )
    until(lambda: "it is tried again and again" in server.output, lambda: f"a warning: {server.output}")
    assert "wrong" not in server.output
    nats_server.kill()
    config = nats_server.directory / "nats.conf"
    config.write_text(USERS.replace("right", "wrong"))
    nats_server.start()
    with NatsUser(nats_server.url, user="shop", password="wrong") as user:
        instance_of(server, user)


def test_no_credentials_are_sent_to_a_server_without_the_tls_that_is_wanted(join: Join) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve_once() -> None:
        sock, _ = listening.accept()
        with sock:
            sock.sendall(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"auth_required":true}\r\n')
            sock.settimeout(20)
            heard.append(sock.recv(4096))

    plain = threading.Thread(target=serve_once)
    plain.start()
    url = f"tls://127.0.0.1:{listening.getsockname()[1]}"
    server = join(url, env={"FLASK_CTL_FLEET_USER": "shop", "FLASK_CTL_FLEET_PASSWORD": "secret"})
    plain.join()
    listening.close()
    assert heard == [b""]
    until(lambda: "the server has no TLS, which is wanted" in server.output, lambda: f"a warning: {server.output}")


WRONG = {
    "no URL": ({"FLASK_CTL_FLEET": "http://broker"}, "'http://broker' is no URL such as nats://broker:4222"),
    "a slash in a password": ({"FLASK_CTL_FLEET": "nats://ann:12/secret@broker"}, "are written as %2F"),
    "a comma in a password": ({"FLASK_CTL_FLEET": "nats://ann:a,secret@broker:1"}, "are written as %2F"),
    "half an address": ({"FLASK_CTL_FLEET": "nats://[::1"}, "is no URL such as nats://broker:4222"),
    "no list": ({"FLASK_CTL_FLEET": "4222"}, "has to be a URL such as nats://broker:4222, or a list"),
    "two ways": (
        {"FLASK_CTL_FLEET_NKEY": "/a", "FLASK_CTL_FLEET_CREDENTIALS": "/b"},
        "CTL_FLEET_CREDENTIALS and CTL_FLEET_NKEY exclude each other",
    ),
    "a user alone": ({"FLASK_CTL_FLEET_USER": "ann"}, "CTL_FLEET_USER and CTL_FLEET_PASSWORD belong together"),
    "a certificate alone": ({"FLASK_CTL_FLEET_KEY": "/k"}, "CTL_FLEET_CERTIFICATE and CTL_FLEET_KEY belong together"),
    "operate": ({"FLASK_CTL_FLEET_OPERATE": "1"}, "CTL_FLEET_OPERATE has to be True or False, not 1"),
    "labels": ({"FLASK_CTL_FLEET_LABELS": '["a"]'}, "CTL_FLEET_LABELS has to be a dict"),
}


@pytest.mark.parametrize("name", first_quick(WRONG, 3))
def test_a_wrong_setting_keeps_the_app_from_starting_and_is_named(serve: Serve, name: str) -> None:
    env, message = WRONG[name]
    server = serve(env={"FLASK_CTL_FLEET": "nats://127.0.0.1:1", **env}, ready=False)
    assert server.wait() == 1
    assert message in server.output
    assert "secret" not in server.output.partition("ConfigurationError: ")[2]
    assert "ann" not in server.output.partition("ConfigurationError: ")[2]


MISSING = {
    "credentials": ("FLASK_CTL_FLEET_CREDENTIALS", "/none.creds, with the credentials for NATS, can't be read"),
    "authorities": ("FLASK_CTL_FLEET_CA", "the certificates for NATS can't be used (/none.creds)"),
}


@pytest.mark.parametrize("name", first_quick(MISSING))
def test_without_a_file_the_app_serves_and_says_what_is_missing(serve: Serve, name: str) -> None:
    variable, message = MISSING[name]
    server = serve(env={"FLASK_CTL_FLEET": "nats://127.0.0.1:1", variable: "/none.creds"})
    until(lambda: message in server.output, lambda: f"a warning: {server.output}")
    assert "sample serves without control over NATS" in server.output


def test_without_nats_py_the_app_serves_and_says_how_to_install_it(serve: Serve, program: Program) -> None:
    code = "import sys; sys.modules['nats'] = None\nimport runpy; runpy.run_path('sample.py', run_name='__main__')"
    server = serve(command=[*PYTHON[:1], "-c", code], cwd=program.directory, env={"FLASK_CTL_FLEET": "nats://x"})
    until(lambda: "pip install 'flask-ctl[fleet]'" in server.output, lambda: f"a warning: {server.output}")


def test_a_child_that_the_app_forks_has_no_part_in_the_connection(join: Join, nats_server: NatsServer) -> None:
    server = join(nats_server.url)
    with NatsUser(nats_server.url) as user:
        instance = instance_of(server, user)
        child = psutil.Process(int(server.get("/fork")[1]))
        until(lambda: nats_server.port not in remote_ports(child), "closed there")
        assert user.call(at("observe", instance), "ping")["result"]["pid"] == server.pid
