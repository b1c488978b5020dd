"""What docs/protocol.md and `--help` claim, tried out."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from flask import Flask
from harness import (
    PYTHON,
    SITES,
    TIMEOUT,
    Pending,
    Program,
    Serve,
    Server,
    Site,
    first_quick,
    raw,
    read_all,
    run_cli,
    until,
)
from servers import SERVERS
from wires import StreamTalk, request

from flask_ctl import Control

ROOT = pathlib.Path(__file__).parent.parent
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


@pytest.fixture
def talk(serve: Serve) -> Iterator[StreamTalk]:
    """A raw connection with a server of `sample`."""
    with raw(serve().socket) as sock:
        yield StreamTalk(sock)


def ask(talk: StreamTalk, **members: Any) -> Any:
    talk.send(json.dumps({"jsonrpc": "2.0", "id": 1, **members}).encode())
    return talk.receive()


# Messages


def test_parameters_by_position_have_the_order_of_commands(talk: StreamTalk) -> None:
    described = ask(talk, method="commands")["result"]
    assert list(described["stop"]["parameters"]["properties"]) == ["mode", "grace", "delay", "begin"]
    assert ask(talk, method="greet", params=["ann"])["result"] == {"greeting": "hello ann"}
    assert ask(talk, method="ping", params=[])["result"]["pong"] is True
    assert ask(talk, method="ping", params=[1])["error"]["code"] == -32602
    assert ask(talk, method="stop", params=["gently"])["error"]["data"] == {"parameter": "mode"}


def test_unknown_members_and_what_is_about_the_call_are_ignored_and_unknown_parameters_refused(
    talk: StreamTalk,
) -> None:
    assert ask(talk, method="ping", extra={"a": 1}, error=None)["result"]["pong"] is True
    assert ask(talk, method="ping", params={"_later": 1})["result"]["pong"] is True
    refused = ask(talk, method="ping", params={"later": 1})["error"]
    assert (refused["code"], refused["data"]) == (-32602, {"parameter": "later"})


def test_empty_lines_and_spaces_around_a_line_are_ignored(talk: StreamTalk) -> None:
    talk.send(b"", b"  \r", b"  " + request("ping") + b" \r")
    assert talk.receive()["result"]["pong"] is True


def test_what_is_no_json_or_no_request_is_an_error_and_the_connection_goes_on(talk: StreamTalk) -> None:
    for message, code in (
        (b"{", -32700),
        (b"[}", -32700),
        (b"{}", -32600),
        (b"[]", -32600),
        (b'{"jsonrpc":1}', -32600),
    ):
        talk.send(message)
        error = talk.receive()
        assert (error["id"], error["error"]["code"]) == (None, code)
    assert ask(talk, method="ping")["result"]["pong"] is True


def test_a_line_that_is_too_long_is_an_error_and_the_end(talk: StreamTalk) -> None:
    talk.send(b'{"' + b"x" * 1024 * 1024)
    error = talk.receive()
    assert (error["id"], error["error"]["code"]) == (None, -32600)
    assert talk.ended()


def test_a_plain_command_is_answered_and_the_end(serve: Serve) -> None:
    with raw(serve().socket) as sock:
        sock.sendall(b"ping\nping\n")
        assert read_all(sock).count(b"pong") == 1


def test_a_client_that_has_closed_its_side_gets_its_answers_and_the_end(talk: StreamTalk) -> None:
    talk.send(request("wait_for", name="a"), request("release", 2, name="a"))
    talk.sock.shutdown(1)
    assert {talk.receive()["id"], talk.receive()["id"]} == {1, 2}
    assert talk.ended()


@pytest.fixture
def dealer(serve: Serve, short_path: pathlib.Path) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER that is connected to a server over ipc."""
    server = serve(socket=f"ipc://{short_path}/x.zmq")
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.rcvtimeo = sock.sndtimeo = int(TIMEOUT * 1000)
        sock.connect(server.socket)
        yield sock


def test_over_zeromq_a_message_is_one_frame_and_no_plain_command(dealer: zmq.Socket[bytes]) -> None:
    dealer.send(b"ping")
    assert json.loads(dealer.recv())["error"]["code"] == -32700
    dealer.send_multipart([b"", request("ping")])
    refused = json.loads(dealer.recv())
    assert (refused["id"], refused["error"]["code"], refused["error"]["message"]) == (
        None,
        -32002,
        "a message is one frame",
    )
    dealer.send(b"\n" + request("ping") + b"\n")
    assert json.loads(dealer.recv())["result"]["pong"] is True
    dealer.send(b"")
    assert dealer.recv() == b""


# The proof of the end


@pytest.mark.parametrize("site", SITES, indirect=True)
def test_the_proof_is_the_process_on_this_machine_and_the_connection_over_tcp(serve: Serve, site: Site) -> None:
    with serve(socket=site).client() as client:
        assert client.stop()["proof"] == ("connection" if site.socket.startswith("tcp") else "process")


# The default address


