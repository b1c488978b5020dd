"""How long an idle server takes from the request for a stop to the end of its process."""

from __future__ import annotations

import contextlib
import pathlib
import random
import time
from collections.abc import Callable

from benchmarks.measuring import Figure, compare, elapsed
from benchmarks.running import PROGRAMS, TOOL, Program, gunicorn_server, scratch_directory, workers_of
from flask_ctl import ControlClient

try:
    from gunicorn.ctl.client import ControlClient as OwnClient
except ImportError:
    # Before gunicorn 25.
    OwnClient = None

WORKERS = 2


def idle(rounds: int) -> list[Figure]:
    """A server under `flask-ctl run`, and Werkzeug's own `shutdown`."""
    compared = compare(rounds, _stop_ours, _stop_werkzeug)
    return [
        Figure.ratio(
            "stop, idle, under `flask-ctl run`",
            "Werkzeug's `shutdown()`",
            compared,
            0.12,
            "nearly all of it is the end of the interpreter with Flask loaded, which Werkzeug's stop has, too.",
        )
    ]


def gunicorn(rounds: int) -> list[Figure]:
    """gunicorn with two workers, and its own control socket; SIGTERM where it has none."""
    compared = compare(rounds, _stop_gunicorn_ours, _stop_gunicorn)
    return [
        Figure.ratio(
            f"stop, idle, gunicorn with {WORKERS} workers",
            "SIGTERM (this version has no control socket)" if OwnClient is None else "its own control socket",
            compared,
            1,
            "the workers end as they do there, and report their last figures to the hub first, in some 4 ms. With more"
            " modules loaded the interpreter takes some 20 ms more to end; as gunicorn looks every 100 ms whether they"
            " have ended, that may become 100 ms.",
        )
    ]


def _stop_ours() -> float:
    with scratch_directory() as scratch:
        address = str(scratch / "app.sock")
        command = ["run", "--app", f"{PROGRAMS}:flask_app", "--port", "0", "--socket", address]
        with Program(TOOL, *command, log=scratch / "log") as server, ControlClient(address) as client:
            server.wait_until(client.ping)
            _idle_for_a_moment()
            return _until_gone(server, client.stop)


def _stop_werkzeug() -> float:
    with scratch_directory() as scratch, Program(PROGRAMS, "plain", log=scratch / "log") as server:
        server.wait_until_ready()
        _idle_for_a_moment()
        return _until_gone(server, lambda: server.tell(b"stop\n"))


def _stop_gunicorn_ours() -> float:
    with scratch_directory() as scratch:
        address = str(scratch / "app.sock")
        server = gunicorn_server(scratch, f"controlled_app({address!r})", WORKERS)
        with server, ControlClient(address) as client:
            server.wait_until(lambda: workers_of(client, WORKERS))
            _idle_for_a_moment()
            return _until_gone(server, client.stop)


def _stop_gunicorn() -> float:
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        path = str(scratch / "own")
        options = ["--control-socket", path] if OwnClient else []
        server = stack.enter_context(gunicorn_server(scratch, "flask_app()", WORKERS, *options))
        server.wait_until(lambda: _workers_boot(scratch))
        if OwnClient is None:
            _idle_for_a_moment()
            return _until_gone(server, server.terminate)
        client = stack.enter_context(contextlib.closing(OwnClient(path)))
        server.wait_until(lambda: client.send_command("show workers"))
        _idle_for_a_moment()
        return _until_gone(server, lambda: client.send_command("shutdown graceful"))


def _workers_boot(scratch: pathlib.Path) -> None:
    if (scratch / "log").read_text().count("Booting worker") < WORKERS:
        raise RuntimeError("not all workers have been started")


def _until_gone(server: Program, ask: Callable[[], object]) -> float:
    def stop() -> None:
        ask()
        server.wait()

    return elapsed(stop)


def _idle_for_a_moment() -> None:
    """Until a random moment of the half second that Werkzeug's loop sleeps, when what began with the server is over."""
    time.sleep(0.5 + random.uniform(0, 0.5))
