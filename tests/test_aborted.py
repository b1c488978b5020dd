"""Requests that gunicorn itself ends, and workers that are lost in a hook: real processes."""

from __future__ import annotations

import json
import signal

import pytest
from harness import Pending, Program, Serve, Server, first_quick, run_cli, until
from manyworkers import kill, workers
from servers import SERVERS

SYNC = SERVERS["gunicorn sync"]


def draining(server: Server, *options: str) -> Pending:
    """A stop from the command line that drains."""
    stop = Pending.call(lambda: run_cli("--json", "stop", "--grace", "60", *options, "-s", server.socket))
    until(lambda: server.status()["stopping"], "stopping")
    return stop


def busy_worker(server: Server) -> int:
    return next(int(worker["pid"]) for worker in server.status()["workers"] if worker["in_flight"])


def aborted(server: Server, held: Pending, stop: Pending) -> None:
    status, _ = held.result()
    done = stop.result()
    result = json.loads(done.stdout)
    assert status == 500
    assert (done.returncode, result["outcome"], result["cut"], result["drained"]) == (6, "forced", 1, 0)
    assert "died" not in result
    server.wait()


@pytest.mark.full
def test_a_request_that_outlasts_gunicorns_timeout_is_cut(start: Serve) -> None:
    # Long enough for the stop to be under way by then.
    server = start(SYNC, "--timeout", "6")
    held = server.begin("/hold/a")
    aborted(server, held, draining(server))


@pytest.mark.parametrize(
    "whom", first_quick(["SIGABRT to the worker", "SIGQUIT to the worker", "SIGQUIT to the master"])
)
def test_a_request_that_a_signal_to_gunicorn_ends_is_cut(start: Serve, whom: str) -> None:
    """SIGABRT is what a master sends after its timeout."""
    server = start(SYNC)
    held = server.begin("/hold/a")
    stop = draining(server)
    kill(server.pid if "master" in whom else busy_worker(server), signal.Signals[whom.split()[0]])
    aborted(server, held, stop)


@pytest.mark.full
def test_a_views_own_exit_is_an_answer(start: Serve, program: Program) -> None:
    program.edit("old", '@app.get("/exit/<name>")\ndef leave(name):\n    gates[name].wait()\n    sys.exit(1)\n')
    server = start(SYNC)
    held = server.begin("/exit/a")
    phases: list[object] = []
    with server.client() as client:
        stop = Pending.call(lambda: client.stop(grace=60, on_progress=lambda told: phases.append(told["phase"])))
        # From then on what ends is counted.
        until(lambda: "drain" in phases, "draining")
        server.release("a")
        assert held.result()[0] == 500
        result = stop.result()
    assert (result["outcome"], result["drained"]) == ("drained", 1)


@pytest.mark.parametrize("name", first_quick(["gunicorn gthread", "gunicorn gevent"]))
def test_what_other_workers_of_gunicorn_leave_at_sigquit_is_told(start: Serve, name: str) -> None:
    """Threads finish what they have begun, greenlets are lost."""
    server = start(SERVERS[name])
    held = server.begin("/hold/a")
    stop = draining(server)
    kill(busy_worker(server), signal.SIGQUIT)
    if not held.done:
        server.release("a")
    try:
        answered = held.result()[0] == 200
    except OSError:
        answered = False
    result = json.loads(stop.result().stdout)
    assert (result["drained"], result["cut"]) == ((1, 0) if answered else (0, 1))


@pytest.mark.full
def test_what_the_server_kills_after_a_reload_has_left_it_is_added(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    held = server.begin("/hold/a")
    (old,) = workers(server)
    assert server.reload(grace=0.1)["old_left"] == 1
    kill(old, signal.SIGABRT)
    assert held.result()[0] == 500
    until(lambda: old not in workers(server), "the end of the old worker")
    last = server.status()["last_reload"]
    assert (last["ok"], last["cut"]) == (True, 1)


@pytest.mark.parametrize("name", first_quick(["gunicorn sync", "gunicorn gevent"]))
def test_workers_that_are_lost_in_a_hook_are_told(start: Serve, program: Program, name: str) -> None:
    program.edit("old", "control.on_stop(lambda: os._exit(5))")
    server = start(SERVERS[name])
    done = run_cli("stop", "-s", server.socket)
    assert done.returncode == 6
    assert "2 workers DIED" in done.stdout
    server.wait()
