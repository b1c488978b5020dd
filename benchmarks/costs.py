"""What the command line, the memory of a controlled app and the counting of requests cost."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
import wsgiref.util
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import psutil

from benchmarks.counting import MinimalCounter
from benchmarks.measuring import Figure, average_time, compare, median_time
from benchmarks.programs import wsgi
from benchmarks.running import PROGRAMS, TOOL, Program, controlled, free_port, process, scratch_directory
from flask_ctl import ControlClient
from flask_ctl.servers.middleware import RequestCounter

MEMORY_GOAL = 1.8
"""MiB."""

WAKE_UPS_GOAL = 1.0
"""A second."""


def command_line(rounds: int) -> list[Figure]:
    """`flask-ctl ping`, from the start of its process to the end."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        client, _ = controlled(stack, scratch)
        ours = process(scratch, TOOL, "ping", "--socket", client.endpoint)
        theirs = process(scratch, sys.executable, "-c", "import click")
        for command in (ours, theirs):
            command()
        compared = compare(rounds, median_time(3, ours), median_time(3, theirs))
    return [
        Figure.ratio(
            "`flask-ctl ping`, whole process",
            '`python -c "import click"`',
            compared,
            1.25,
            "json and socket, which click does not load, take a third of the difference, some 30 modules of flask-ctl"
            " the rest.",
        )
    ]


def memory(rounds: int) -> list[Figure]:
    """What `Control` adds to a serving process, Unix only, once `status` has loaded psutil."""
    samples = compare(rounds, lambda: _memory(control=True), lambda: _memory(control=False))
    added = (samples.ours - samples.theirs) / 2**20
    return [
        Figure(
            "memory that `Control` adds",
            _mebibytes(samples.ours),
            "the same app without it",
            _mebibytes(samples.theirs),
            f"+{added:.2f} MiB",
            f"{samples.same:.2f} ×",
            f"≤ +{MEMORY_GOAL} MiB",
            round(added, 2) <= MEMORY_GOAL,
            "psutil takes 1 MiB, the 150 modules of flask-ctl the rest, half of that their code; they are loaded at the"
            " start, because later descriptors may be used up, or the package replaced.",
        )
    ]


def _memory(*, control: bool) -> float:
    """The memory that a process has for itself (USS) when it has answered a request, and `status` if controlled."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        address, port = str(scratch / "app.sock"), free_port()
        arguments = [str(port), *([address] if control else [])]
        server = stack.enter_context(Program(PROGRAMS, "serving", *arguments, log=scratch / "log"))
        server.wait_until(lambda: urlopen(f"http://127.0.0.1:{port}").close())
        if control:
            stack.enter_context(ControlClient(address)).status()
        return float(psutil.Process(server.pid).memory_full_info().uss)


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def middleware(rounds: int) -> list[Figure]:
    """What counting adds to a request, beside the least that an honest middleware adds."""
    environ: dict[str, Any] = {"wsgi.file_wrapper": wsgiref.util.FileWrapper}
    wsgiref.util.setup_testing_defaults(environ)
    measuring = RequestCounter(wsgi)
    measuring.measure()
    bare, least = (average_time(5000, _request(app, environ)) for app in (wsgi, MinimalCounter(wsgi)))
    figures = []
    for counter, what, goal in (
        (measuring, "counting adds to a request", 1.4),
        (RequestCounter(wsgi), "counting without `CTL_METRICS`", 1.2),
    ):
        ours = average_time(5000, _request(counter, environ))
        compared = compare(rounds, lambda ours=ours: ours() - bare(), lambda: least() - bare())  # type: ignore[misc]
        why = "it keeps the length of a list and the server's own file objects, which the minimal one loses."
        figures.append(Figure.ratio(what, "a minimal middleware", compared, goal, why))
    return figures


def _request(app: Callable[..., Any], environ: dict[str, Any]) -> Callable[[], None]:
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


def wake_ups(seconds: float) -> list[Figure]:
    """How often the control thread wakes up while nobody asks."""
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
            return []
    main, side = (int((after[kind] - before[kind]) / seconds * 10) / 10 for kind in (True, False))
    return [
        Figure(
            "wake-ups of the control thread",
            f"{side:.1f} /s",
            "Werkzeug's own loop",
            f"{main:.1f} /s",
            f"{side:.1f} /s",
            "–",
            f"≤ {WAKE_UPS_GOAL:g} /s",
            side <= WAKE_UPS_GOAL,
        )
    ]


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
