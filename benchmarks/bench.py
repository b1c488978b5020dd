"""What flask-ctl costs, as ratios: ``python benchmarks/bench.py [--quick] [NAME ...]``.

Times differ from machine to machine and from minute to minute. So each of ours is measured beside something well known
in the same run, by turns, and the medians are compared. A target that is missed is shown, and is no error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import platform
import random
import signal
import socket
import sys
import time
import wsgiref.util
from collections.abc import Callable
from typing import Any

from benchmarks.floods import floods
from benchmarks.measuring import Row, average, duration, each, elapsed, medians, table, verdict
from benchmarks.programs import flask_app, wsgi
from benchmarks.reloads import reloads
from benchmarks.running import HERE, PROGRAMS, Program, controlled, one_processor, process, scratch_directory
from benchmarks.zeromq import zeromq
from flask_ctl.servers.middleware import RequestCounter, WSGIApp

MIDDLEWARE_TARGET = 1.5e-6
WAKE_UPS_TARGET = 1.0


def http(quick: bool) -> list[Row]:
    """What counting adds to a request."""
    environ: dict[str, Any] = {"wsgi.file_wrapper": wsgiref.util.FileWrapper}
    wsgiref.util.setup_testing_defaults(environ)
    flask = flask_app().wsgi_app
    rounds = 50 if quick else 300
    bare, counted = medians(rounds, *(average(2000, _request(app, environ)) for app in (wsgi, RequestCounter(wsgi))))
    alone, with_ours = medians(rounds, *(average(50, _request(app, environ)) for app in (flask, RequestCounter(flask))))
    added = counted - bare
    return [
        Row(
            "HTTP: counting adds to a request",
            duration(added),
            "bare WSGI app",
            duration(bare),
            f"{added / bare:.2f}",
            f"≤ {duration(MIDDLEWARE_TARGET)}",
            verdict(added <= MIDDLEWARE_TARGET),
        ),
        Row.compare("HTTP: Flask's hello, counted", with_ours, "not counted", alone),
    ]


def _request(app: WSGIApp, environ: dict[str, Any]) -> Callable[[], None]:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        pass

    def request() -> None:
        body = app(environ, start_response)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, "close"):
                body.close()

    return request


def status(quick: bool) -> list[Row]:
    """`status` on a kept connection."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_processor())
        scratch = stack.enter_context(scratch_directory())
        client, _ = controlled(stack, scratch)
        sock = _echo(stack, scratch)
        gunicorn = _gunicorn(stack, scratch)
        answer = client.status()
        size = len(json.dumps(answer, separators=(",", ":")))
        measured: list[Callable[[], object]] = [
            client.status,
            client.ping,
            _round_trip(sock, 64),
            _round_trip(sock, size),
            lambda: json.loads(json.dumps(answer)),
        ]
        if gunicorn is not None:
            measured.append(lambda: gunicorn.send_command("show stats"))
        times = medians(10 if quick else 60, *(each(100, one) for one in measured))
    ours, pong, echo, echo_same_size, its_json, *peer = times
    rows = [
        Row.compare("status, kept connection", ours, "raw echo, 64 bytes", echo, 6),
        Row.compare("status, kept connection", ours, f"raw echo, {size} bytes", echo_same_size),
        Row.compare("status, kept connection", ours, "its JSON alone, there and back", its_json),
        Row.compare("ping, kept connection", pong, "raw echo, 64 bytes", echo),
    ]
    what, beside = "status, kept connection", "gunicorn ctl, `show stats`"
    if not peer:
        return [*rows, Row(what, duration(ours), beside, "not in this version")]
    return [*rows, Row.compare(what, ours, beside, peer[0], 1, "< 1")]


def ping(quick: bool) -> list[Row]:
    """The command line, from the start of its process to the end."""
    tool = str(pathlib.Path(sys.executable).parent / "flask-ctl")
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        client, _ = controlled(stack, scratch)
        commands = [
            process(scratch, tool, "ping", "--socket", client.endpoint),
            process(scratch, sys.executable, "-c", "import click"),
            process(scratch, sys.executable, "-c", "pass"),
        ]
        for command in commands:
            command()
        ours, click, nothing = medians(15 if quick else 40, *(each(1, command) for command in commands))
    return [
        Row.compare("flask-ctl ping, whole process", ours, 'python -c "import click"', click, 1.4),
        Row.compare("flask-ctl ping, whole process", ours, 'python -c "pass"', nothing),
    ]