@pytest.mark.parametrize("name", ["shop", "the shop/2", "läden", "a.b_c-d"])
def test_the_default_address_is_made_of_name_and_root_path(name: str, short_path: pathlib.Path) -> None:
    app = Flask(name, root_path=str(short_path))
    (address,) = Control(app).sockets(app)
    digits = hashlib.sha256(os.fsencode(app.root_path)).hexdigest()[:8]
    safe = re.sub("[^A-Za-z0-9._-]", "_", name)
    assert address == f"{os.environ['XDG_RUNTIME_DIR']}/flask-ctl/{safe}-{digits}.sock"


# Reloads


def progress_of(server: Server, hold: str, **options: Any) -> list[Any]:
    """The notifications of a reload with a request in flight, which ends when two of them have come in the drain."""
    seen: list[Any] = []
    reload = Pending.call(lambda: server.reload(on_progress=seen.append, **options))
    until(lambda: sum(each["phase"] == "drain" for each in seen) > 1, "the drain")
    server.release(hold)
    reload.result()
    return seen


@pytest.mark.parametrize("name", first_quick(["gunicorn gthread", "werkzeug"]))
def test_what_remains_of_a_reload_never_grows_and_each_notification_has_the_same_members(
    start: Serve, name: str
) -> None:
    server = start(SERVERS[name])
    held = server.begin("/hold/a")
    seen = progress_of(server, "a", grace=TIMEOUT)
    held.result()
    remaining = [each["remaining"] for each in seen]
    assert remaining == sorted(remaining, reverse=True)
    assert seen[0]["phase"] == "preflight"
    assert seen[0]["remaining"] > TIMEOUT
    # A worker may have told of it before Flask has found its route.
    assert {each["oldest_request"]["route"] for each in seen if each["in_flight"]} <= {"/hold/<name>", None}
    for each in seen:
        assert {"id", "phase", "in_flight", "remaining", "waiting_for"} <= set(each)
        assert each["waiting_for"] == []
        assert ("old" in each and "new" in each) == (name != "werkzeug")


def test_threads_that_a_reload_waits_for_are_named_in_its_progress(serve: Serve) -> None:
    code = (
        "import threading, flask, flask_ctl\n"
        "app = flask.Flask('t'); control = flask_ctl.Control(app); go = threading.Event()\n"
        "@control.command(role='observe')\n"
        "def let_go() -> None: go.set()\n"
        "if not flask_ctl.preflighting: threading.Thread(target=go.wait, name='mine').start()\n"
        "app.run(port=0)"
    )
    server = serve(command=[*PYTHON, "-c", code])
    seen: list[Any] = []
    reload = Pending.call(lambda: server.reload(on_progress=seen.append, preflight=False))
    until(lambda: any(each["waiting_for"] == ["mine"] for each in seen), "the thread is named")
    server.call("let_go")
    assert reload.result()["generation"] == 2
    server.call("let_go")


def test_what_is_sent_behind_a_reload_is_answered_by_the_old_code_until_that_is_replaced(
    serve: Serve, program: Program
) -> None:
    server = serve(cwd=program.directory)
    held = server.begin("/hold/a")
    with raw(server.socket) as sock:
        talk = StreamTalk(sock)
        talk.send(request("reload", 1, preflight=False), request("status", 2), request("release", 3, name="a"))
        status = talk.receive()
        assert (status["id"], status["result"]["state"], status["result"]["generation"]) == (2, "reloading", 1)
        assert talk.receive()["id"] == 3
        reloaded = talk.receive()
        assert (reloaded["id"], reloaded["result"]["generation"]) == (1, 2)
        talk.send(request("status", 4))
        assert talk.receive()["result"]["generation"] == 2
    held.result()


# The document itself, and --help


def test_the_document_names_every_command_that_every_server_answers_with_its_parameters(talk: StreamTalk) -> None:
    described = ask(talk, method="commands")["result"]
    for name in ("ping", "status", "stop", "reload", "commands"):
        assert f"`{name}" in PROTOCOL
        for parameter in described[name]["parameters"]["properties"]:
            assert re.search(rf"`{name}\([^)]*\b{parameter}=", PROTOCOL), (name, parameter)


def test_the_document_names_every_field_of_status(talk: StreamTalk) -> None:
    for field, value in ask(talk, method="status")["result"].items():
        assert f"`{field}`" in PROTOCOL, field
        for inner in value if field in ("server", "requests", "process", "control") else ():
            assert f"`{inner}`" in PROTOCOL, (field, inner)


@pytest.mark.parametrize("command", ["stop", "reload"])
def test_the_help_of_a_command_that_changes_something_names_all_its_exit_codes(command: str) -> None:
    text = " ".join(run_cli(command, "--help").stdout.split())
    for code in range(9):
        assert (code == 7 and command == "stop") or re.search(rf"\b{code} [a-z-]", text), code


def test_quiet_is_what_its_help_says(serve: Serve) -> None:
    server = serve()
    assert "ping, stop and reload print nothing" in " ".join(run_cli("ping", "--help").stdout.split())
    for words in (["ping"], ["reload", "--config"], ["stop"]):
        done = run_cli(*words, "--quiet", "-s", server.socket)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), words
