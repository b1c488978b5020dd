"""Adding, removing and recycling workers, where the server can do that."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from harness import Pending, Program, Serve, Server, first_quick, run_cli, until
from manyworkers import hub, is_alive, kill, workers
from servers import SERVERS

from flask_ctl import CommandError, TimedOut
from flask_ctl.errors import CONFLICT, INVALID_PARAMS, NOT_SUPPORTED


def change(server: Server, *words: str) -> tuple[int, Any]:
    done = run_cli("workers", *words, "--json", "-s", server.socket)
    return done.returncode, json.loads(done.stdout)


def refused(server: Server, **given: int) -> CommandError:
    with server.client() as client, pytest.raises(CommandError) as error:
        client.workers(**given)
    return error.value


def expected(server: Server) -> int:
    return int(server.status()["workers_expected"])


@pytest.mark.parametrize("name", first_quick(["gunicorn sync", "gunicorn gthread"]))
def test_gunicorn_adds_removes_and_replaces_workers(start: Serve, program: Program, name: str) -> None:
    server = start(SERVERS[name])
    first = workers(server)
    code, result = change(server, "add", "1")
    assert (code, sorted(result["workers"])) == (0, sorted(workers(server)))
    assert (len(result["started"]), result["ended"], expected(server)) == (1, [], len(first) + 1)

    code, result = change(server, "recycle", str(first[0]))
    assert (code, result["ended"], len(result["started"])) == (0, [first[0]], 1)
    assert not is_alive(first[0])
    # Another hub still knows how many there have to be.
    kill(hub(server))
    assert expected(server) == len(first) + 1
    until(lambda: len(workers(server)) == len(first) + 1, "the other hub knows all of them")

    program.edit("broken", "raise RuntimeError('no')")
    done = run_cli("workers", "recycle", str(first[1]), "-s", server.socket)
    assert (done.returncode, "RuntimeError: no" in done.stderr) == (7, True), done.stderr
    assert len(workers(server)) == len(first) + 1
    program.edit("new")

    code, result = change(server, "remove", str(len(first)))
    assert (code, len(result["ended"]), len(result["workers"])) == (0, len(first), 1)
    # At least one stays.
    assert refused(server, remove=1).code == INVALID_PARAMS
    assert refused(server, recycle=os.getpid()).code == INVALID_PARAMS
    assert refused(server, add=1, remove=1).code == INVALID_PARAMS
    # A reload goes back to the setting.
    server.reload()
    assert len(workers(server)) == expected(server) == len(first)
    assert run_cli("workers", "-s", server.socket).stdout.count("pid ") == len(first)


def test_one_change_at_a_time_and_a_stop_calls_it_off(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    (pid,) = workers(server)
    # The worker ends only when its request has ended.
    held = server.begin("/hold/a")
    with server.client() as client, pytest.raises(TimedOut, match=r"1 are wanted; the master goes on|nothing was done"):
        client.call("workers", recycle=pid, _timeout=2.0)
    late = Pending.call(lambda: refused(server, recycle=pid))
    # At least one has to stay, so nothing comes of it before the change has begun.
    until(lambda: refused(server, remove=1).code == CONFLICT, "the change")
    assert refused(server, add=1).code == CONFLICT
    with pytest.raises(CommandError, match="can't reload while changing the workers"):
        server.reload()
    with server.client() as client:
        client.stop("fast")
    assert late.result().code == CONFLICT
    assert "called off: the server is stopping" in late.result().message
    with pytest.raises(OSError, match=r".*"):
        held.result()


@pytest.mark.parametrize(
    ("name", "given", "helps"),
    [
        pytest.param("uwsgi", {"add": 1}, "--cheaper", marks=pytest.mark.full),
        pytest.param("granian", {"recycle": 1}, "reload", marks=pytest.mark.full),
    ],
)
def test_what_a_server_can_not_do_is_refused_with_what_helps(
    start: Serve, name: str, given: dict[str, int], helps: str
) -> None:
    row = next(row for key, row in SERVERS.items() if name in key.lower())
    server = start(row)
    error = refused(server, **given)
    assert error.code == NOT_SUPPORTED
    assert helps in error.message
    if name == "uwsgi":
        (pid, *_) = workers(server)
        code, result = change(server, "recycle", str(pid))
        assert (code, result["ended"], len(result["started"])) == (0, [pid], 1)


def test_a_process_that_serves_by_itself_has_no_workers(shared: Server) -> None:
    error = refused(shared, add=1)
    assert error.code == NOT_SUPPORTED
    assert "threads" in error.message
    assert run_cli("workers", "-s", shared.socket).stdout == f"pid {shared.pid} serves by itself\n"
    assert change(shared) == (0, {"workers": []})
    assert run_cli("workers", "add", "-s", shared.socket).returncode == 2
    assert run_cli("workers", "add", "0", "-s", shared.socket).returncode == 2
