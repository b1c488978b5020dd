"""A client whose hub is killed during a reload: real processes."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from typing import Any

import pytest
from fakes import Clock
from harness import TIMEOUT, Pending, Program, Serve, Server, first_quick, run_cli, until
from manyworkers import Load, hub, kill, workers
from servers import SERVERS

from flask_ctl import ControlError, NotRunning, ServerDied, TimedOut
from flask_ctl.client import reload as reloadcall
from flask_ctl.client.reload import HubEnded, ReloadWaiter


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be slow."""
    monkeypatch.setattr(reloadcall, "NEXT_HUB_TIMEOUT", TIMEOUT)


NAMES = ["gunicorn sync", "gunicorn gthread"]


def reloading(server: Server, phase: str) -> Pending:
    """A reload from the command line, once it is in this phase."""
    seen: list[Any] = []

    def follow() -> Any:
        with server.client() as client:
            return client.reload(on_progress=seen.append)

    reload = Pending.call(follow)
    until(lambda: any(progress["phase"] == phase for progress in seen), phase)
    return reload


@pytest.mark.parametrize("name", first_quick(NAMES))
def test_the_client_gets_the_result_from_the_next_hub(start: Serve, program: Program, name: str) -> None:
    server = start(SERVERS[name])
    held = server.begin("/hold/a")
    program.edit("new")
    reload = reloading(server, "drain")
    former = hub(server)
    kill(former)
    until(lambda: len(workers(server)) == 3, "all have come to the next hub")
    server.release("a")
    assert held.result() == (200, b"held a")
    result = reload.result()
    assert (result["generation"], result["cut"], result["pid"]) == (2, 0, server.pid)
    assert "old_left" not in result
    status = server.status()
    assert (status["generation"], status["last_reload"]["ok"]) == (2, True)
    assert status["control"]["hub"] != former
    assert {worker["generation"] for worker in status["workers"]} == {2}
    assert server.get("/version") == (200, b"new")


@pytest.mark.full
def test_what_the_next_hub_does_not_tell_in_time_is_not_known_and_status_tells_it_later(
    start: Serve, program: Program
) -> None:
    server = start(SERVERS["gunicorn sync"])
    held = server.begin("/hold/a")
    program.edit("new")
    reload = Pending.call(lambda: run_cli("--json", "reload", "--grace", "60", "-s", server.socket))
    until(lambda: server.status()["state"] == "reloading" and len(workers(server)) == 3, "the new workers")
    kill(hub(server))
    done = reload.result()
    assert done.returncode == 1
    assert "the outcome is not known" in json.loads(done.stdout)["error"]["message"]
    during = server.status()
    assert (during["state"], during["generation"], len(during["workers"])) == ("reloading", 1, 3)
    server.release("a")
    assert held.result() == (200, b"held a")
    until(lambda: server.status()["state"] == "running", "the end of the reload")
    after = server.status()
    assert (after["generation"], after["last_reload"]["ok"]) == (2, True)


@pytest.mark.full
def test_a_hub_that_is_killed_again_and_again_loses_neither_requests_nor_the_truth(
    start: Serve, program: Program
) -> None:
    server = start(SERVERS["gunicorn sync"])
    with Load(server.address) as load:
        for number in range(3):
            reload_and_lose_the_hub(server, program, f"new{number}")
    assert not load.lost


def reload_and_lose_the_hub(server: Server, program: Program, version: str) -> None:
    before = server.status()["generation"]
    served = server.get("/version")[1].decode()
    program.edit(version)
    reload = Pending.call(server.reload)
    until(lambda: reload.done or server.status()["state"] == "reloading", "the reload")
    kill(hub(server))
    try:
        expected = version, reload.result()["generation"]
        said = ""
    except ControlError as error:
        expected, said = (served, before), error.message
    assert "the old code serves" in said or expected[1] == before + 1
    until(lambda: server.status()["state"] == "running", "the end of the reload")
    assert (server.get("/version")[1].decode(), server.status()["generation"]) == expected


def test_a_server_that_ends_with_its_hub_has_died(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync"])
    held = server.begin("/hold/a")
    reload = reloading(server, "drain")
    pids = [hub(server), server.pid, *workers(server)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerDied):
        reload.result()
    with pytest.raises(OSError):  # noqa: PT011 - it was cut
        held.result()


# What the next hub's status means


def status(
    generation: int = 1, last: Any = None, pids: tuple[int, ...] = (1, 2), state: str = "running"
) -> dict[str, Any]:
    members = [{"pid": pid, "generation": 1 if pid < 10 else 2} for pid in pids]
    return {"state": state, "generation": generation, "last_reload": last, "workers": members, "pid": 7}


def outcome(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Any:
    """What the client makes of these answers, the first of them from before the reload."""
    left = list(answers)
    monkeypatch.setattr(reloadcall, "time", Clock())
    watch = ReloadWaiter(lambda **_: left.pop(0) if len(left) > 1 else left[0])
    return watch.result(HubEnded("the hub ended"), None)


DONE = {"ok": True, "at": "t1", "elapsed": 0.5, "cut": 1, "error": None}
FAILED = {"ok": False, "at": "t1", "elapsed": 0.5, "cut": 0, "error": "0 of 2 new workers serve"}


def test_a_new_last_reload_is_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    result = outcome(monkeypatch, status(), status(state="reloading"), status(2, DONE, (1, 11, 12)))
    assert result == {"generation": 2, "cut": 1, "elapsed": 0.5, "pid": 7, "old_left": 1}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([status(), status(1, FAILED)], "0 of 2 new"),
        ([status(), status()], "had not begun, and the old code serves"),
        ([status(1, DONE), status(1, DONE, (1, 11))], "not known"),
        ([status(), status(state="reloading")], "not known"),
    ],
)
def test_anything_else_is_a_failure_that_says_what_is_known(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], said: str
) -> None:
    with pytest.raises(ControlError, match=said):
        outcome(monkeypatch, *answers)


def test_while_the_new_workers_load_nobody_says_that_nothing_is_running(
    start: Serve, program: Program, tmp_path: pathlib.Path
) -> None:
    """Then no process of the server holds its lock; the lock's file names the master."""
    server = start(SERVERS["gunicorn sync"])
    go_on = tmp_path / "go on"
    loads = f"while not flask_ctl.preflighting and not os.path.exists({str(go_on)!r}):"
    program.edit("new", f"import flask_ctl, time\n{loads}\n    time.sleep(0.01)\n")
    reload = reloading(server, "load")
    until(lambda: not workers(server), "the end of the old workers")
    kill(hub(server))
    with pytest.raises(TimedOut, match=f"the workers of pid {server.pid}"):
        server.client(timeout=0.1).status()
    go_on.touch()
    assert reload.result()["generation"] == 2
    status = server.status()
    assert (status["generation"], status["last_reload"]["ok"]) == (2, True)
    server.client().stop()
    with pytest.raises(NotRunning):
        server.status()
