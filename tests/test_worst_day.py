"""Looking inside on the worst day: every thread hangs, nothing is left, and readers do not read."""

from __future__ import annotations

import contextlib
import resource
from http.client import HTTPException
from typing import Any

import pytest
from harness import TIMEOUT, Pending, Program, Serve, Server, until
from manyworkers import all_there, hub, kill, workers
from servers import SERVERS

from flask_ctl import ControlError

DEADLOCK = """
import logging, os, threading
app.config["CTL_SLOW_REQUEST"] = 1.0
deadlock = threading.Lock()
deadlock.acquire()

@app.get("/deadlock")
def into_deadlock():
    logging.getLogger("shop").warning("into the deadlock")
    deadlock.acquire()

@control.command
def hang() -> None:
    deadlock.acquire()

@control.command
def eat() -> int:
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        globals()["held"] = held
        return len(held)
"""

KINDS = ["waitress", "gunicorn gthread, 1 worker"]


@pytest.fixture
def everything(program: Program, start: Serve, request: pytest.FixtureRequest) -> Server:
    program.edit("first", DEADLOCK)
    return start(SERVERS[request.param])


def look_at_all(server: Server) -> dict[str, Any]:
    """What each command shows."""
    with server.client(timeout=TIMEOUT) as client:
        return {
            "status": client.status(),
            "doctor": client.doctor(),
            "requests": client.requests()["requests"],
            "stacks": client.stacks()["stacks"],
            "exceptions": client.exceptions()["exceptions"],
            "logs": [item["message"] for item in client.follow("logs", logger="shop") if "message" in item],
            "events": [item["event"] for item in client.follow("events") if "event" in item],
        }


@pytest.mark.parametrize("everything", KINDS, indirect=True)
def test_all_is_shown_while_every_thread_hangs_and_no_descriptor_is_left(everything: Server) -> None:
    server = everything
    (serving,) = workers(server) or [server.pid]
    held = [server.begin("/deadlock") for _ in range(4)]
    resource.prlimit(serving, resource.RLIMIT_NOFILE, (128, 128))
    server.call("eat")
    hanging = [Pending.call(lambda: server.call("hang")) for _ in range(5)]
    until(lambda: "slow_request" in look_at_all(server)["events"], "slow requests are told")
    seen = look_at_all(server)
    assert seen["status"]["requests"]["in_flight"] == len(held)
    assert seen["doctor"] == {"findings": [], "unanswered": []}
    assert [request["route"] for request in seen["requests"]] == ["/deadlock"] * len(held)
    assert [stack["frames"][-1]["function"] for stack in seen["stacks"]] == ["into_deadlock"] * len(held)
    assert seen["logs"] == ["into the deadlock"] * len(held)
    with server.client() as client:
        assert client.stop("fast")["cut"] >= len(held)
    for pending in held:
        with pytest.raises(OSError):  # noqa: PT011
            pending.result()
    for pending in hanging:
        # Behind a hub each worker has its own error in the result.
        with contextlib.suppress(ControlError):
            pending.result()


HELD = "/hold/<name>"


def held_in(server: Server) -> dict[int, str]:
    """The worker of each request that waits in its view, and the view's function on its stack."""
    with server.client(timeout=TIMEOUT) as client:
        requests, stacks = client.requests(), client.stacks()
    assert requests["unanswered"] == stacks["unanswered"] == []
    told = {request["worker"] for request in requests["requests"] if request["route"] == HELD}
    functions = {
        stack["worker"]: frame["function"]
        for stack in stacks["stacks"]
        for frame in stack["frames"]
        if frame["function"] == "hold"
    }
    return functions if functions.keys() == told else {}


def exceptions_of(server: Server, worker: int | None = None) -> int:
    with server.client(timeout=TIMEOUT) as client:
        answer = client.exceptions(worker=worker)
    assert answer["unanswered"] == []
    return sum(entry["count"] for entry in answer["exceptions"])


def test_what_there_is_is_told_once_a_worker_and_then_the_hub_was_killed(start: Serve) -> None:
    server = all_there(start(SERVERS["gunicorn gthread"]), 2)
    first = server.begin("/hold/a")
    (victim,) = until(lambda: held_in(server), "the request")
    while not all(exceptions_of(server, pid) for pid in workers(server)):
        server.get("/boom")
    lost, known = exceptions_of(server, victim), exceptions_of(server)
    kill(victim)
    with pytest.raises((OSError, HTTPException)):
        first.result()
    until(lambda: victim not in workers(server) and len(workers(server)) == 2, "another worker")
    assert held_in(server) == {}
    assert exceptions_of(server) == known - lost
    second = server.begin("/hold/b")
    (holder,) = until(lambda: held_in(server), "the other request")
    kill(hub(server))
    all_there(server, 2)
    assert held_in(server) == {holder: "hold"}
    assert exceptions_of(server) == known - lost
    server.release("b")
    assert second.result() == (200, b"held b")
    assert held_in(server) == {}
