"""Drain and resume: health checks that fail while requests are served, and the hooks for it."""

from __future__ import annotations

import pathlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest
from fakehub import World, world
from fakes import Gate, Scene
from flask import Blueprint, Flask
from harness import TIMEOUT, Pending, Program, Serve, Server, first_quick, run_cli, until
from manyworkers import workers
from servers import SERVERS

from flask_ctl import CommandError, Control, ServerReloaded
from flask_ctl.client.draining import DrainMethods
from flask_ctl.dispatch.pool import SIZE
from flask_ctl.lifecycle import commit
from flask_ctl.lifecycle import stop as stopping
from flask_ctl.lifecycle.readiness import MAX_WAITING
from flask_ctl.protocol.text import render_result

BY = {"pid": 3}


@pytest.fixture
def scene(short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(stopping, "IDLE_LINGER", 0.0)
    monkeypatch.setattr(stopping, "HOOKS_TIMEOUT", 0.05)
    monkeypatch.setattr(stopping, "READINESS_TIMEOUT", 0.05)
    monkeypatch.setattr(stopping, "FAST_READINESS_TIMEOUT", 0.05)
    monkeypatch.setattr(commit, "MIN_UNWIND", 0.05)
    scene = Scene(short_path, readiness=True)
    until(lambda: scene.ran == ["on_ready"], "its hook")
    yield scene
    scene.close()


def seen(scene: Scene) -> tuple[str, bool]:
    return scene.status()["state"], scene.instance.ready


# A single process


def test_a_drain_is_told_and_ended(scene: Scene) -> None:
    assert seen(scene) == ("running", True)
    assert scene.status()["draining"] is None
    drained = scene.drain().result(TIMEOUT)
    assert drained == {
        "state": "draining", "pid": scene.instance.pid, "changed": True, "in_flight": 0, "failed_checks": 0,
        "hooks_run": 1, "hooks_failed": [], "unanswered": [],
    }  # fmt: skip
    assert seen(scene) == ("draining", False)
    assert scene.status()["draining"]["by"] == BY
    assert scene.server.serves
    assert scene.drain().result(TIMEOUT)["changed"] is False
    assert scene.drain(False).result(TIMEOUT)["state"] == "running"
    assert seen(scene) == ("running", True)
    assert scene.drain(False).result(TIMEOUT)["changed"] is False
    assert scene.ran == ["on_ready", "on_drain", "on_ready"]


def test_hooks_run_in_the_order_of_the_changes(scene: Scene) -> None:
    scene.on_drain.shut()
    answers = [scene.drain(draining) for draining in (True, False, True)]
    assert scene.on_drain.reached.wait(TIMEOUT)
    assert not any(answer.done() for answer in answers)
    scene.on_drain.open()
    for answer in answers:
        answer.result(TIMEOUT)
    assert scene.ran == ["on_ready", "on_drain", "on_ready", "on_drain"]


def test_a_hook_that_fails_is_told_and_the_drain_holds(scene: Scene) -> None:
    scene.on_drain_fails = True
    assert scene.drain().result(TIMEOUT)["hooks_failed"] == ["_drain_hook: ValueError: no registry"]
    assert seen(scene) == ("draining", False)
    assert [entry["origin"] for entry in scene.instance.apps[0].exceptions.entries()] == ["hook"]


def test_a_drain_goes_over_a_reload(scene: Scene) -> None:
    scene.drain().result(TIMEOUT)
    scene.program.preflight.shut()
    scene.reload()
    until(lambda: seen(scene) == ("reloading", False), "the reload")
    scene.program.preflight.open()
    how, state = scene.program.wait()
    assert how == "exec"
    assert state["instance"]["drain"]["by"] == BY
    assert scene.ran == ["on_ready", "on_drain", "on_stop"]


def test_a_drain_during_a_reload_that_fails_holds(scene: Scene) -> None:
    scene.program.preflight.shut()
    scene.program.broken = "no such module"
    reload = scene.reload()
    assert scene.drain().result(TIMEOUT)["state"] == "reloading"
    scene.program.preflight.open()
    assert reload.exception(TIMEOUT) is not None
    until(lambda: seen(scene) == ("draining", False), "the old code")


@pytest.mark.parametrize("mode", ["graceful", "fast"])
def test_a_stop_ends_readiness_first_and_waits_for_the_hooks_before_those_of_the_stop(scene: Scene, mode: str) -> None:
    held = scene.server.begin()
    stop = scene.stop(mode)
    until(lambda: scene.instance.ready is False, "the stop")
    if mode == "graceful":
        scene.server.answer(held)
    stop.result(TIMEOUT)
    assert scene.ran == ["on_ready", "on_drain", "on_stop"]


def test_the_delay_of_a_stop_is_for_health_checks_to_fail(scene: Scene) -> None:
    stop = scene.stop(delay=TIMEOUT)
    until(lambda: scene.ran == ["on_ready", "on_drain"], "its hook")
    assert seen(scene) == ("stopping", False)
    assert scene.server.serves
    scene.stop("fast").result(TIMEOUT)
    stop.result(TIMEOUT)


def test_a_drained_server_that_stops_runs_no_hook_twice(scene: Scene) -> None:
    scene.drain().result(TIMEOUT)
    scene.stop().result(TIMEOUT)
    assert scene.ran == ["on_ready", "on_drain", "on_stop"]


def hang(scene: Scene) -> Future[Any]:
    """A drain whose hook hangs."""
    scene.on_drain.shut()
    drain = scene.drain()
    assert scene.on_drain.reached.wait(TIMEOUT)
    return drain


@pytest.mark.parametrize("mode", ["graceful", "fast"])
def test_a_hook_that_hangs_is_left_behind_by_a_stop_and_is_no_request_that_was_cut(
    scene: Scene, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    hang(scene)
    result = scene.stop(mode, grace=0.05).result(TIMEOUT)
    assert (result["outcome"], result["cut"], result["hooks"]) == ("drained", 0, "unfinished")
    assert scene.ran == ["on_ready", "on_stop"]
    assert "_drain_hook still runs" in caplog.text


def test_a_fast_stop_ends_the_wait_of_a_graceful_one_for_such_a_hook(scene: Scene) -> None:
    hang(scene)
    stop = scene.stop(grace=TIMEOUT)
    until(lambda: scene.stop_is_in("hooks"), "the hooks")
    scene.stop("fast")
    assert stop.result(TIMEOUT)["hooks"] == "unfinished"
    assert scene.ran == ["on_ready", "on_stop"]


def test_a_reload_leaves_such_a_hook_behind(scene: Scene) -> None:
    hang(scene)
    scene.reload(grace=0.05)
    how, state = scene.program.wait()
    assert how == "exec"
    assert state["instance"]["reload"]["left_behind"] == {"hooks": "unfinished"}
    assert scene.ran == ["on_ready", "on_stop"]


def test_hooks_run_though_every_thread_of_commands_hangs(scene: Scene) -> None:
    gate = Gate()
    gate.shut()
    commands = [scene.instance._pool.submit(gate) for _ in range(SIZE)]
    assert scene.drain().result(TIMEOUT)["hooks_run"] == 1
    result = scene.stop(grace=0.05).result(TIMEOUT)
    assert (result["cut"], "hooks" in result) == (SIZE, False)
    assert scene.ran == ["on_ready", "on_drain", "on_stop"]
    gate.open()
    for command in commands:
        command.result(TIMEOUT)


def test_a_drain_is_answered_in_time_though_its_hook_hangs(scene: Scene) -> None:
    scene.on_drain.shut()
    drained = scene.ask(lambda: scene.instance.set_draining(True, BY, time.monotonic() + 0.05)).result(TIMEOUT)
    assert (drained["state"], drained["hooks_run"], drained["hooks_failed"]) == ("draining", 0, [])
    assert drained["unanswered"] == [{"worker": scene.instance.pid, "error": "the hook _drain_hook still runs"}]


def test_changes_that_wait_for_a_hanging_hook_are_bounded(scene: Scene) -> None:
    hang(scene)
    for number in range(MAX_WAITING):
        assert not scene.drain(bool(number % 2)).done()
    refused = scene.drain(False)
    assert refused.result(TIMEOUT)["hooks_failed"] == ["_drain_hook still runs, and 16 changes wait for it"]


@pytest.mark.parametrize("draining", [True, False])
def test_a_server_that_stops_refuses_both(scene: Scene, draining: bool) -> None:
    scene.stop(delay=TIMEOUT)
    with pytest.raises(CommandError, match="while stopping") as caught:
        scene.drain(draining).result(TIMEOUT)
    assert caught.value.code == -32002
    scene.stop("fast").result(TIMEOUT)


# A client


class ReloadedServer(DrainMethods):
    """A client whose first call a reload leaves unanswered; the second one says whether anything has `changed`."""

    def __init__(self, changed: bool) -> None:
        self._answers: list[Any] = [
            ServerReloaded.before("drain"),
            {"state": "draining", "pid": 7, "changed": changed, "in_flight": 0, "hooks_run": 0, "hooks_failed": []}
            | {"unanswered": []},
        ]

    def _limit(self, timeout: Any, default: float | None) -> float | None:
        return default

    def _site(self) -> Any:
        raise AssertionError("nothing is waited for")

    def call(self, name: str, /, **_options: Any) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("changed", [True, False])
def test_after_a_reload_a_client_does_not_claim_that_its_call_has_changed_nothing(changed: bool) -> None:
    result = ReloadedServer(changed).drain()
    assert result["changed"] is (True if changed else None)
    assert render_result("drain", result) == "pid 7 is draining: 0 in flight\n"


# Behind a hub


def told(w: World) -> set[tuple[str, bool]]:
    """What the workers know, when all that was sent has arrived."""
    w.run(lambda: not w._ways)
    return {(worker.state, worker.ready) for worker in w.living()}


@pytest.mark.parametrize("seed", first_quick(range(5)))
def test_a_drain_holds_for_workers_to_come_a_new_hub_and_a_reload(seed: int) -> None:
    with world(seed) as w:
        assert told(w) == {("running", True)}
        drained = w.answer("drain").result
        assert (drained["state"], drained["hooks_run"], drained["unanswered"]) == ("draining", 2, [])
        assert told(w) == {("draining", False)}
        w.start_worker()
        w.run(lambda: len(w.hub.workers) == 3)
        assert told(w) == {("draining", False)}
        w.kill_hub()
        w.next_hub()
        w.run(lambda: len(w.hub.workers) == 3)
        assert w.answer("status").result["state"] == "draining"
        reloading = w.ask("reload")
        w.run(lambda: reloading.done)
        assert reloading.result["generation"] == 2
        assert told(w) == {("draining", False)}
        assert w.answer("resume").result["state"] == "running"
        assert told(w) == {("running", True)}


@pytest.mark.parametrize("keeper", ["the state file", "the workers"])
@pytest.mark.parametrize("seed", first_quick(range(5)))
def test_the_next_hub_knows_of_the_drain_from_the_file_or_a_worker(seed: int, keeper: str) -> None:
    with world(seed) as w:
        w.state_file.broken = keeper == "the workers"
        w.answer("drain")
        w.run(lambda: not w._ways)
        w.kill_hub()
        old = w.living()
        w._start_hub()
        w.start_worker()
        w.run(lambda: len(w.hub.workers) == 1)
        for worker in old:
            worker.hello()
        w.run(lambda: len(w.hub.workers) == 3)
        assert told(w) == {("draining", False)}


def test_a_worker_that_does_not_confirm_it_is_named() -> None:
    with world() as w:
        deaf = w.living()[0]
        deaf.deaf = True
        drained = w.answer("drain").result
        assert [one["worker"] for one in drained["unanswered"]] == [deaf.pid]
        assert drained["hooks_run"] == 1


def test_a_hook_of_a_worker_that_hangs_is_left_behind_by_a_stop() -> None:
    with world() as w:
        w.living()[0].drain_hook_left = "leave"
        stop = w.answer("stop").result
        assert (stop["outcome"], stop["hooks"]) == ("drained", "unfinished")
        w.run()


def test_workers_know_of_a_stop_before_its_delay_is_over() -> None:
    with world() as w:
        stop = w.ask("stop", delay=30.0)
        w.run(lambda: "delay" in stop.phases)
        assert told(w) == {("stopping", False)}
        assert not any(worker.held for worker in w.living())
        w.run()


# Control, in a program of its own


def test_a_health_check_is_out_of_the_way_of_the_routes_of_the_app() -> None:
    app = Flask("shop")
    control = Control(app)

    @app.get("/health")
    def health() -> str:
        return "the app's own"

    app.add_url_rule("/healthz", view_func=control.health)
    below = Blueprint("below", __name__)
    below.add_url_rule("/healthz", view_func=control.health)
    app.register_blueprint(below, url_prefix="/below")
    client = app.test_client()
    assert client.get("/health").text == "the app's own"
    for path in ("/healthz", "/below/healthz"):
        answer = client.get(path)
        assert (answer.status_code, answer.text, answer.headers["Cache-Control"]) == (200, "running\n", "no-store")
        assert client.head(path).status_code == 200


def test_without_a_server_nothing_is_known_against_the_app() -> None:
    control = Control(Flask("shop"))
    assert (control.state, control.ready) == (None, True)


# Real servers

HOOKS = """
@control.on_drain
def leave():
    say(f"on_drain {control.state} {control.ready}")

@control.on_ready
def enter():
    say(f"on_ready {control.state} {control.ready}")
"""


def health(server: Server) -> tuple[int, str | None, str]:
    connection = HTTPConnection(*server.address, timeout=TIMEOUT)
    connection.request("GET", "/health")
    response = connection.getresponse()
    body = response.read().decode().strip()
    connection.close()
    return response.status, response.getheader("Retry-After"), body


def said(server: Server, text: str) -> int:
    return server.lines.count(text)


EVERYWHERE = ["flask run", "gunicorn gthread", "waitress", "cheroot", "pywsgi", "gunicorn gevent", "uwsgi", "granian"]


@pytest.mark.parametrize("kind", first_quick(EVERYWHERE, 2))
def test_health_checks_fail_while_it_drains_and_pass_again(kind: str, start: Serve, program: Program) -> None:
    program.edit("old", HOOKS)
    server = start(SERVERS[kind])
    count = len(workers(server)) or 1
    assert health(server) == (200, None, "running")
    until(lambda: said(server, "on_ready running True") == count, "its hooks")
    drained = run_cli("drain", "-s", server.socket)
    hooks = "1 hook" if count == 1 else f"{count} hooks"
    assert (drained.returncode, drained.stdout) == (0, f"pid {server.pid} is draining: 0 in flight, {hooks} run\n")
    assert said(server, "on_drain draining False") == count
    assert health(server) == (503, "5", "draining")
    assert server.get("/")[0] == 200
    assert server.reload()["generation"] == 2
    assert health(server) == (503, "5", "draining")
    resumed = run_cli("resume", "-s", server.socket)
    assert (resumed.returncode, resumed.stdout) == (0, f"pid {server.pid} is running, {hooks} run\n")
    assert health(server) == (200, None, "running")


@pytest.mark.parametrize("kind", first_quick(["gunicorn gthread", "flask run"]))
def test_a_drain_can_be_waited_for(kind: str, start: Serve) -> None:
    server = start(SERVERS[kind])
    held = server.begin("/hold/a")
    late = run_cli("drain", "--wait", "--timeout", "1", "-s", server.socket)
    assert (late.returncode, late.stdout) == (4, "")
    assert "1 in flight" in late.stderr
    drain = Pending.call(lambda: run_cli("drain", "--checks", "2", "-s", server.socket))
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.status()["draining"]["failed_checks"] == 0
    assert not drain.done
    assert [health(server)[0] for _ in range(2)] == [503, 503]
    done = drain.result()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"pid {server.pid} is draining already: 0 in flight, after [\d.]+ s\n", done.stdout)


def test_a_drain_that_is_waited_for_ends_with_the_server(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    drain = Pending.call(lambda: run_cli("drain", "--wait", "-s", server.socket))
    until(lambda: server.status()["state"] == "draining", "the drain")
    assert run_cli("stop", "--mode", "fast", "-s", server.socket).returncode == 6
    assert drain.result().returncode == 3
    with pytest.raises((OSError, HTTPException)):
        held.result()


@pytest.mark.parametrize("kind", first_quick(["gunicorn gevent", "gunicorn gthread", "flask run"]))
def test_a_stop_runs_its_hooks_though_one_of_the_drain_hangs(kind: str, start: Serve, program: Program) -> None:
    program.edit("old", "@control.on_drain\ndef leave():\n    gates['never'].wait()\n")
    server = start(SERVERS[kind])
    count = len(workers(server)) or 1
    result = server.client().stop("fast")
    assert (result["outcome"], result["hooks"]) == ("drained", "unfinished")
    server.wait()
    assert said(server, "on_stop") == count
    assert sum("the hook leave" in line and "still runs" in line for line in server.lines) == count
