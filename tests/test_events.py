"""`events`: what has happened to a server and its workers, in order, over reloads."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Program, Serve, Server, first_quick, raw, read_all, run_cli, until
from manyworkers import kill, workers
from servers import SERVERS

from flask_ctl import CommandError, ReloadFailed
from flask_ctl.inspection import events
from flask_ctl.inspection.ring import Ring

SECRET = """
@app.get("/secret")
def secret():
    raise ValueError("password=hunter2")
"""


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Ring:
    """The events of this test alone."""
    ring = Ring(3)
    monkeypatch.setattr(events, "ring", ring)
    return ring


def shown(ring: Ring, *, full: bool) -> list[dict[str, Any]]:
    return [events.as_item(event, full=full) for _, event in ring.after(0)]


def test_texts_are_for_inspectors_and_without_secrets(ring: Ring) -> None:
    events.record("exception", {"message": "token=abc"}, type="ValueError")
    (observed,), (inspected,) = shown(ring, full=False), shown(ring, full=True)
    assert observed == {"time": observed["time"], "event": "exception", "type": "ValueError"}
    assert inspected == {**observed, "message": "token=***"}


def test_texts_are_masked_within_objects_and_bounded(ring: Ring) -> None:
    error = {"code": 1, "message": "can't connect: password=hunter2"}
    events.record("command", {"error": error, "stack": "line\n" * 10_000})
    (event,) = shown(ring, full=True)
    assert event["error"]["message"] == "can't connect: password=***"
    assert len(event["stack"]) < 4200
    assert "characters left out" in event["stack"]


def test_a_record_of_the_audit_log_is_an_event(ring: Ring) -> None:
    fields = {"peer": {"uid": 0}, "command": "stop", "parameters": {"grace": 3}, "outcome": "done", "error": None}
    events.record_command({**fields, "duration": 0.1, "count": 1})
    (inspected,) = shown(ring, full=True)
    assert (inspected["command"], inspected["outcome"], inspected["parameters"]) == ("stop", "done", {"grace": 3})
    assert "parameters" not in shown(ring, full=False)[0]


def test_since_when_events_are_kept_is_told_once_some_have_left(ring: Ring) -> None:
    for _ in range(3):
        events.record("serving")
    assert events.describe()["kept_since"]["events"] == shown(ring, full=False)[0]["time"]


def kinds(server: Server, **wanted: Any) -> list[str]:
    """The kinds of what has happened, without our own questions."""
    with server.client() as client:
        items = list(client.follow("events", **wanted))
    return [item["event"] for item in items if "event" in item]


def test_the_life_of_a_server_is_told_in_order(program: Program, start: Serve) -> None:
    program.edit("first", SECRET)
    server = start(SERVERS["flask run"])
    assert kinds(server) == ["starting", "serving"]
    assert server.get("/secret")[0] == 500
    assert server.get("/secret")[0] == 500
    program.edit("second", "1 / 0\n")
    with pytest.raises(ReloadFailed):
        server.reload()
    program.edit("third", SECRET)
    server.reload()
    told = kinds(server)
    # The second time it is no new exception.
    assert told[2:6] == ["exception", "reload_begun", "reload_refused", "command"]
    assert [kind for kind in told[6:] if kind != "command"] == ["reload_begun", "starting", "serving", "reload_done"]
    with server.client() as client:
        refused = next(item for item in client.follow("events") if item.get("event") == "reload_refused")
        assert "ZeroDivisionError" in refused["why"]
        followed = client.follow("events", follow=True, lines=0)
        assert "about" in next(followed)
        stopping = server.begin("/hold/a")
        with server.client() as other:
            other.stop(wait=False)
        assert next(followed)["event"] == "stopping"
        assert next(followed)["event"] == "draining"
        with server.client() as other:
            other.call("release", name="a")
        stopping.result()
        assert list(followed)[-1] == {"end": "the server has ended"}


def slow(server: Server) -> list[dict[str, Any]]:
    """The events of slow requests for /hold, and of no other that the test itself has made."""
    with server.client() as client:
        events = [item for item in client.follow("events") if item.get("event") == "slow_request"]
    return [event for event in events if event["route"] == "/hold/<name>"]


@pytest.mark.parametrize("kind", first_quick(["gunicorn gthread", "flask run"]))
def test_a_slow_request_is_an_event_once_with_its_stack(program: Program, start: Serve, kind: str) -> None:
    # Long enough that the view has begun by then.
    program.edit("first", 'app.config["CTL_SLOW_REQUEST"] = 1.0\n')
    server = start(SERVERS[kind])
    held = [server.begin("/hold/a")]
    until(lambda: slow(server), "it is told")
    (told,) = slow(server)
    assert (told["method"], told["path"]) == ("GET", "/hold/a")
    assert " in hold\n" in told["stack"]
    held.append(server.begin("/hold/b"))
    until(lambda: len(slow(server)) == 2, "the other one is told")
    for name in "ab":
        server.release(name)
    for pending in held:
        pending.result()
    assert [event["path"] for event in slow(server)] == ["/hold/a", "/hold/b"]


def test_a_hub_tells_of_workers_that_come_end_and_die(program: Program, start: Serve) -> None:
    program.edit("first", SECRET)
    server = start(SERVERS["gunicorn gthread"])
    assert kinds(server)[:3] == ["starting", "worker_joined", "serving"]
    until(lambda: kinds(server).count("worker_joined") == 2, "both workers are there")
    pid = workers(server)[0]
    kill(pid)
    until(lambda: kinds(server).count("worker_joined") == 3, "another worker is there")
    with server.client() as client:
        (lost,) = [item for item in client.follow("events") if item.get("event") == "worker_lost"]
        assert (lost["pid"], lost["generation"], lost["in_flight"]) == (pid, 1, 0)
    server.reload()
    assert kinds(server).count("worker_ended") == 2
    assert kinds(server)[-2:] in (["reload_done", "command"], ["worker_ended", "command"])
    server.get("/secret")
    with server.client() as client:
        (boom,) = [item for item in client.follow("events") if item.get("event") == "exception"]
    assert boom["worker"] in workers(server)
    assert boom["message"] == "password=***"
    assert boom["generation"] == 2


def test_over_netcat_and_at_the_command_line_events_are_lines(serve: Serve) -> None:
    server = serve()
    with raw(server.socket) as sock:
        sock.sendall(b"events\n")
        lines = read_all(sock).decode().splitlines()
    assert [line.split()[1] for line in lines] == ["starting", "serving"]
    done = run_cli("events", "-s", server.socket)
    assert (done.returncode, done.stdout.splitlines()) == (0, lines)


def test_a_wrong_time_is_an_error(serve: Serve) -> None:
    server = serve()
    with server.client() as client, pytest.raises(CommandError, match="since: 'soon' is no time"):
        list(client.follow("events", since="soon"))
    done = run_cli("events", "--since", "soon", "-s", server.socket)
    assert done.returncode == 1
