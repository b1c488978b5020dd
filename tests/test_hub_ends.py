"""What hangs in a worker holds up neither the end of the server nor a reload that may cut."""

from __future__ import annotations

import os
import signal

import pytest
from harness import TIMEOUT, Pending, Program, Serve, first_quick, until
from manyworkers import is_alive, workers
from servers import SERVERS

HANGS = """

@control.on_stop
def hang():
    import threading
    say("hangs")
    threading.Event().wait()
"""


@pytest.fixture
def hanging(start: Serve, program: Program) -> Serve:
    """Start a server whose on_stop hook hangs."""
    program.file.write_text(program.file.read_text() + HANGS)
    # So that it is not gunicorn's own patience that ends it.
    return lambda kind: start(SERVERS[f"gunicorn {kind}"], "--graceful-timeout", "600")


@pytest.mark.full
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_fast_stop_ends_a_server_whose_hook_hangs(hanging: Serve, kind: str) -> None:
    server = hanging(kind)
    server.client().stop("fast", timeout=TIMEOUT)
    assert server.wait() == 0
    assert server.lines.count("atexit") == 2


def test_a_fast_stop_ends_a_graceful_one_whose_hook_hangs(hanging: Serve) -> None:
    server = hanging("sync")
    graceful = Pending.call(lambda: server.client().stop())
    until(lambda: "hangs" in server.output, "the hook hangs")
    server.client().stop("fast", timeout=TIMEOUT)
    assert graceful.result()["cut"] == 0
    assert server.wait() == 0


def test_a_fast_stop_ends_a_server_that_hangs_since_it_was_sent_a_signal(hanging: Serve) -> None:
    server = hanging("sync")
    os.kill(server.pid, signal.SIGTERM)
    until(lambda: "hangs" in server.output, "the hook hangs")
    server.client().stop("fast", timeout=TIMEOUT)
    assert server.wait() == 0


@pytest.mark.full
@pytest.mark.parametrize("kind", first_quick(["sync", "gthread"]))
def test_a_reload_that_may_cut_cuts_what_earlier_ones_have_left(start: Serve, kind: str) -> None:
    server = start(SERVERS[f"gunicorn {kind}, 1 worker"], "--graceful-timeout", "600")
    first = server.begin("/hold/a")
    assert server.reload(grace=0.1)["old_left"] == 1
    second = server.begin("/hold/b")
    result = server.reload(grace=0.1, cut=True)
    assert (result["generation"], result["cut"]) == (3, 2)
    for held in (first, second):
        with pytest.raises(ConnectionError):
            held.result()
    assert len(workers(server)) == 1


@pytest.mark.full
def test_a_server_that_waits_for_its_old_workers_before_it_starts_new_ones_can_be_reloaded_by_a_cut(
    start: Serve,
) -> None:
    server = start(SERVERS["uwsgi"], "--worker-reload-mercy", "600")
    before = workers(server)
    held = server.begin("/hold/a")
    assert server.reload(grace=0.1, cut=True)["cut"] == 1
    with pytest.raises(ConnectionError):
        held.result()
    assert not any(is_alive(pid) for pid in before)
