"""`flask-ctl profile` beside py-spy, on the same run: ``python benchmarks/profiles.py [--seconds 20]``.

Writes the page ``profiles.md``. py-spy traces the server, and so needs root, or its permission; both count time on the
clock, 100 times a second. An app with requests of more than 20 ms, which compute, wait, and call C code with and
without the interpreter's lock, and with short ones, is under load meanwhile.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flask_ctl import ControlClient

PAGE = pathlib.Path(__file__).parent / "profiles.md"

PY_SPY = pathlib.Path(sys.executable).parent / "py-spy"

APP = """
import hashlib, json, re, time
from flask import Flask
from flask_ctl import Control

app = Flask("profiled")
Control(app, socket="ctl.sock")
ROWS = [{"number": n, "name": f"row {n}", "price": n / 7} for n in range(400)]

def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(n * n for n in range(50))

def parse(): compute(0.01)
def render(): compute(0.02)
def query(): time.sleep(0.03)
def digest(): hashlib.pbkdf2_hmac("sha256", b"x", b"y", 60_000)
def match(): re.match("(a*)*b", "a" * 18)
def encode():
    for _ in range(25):
        json.dumps(ROWS, indent=1)
def first(): compute(0.001)
def second(): compute(0.001)

@app.get("/page")
def page():
    parse(); render(); return "x"
@app.get("/report")
def report():
    query(); compute(0.01); return "x"
@app.get("/sign")
def sign():
    digest(); return "x"
@app.get("/search")
def search():
    match(); return "x"
@app.get("/export")
def export():
    encode(); return "x"
@app.get("/short")
def short():
    first(); second(); return "x"
"""

LONG = {"/page": "page", "/report": "report", "/sign": "sign", "/search": "search", "/export": "export"}
SHORT = {"/short": "short"}
VIEWS = {**LONG, **SHORT}
"""The view of each route."""

Counts = collections.Counter[str]


def visit(port: int, path: str, pause: float, over: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not over.is_set():
        connection.request("GET", path)
        connection.getresponse().read()
        time.sleep(pause)
    connection.close()


def traced(pid: int, seconds: float, output: pathlib.Path) -> subprocess.Popen[bytes]:
    command = [str(PY_SPY), "record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--rate", "100", "--idle"]
    return subprocess.Popen([*command, "--function", "--format", "raw", "--output", str(output)], stderr=sys.stderr)


def spied(text: str) -> Iterable[tuple[list[str], float]]:
    """Each stack of py-spy's collapsed ones: ``function file`` of each frame, and the samples."""
    for line in text.splitlines():
        path, _, count = line.rpartition(" ")
        yield [_name(*frame.rsplit(" (", 1)) for frame in path.split(";") if " (" in frame], float(count)


def sampled(profile: Mapping[str, Any]) -> Iterable[tuple[list[str], float]]:
    names = [_name(frame["function"], frame["file"]) for frame in profile["frames"]]
    for stack in profile["stacks"]:
        yield [names[number] for number in stack["frames"]], stack["seconds"]


def _name(function: str, file: str) -> str:
    # py-spy has no qualified names, and parts of paths.
    return f"{function.rpartition('.')[2]} {os.path.basename(file.rstrip(')').partition(':')[0])}"


def counted(stacks: Iterable[tuple[list[str], float]]) -> tuple[Counts, dict[str, Counts]]:
    """The time by route, and within each by the innermost function."""
    routes: Counts = collections.Counter()
    functions: dict[str, Counts] = {path: collections.Counter() for path in VIEWS}
    for frames, time_of_stack in stacks:
        for path, view in VIEWS.items():
            if f"{view} app.py" in frames:
                routes[path] += time_of_stack  # type: ignore[assignment]
                functions[path][frames[-1]] += time_of_stack  # type: ignore[assignment]
    return routes, functions


def compared(title: str, ours: Counts, theirs: Counts, count: int = 5) -> list[str]:
    ranked, other = ([name for name, _ in each.most_common(count)] for each in (ours, theirs))
    common = len(set(ranked) & set(other))
    whole, whole_other = sum(ours.values()) or 1, sum(theirs.values()) or 1
    rows = [
        f"### {title}: {common} of the top {len(other)} are the same",
        "",
        "| | flask-ctl | py-spy |",
        "|---|---|---|",
    ]
    names = sorted({*ranked, *other}, key=lambda name: -theirs[name])
    rows += [f"| `{name}` | {ours[name] / whole:.1%} | {theirs[name] / whole_other:.1%} |" for name in names]
    return [*rows, ""]


def measure(seconds: float) -> list[str]:
    with tempfile.TemporaryDirectory() as place:
        directory = pathlib.Path(place)
        (directory / "app.py").write_text(APP)
        command = [sys.executable, "-m", "flask_ctl_cli", "run", "--app", "app", "--server", "waitress", "--port", "0"]
        with (directory / "log").open("w") as log:
            server = subprocess.Popen([*command, "--threads", "8"], cwd=directory, stdout=log, stderr=log)
        try:
            return _measure(server, directory, seconds)
        finally:
            server.terminate()
            server.wait()


def _measure(server: subprocess.Popen[bytes], directory: pathlib.Path, seconds: float) -> list[str]:
    subprocess.run(
        [sys.executable, "-m", "flask_ctl_cli", "-q", "ping", "--wait", "20", "-s", directory / "ctl.sock"], check=True
    )
    client = ControlClient(str(directory / "ctl.sock"))
    port = int(client.status()["server"]["listeners"][0].rpartition(":")[2])
    over = threading.Event()
    visitors = [
        threading.Thread(target=visit, args=(port, path, 0.01 * number, over)) for number, path in enumerate(VIEWS, 1)
    ]
    for visitor in visitors:
        visitor.start()
    time.sleep(1)
    output = directory / "spied.txt"
    tracer = traced(server.pid, seconds, output)
    profile = client.profile(seconds, requests_only=True)
    tracer.wait()
    over.set()
    for visitor in visitors:
        visitor.join()
    ours, theirs = counted(sampled(profile)), counted(spied(output.read_text()))
    exact = collections.Counter({row["route"].partition(" ")[2]: row["seconds"] for row in profile["routes"]})
    [process] = profile["processes"]
    lines = [
        f"{seconds:g} s; flask-ctl reached {process['hz']:g} Hz with {process['cpu']:.1%} of a processor, and"
        f" a coverage of {process['coverage']:.0%}.",
        "",
        *compared("By route", exact, theirs[0]),
    ]
    long_ones = [sum((each[1][path] for path in LONG), collections.Counter()) for each in (ours, theirs)]
    lines += compared("By function, in requests of 20 ms and more", long_ones[0], long_ones[1])
    halves = _halves(sampled(profile)), _halves(spied(output.read_text()))
    return lines + compared("The equal halves of a request of 2 ms, which are shifted", halves[0], halves[1])


def _halves(stacks: Iterable[tuple[list[str], float]]) -> Counts:
    counts: Counts = collections.Counter()
    for frames, time_of_stack in stacks:
        for half in ("first", "second"):
            if f"{half} app.py" in frames:
                counts[half] += time_of_stack  # type: ignore[assignment]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    lines = measure(parser.parse_args().seconds)
    load = os.getloadavg()[0]
    head = [
        "# Profiles beside py-spy",
        "",
        "What `flask-ctl profile` and py-spy, both at 100 Hz and side by side, see of the same run: the shares of the",
        "time of all requests. `python benchmarks/profiles.py` measures, and writes this page.",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} processors, load {load:.1f} at the end.",
        "",
    ]
    PAGE.write_text("\n".join([*head, *lines]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