def stop(quick: bool) -> list[Row]:
    """From the request to the end of an idle server's process."""
    ours, theirs = medians(9 if quick else 15, _stop_ours, _stop_werkzeug)
    return [Row.compare("stop asked → process gone, idle", ours, "Werkzeug's shutdown()", theirs, 0.2)]


def idle(quick: bool) -> list[Row]:
    """How often the control thread wakes up while nobody asks."""
    seconds = 4.0 if quick else 10.0
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        client, server = controlled(stack, scratch)
        client.close()
        time.sleep(0.5)
        try:
            before = _context_switches(server.pid)
            time.sleep(seconds)
            after = _context_switches(server.pid)
        except OSError:
            return [Row("wake-ups of the control thread", "no /proc here")]
    main, side = (int((after[kind] - before[kind]) / seconds * 10) / 10 for kind in (True, False))
    ratio = f"{side / main:.2f}" if main else "–"
    return [
        Row(
            "wake-ups of the control thread",
            f"{side:.1f} /s",
            "Werkzeug's own loop",
            f"{main:.1f} /s",
            ratio,
            f"≤ {WAKE_UPS_TARGET:g} /s",
            verdict(side <= WAKE_UPS_TARGET),
        )
    ]


def _echo(stack: contextlib.ExitStack, scratch: pathlib.Path) -> socket.socket:
    path = str(scratch / "echo")
    server = stack.enter_context(Program(PROGRAMS, "echo", path, log=scratch / "echo.log"))
    server.wait_until_ready()
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.connect(path)
    return sock


def _round_trip(sock: socket.socket, size: int) -> Callable[[], None]:
    payload = b"x" * size

    def round_trip() -> None:
        sock.sendall(payload)
        missing = size
        while missing:
            missing -= len(sock.recv(65536))

    return round_trip


def _gunicorn(stack: contextlib.ExitStack, scratch: pathlib.Path) -> Any:
    """A connected client of gunicorn's own control socket; None if it has none."""
    try:
        client_module = importlib.import_module("gunicorn.ctl.client")
    except ImportError:
        return None
    path = str(scratch / "gunicorn")
    options = ["--bind", "127.0.0.1:0", "--workers", "1", "--control-socket", path, "--worker-tmp-dir", str(scratch)]
    arguments = ["-m", "gunicorn", *options, "--pythonpath", str(HERE), "programs:wsgi"]
    server = stack.enter_context(Program(*arguments, log=scratch / "gunicorn.log"))
    client = stack.enter_context(contextlib.closing(client_module.ControlClient(path)))
    server.wait_until(lambda: client.send_command("show stats"))
    return client


def _stop_ours() -> list[float]:
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        client, server = controlled(stack, scratch)
        client.close()
        _idle_for_a_moment()

        def ask() -> None:
            client.stop()
            server.wait()

        return [elapsed(ask)]


def _stop_werkzeug() -> list[float]:
    with scratch_directory() as scratch, Program(PROGRAMS, "plain", log=scratch / "log") as server:
        server.wait_until_ready()
        _idle_for_a_moment()

        def ask() -> None:
            server.tell(b"stop\n")
            server.wait()

        return [elapsed(ask)]


def _idle_for_a_moment() -> None:
    """Until a random moment of the half second that Werkzeug's loop sleeps."""
    time.sleep(0.3 + random.uniform(0, 0.5))


def _context_switches(pid: int) -> dict[bool, int]:
    """Context switches of a process so far: of its main thread (True), of the control thread (False).

    Before Python 3.14 a thread's name is not known to the kernel; the control thread is the only other one then.
    """
    count = {True: 0, False: 0}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        count[int(task.name) == pid] += int(fields["voluntary_ctxt_switches"])
        count[int(task.name) == pid] += int(fields["nonvoluntary_ctxt_switches"])
    return count


MEASUREMENTS: dict[str, Callable[[bool], list[Row]]] = {
    "http": http,
    "status": status,
    "zeromq": zeromq,
    "ping": ping,
    "stop": stop,
    "idle": idle,
    "reloads": reloads,
    "floods": floods,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What flask-ctl costs, as ratios.")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of: {', '.join(MEASUREMENTS)}")
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    # A job that is terminated ends its servers, too.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    rows: list[Row] = []
    for name in options.names or MEASUREMENTS:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        rows += MEASUREMENTS[name](options.quick)
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"\n{machine}; medians, taken by turns\n")
    print(table(rows))


if __name__ == "__main__":
    main()
