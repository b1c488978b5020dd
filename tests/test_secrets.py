"""What a client or the app has said in confidence is in no command's output."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import Any

import pytest
from harness import Program, Serve, Server, first_quick, raw, read_all, run_cli, until
from servers import SERVERS

from flask_ctl import AccessDenied, ControlClient

SECRET = "hunter2"
"""It stands in every place below; the text ``visible`` stands beside it, so that the places are known to be shown."""

FORMS = [
    f"visible password={SECRET}",
    json.dumps({"visible": 1, "access_token": SECRET}),
    f"visible\nAuthorization: Bearer {SECRET}",
    f"visible\nCookie: session={SECRET}; theme=dark",
    f"visible https://ann:{SECRET}@example.org/",
    f"visible https://example.org/?api_key={SECRET}&page=2",
]

LEAKY = f"""
import logging
app.config["SECRET_KEY"] = "{SECRET}"
app.config["DATABASE_URL"] = "postgresql://shop:{SECRET}@db/shop"
app.config["CTL_SLOW_REQUEST"] = 0.5
app.config["CTL_MAX_REFUSALS"] = 100
FORMS = {FORMS!r}

@app.get("/leak/<int:form>")
def leak(form):
    logging.getLogger("shop").warning(FORMS[form])
    raise ValueError(FORMS[form])

@control.command(role="observe")
def say(password: str = "") -> str:
    return "said"
"""

COMMANDS = ["ping", "status", "commands", "requests", "stacks", "exceptions", "describe", "routes", "logs", "events"]


@pytest.fixture(params=first_quick(["gunicorn gthread", "flask run"]))
def leaky(request: pytest.FixtureRequest, program: Program, start: Serve, free_port: int) -> Server:
    """A server that has heard the secret in every form, and has a request in flight with it."""
    program.edit("first", LEAKY)
    addresses = json.dumps([str(program.directory / "x.sock"), f"tcp://127.0.0.1:{free_port}"])
    server = start(SERVERS[request.param], env={"FLASK_CTL_SOCKET": addresses}, socket=program.directory / "x.sock")
    host, port = server.address
    for form in range(len(FORMS)):
        connection = HTTPConnection(host, port)
        connection.request("GET", f"/leak/{form}?token={SECRET}", headers={"Cookie": f"session={SECRET}"})
        assert connection.getresponse().status == 500
        connection.close()
    server.call("say", password=SECRET)
    return server


def outputs(server: Server, socket: str) -> dict[str, str]:
    """What each command prints, as text, as JSON, and over netcat."""
    printed = {}
    for name in COMMANDS:
        for how in ([], ["--json"]):
            done = run_cli(
                "call" if name == "commands" else name, *([name] if name == "commands" else []), *how, "-s", socket
            )
            printed[" ".join([name, *how])] = done.stdout + done.stderr
        if not socket.startswith("tcp"):
            with raw(socket) as sock:
                sock.sendall(f"{name}\n".encode())
                printed[f"{name} over netcat"] = read_all(sock).decode()
    return printed


def test_no_output_has_a_secret_for_those_who_may_inspect(leaky: Server) -> None:
    held = leaky.begin(f"/hold/a?token={SECRET}&visible=yes")
    until(lambda: "slow_request" in run_cli("events", "-s", leaky.socket).stdout, "the slow request is told")
    printed = outputs(leaky, leaky.socket)
    leaky.release("a")
    held.result()
    assert {name for name, text in printed.items() if SECRET in text} == set()
    for name in ("requests", "logs", "exceptions", "events"):
        assert "visible" in printed[name]


def test_observers_see_neither_texts_nor_queries(leaky: Server) -> None:
    held = leaky.begin(f"/hold/a?token={SECRET}&visible=yes")
    (tcp,) = [socket for socket in leaky.status()["control"]["sockets"] if socket.startswith("tcp")]
    until(lambda: "slow_request" in run_cli("events", "-s", leaky.socket).stdout, "the slow request is told")
    printed = outputs(leaky, tcp)
    leaky.release("a")
    held.result()
    assert {name for name, text in printed.items() if SECRET in text or "visible" in text} == set()
    assert "/hold/<name>" in printed["requests"]
    assert "slow_request" in printed["events"]
    with ControlClient(tcp) as client:
        for ask in (client.stacks, client.exceptions, lambda: list(client.follow("logs"))):
            refused: Any = ask
            with pytest.raises(AccessDenied, match=r"may observe .* but not inspect"):
                refused()
