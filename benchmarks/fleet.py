"""Control over NATS beside nats-py's own services: ``python benchmarks/fleet.py [--quick]``.

Writes the page ``fleet.md`` and the plot ``fleet.svg``. A real nats-server has up to 1,000 instances, which are the
real `Agent`s of a few processes with a status that was taken down, and as many of the plainest services that nats-py
can be given. Then 20 real processes are reloaded, a few at a time, under load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measuring import Comparison, Figure, compare, duration, elapsed, misses, table
from benchmarks.running import HERE, TOOL, Program, clean_environment, free_port, scratch_directory

PAGE, PLOT = HERE / "fleet.md", HERE / "fleet.svg"
NATS_SERVER = str(pathlib.Path(sys.executable).parent / "nats-server")

SIZES = (10, 30, 100, 300, 1000)
PROCESSES = 2
PER_CONNECTION = 50
GOAL, GOAL_SECONDS = 3.0, 0.3

REAL = 20
BATCH = 4

STATUS: dict[str, Any] = {
    "protocol": 1, "pid": 4242, "parent": None, "app": "shop", "cwd": "/srv/shop/releases/41",
    "directory": "/srv/shop/releases/41", "root_path": "/srv/shop/releases/41/shop", "state": "running",
    "generation": 3, "started_at": "2026-11-30T12:00:00.000Z", "reloaded_at": "2026-11-30T13:00:00.000Z",
    "uptime": 86400.123,
    "server": {"name": "waitress", "version": "3.0.2", "listeners": ["http://127.0.0.1:8080"]},
    "requests": {"in_flight": 3, "oldest": 0.12, "oldest_request": {"method": "GET", "route": "/cart"},
                 "total": 1234567, "errors": 12},
    "process": {"rss": 123456789, "cpu": 0.25, "threads": 12, "fds": 40},
    "versions": {"python": "3.11.7", "flask": "3.1.3", "werkzeug": "3.1.9", "flask_ctl": "0.1.0"},
    "supervisor": {"kind": "systemd", "restart": "always", "unit": "shop.service"}, "service_manager": None,
    "workers": [], "last_reload": None, "draining": None, "stopping": None,
    "control": {"restarts": 0, "sockets": ["/run/shop/ctl.sock"]},
}  # fmt: skip
"""As an instance answers it."""

APP = """
import os, time
from flask import Flask
from flask_ctl import Control

app = Flask("real")
app.config["CTL_FLEET"] = os.environ["BROKER"]
app.config["CTL_FLEET_OPERATE"] = True
Control(app, socket=os.environ["ADDRESS"])

@app.get("/")
def index():
    time.sleep(0.01)
    return "hello"

app.run(port=0)
"""

TEXT = """# Control over NATS

`make bench-fleet` measures, and writes this page: the status of many instances over a real nats-server {server}, beside
a bare request to as many services of nats-py, which send the same bytes. Both by turns in one run, medians of {rounds}
rounds; `A/A` is the ratio of two samples of the bare one. The instances are the real agents of {processes} processes,
whose status was taken down once.

{machine}

{figures}
{missed}
![Cost per instance](fleet.svg)

| instances | one question, per instance | bare request, per service |
|---|---|---|
{sizes}

`flask-ctl fleet reload --rolling --batch {batch}` of {real} real processes, each under load by one client: {reloads}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Control over NATS, as ratios.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no page")
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "URL", "SIZES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, url, sizes = options.serve
        asyncio.run(serve(kind, url, json.loads(sizes)))
        return
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    rounds = 7 if options.quick else 21
    measured = {size: question(size, rounds) for size in SIZES}
    by_size = {size: known for size, (known, _) in measured.items()}
    figures = figures_of(*measured[SIZES[-1]])
    reloads = rolling()
    page = text_of(figures, by_size, reloads, rounds)
    print(page)
    if not options.quick:
        PAGE.write_text(page)
        PLOT.write_text(plot(by_size))


# The instances


async def serve(kind: str, url: str, sizes: dict[str, int]) -> None:
    """Serve so many instances, or services, of each name until stdin ends."""
    number = os.getpid()
    names = [(name, f"{number}-{index}") for name, count in sizes.items() for index in range(count)]
    add = add_agents if kind == "agents" else add_services
    keep: list[Any] = []
    for begin in range(0, len(names), PER_CONNECTION):
        keep.append(await add(url, names[begin : begin + PER_CONNECTION]))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def add_agents(url: str, names: Sequence[tuple[str, str]]) -> Any:
    from flask_ctl.fleet.connection import Connection
    from flask_ctl.fleet.settings import Broker

    connection = Connection(Broker([url]), "many")
    await connection.connect()
    return [await start_agent(connection, app, instance) for app, instance in names]


async def start_agent(connection: Any, app: str, instance: str) -> Any:
    """A real agent, for which the status of another instance is answered."""
    from flask_ctl.fleet.agent import Agent, Identity, Incoming
    from flask_ctl.fleet.presence import INTERVAL, Presence

    result = json.dumps(STATUS, separators=(",", ":"))
    tasks: set[Any] = set()

    def begin(work: Any) -> None:
        tasks.add(task := asyncio.ensure_future(work))
        task.add_done_callback(tasks.discard)

    def deliver(incoming: Incoming) -> None:
        answer = f'{{"jsonrpc":"2.0","id":{json.loads(incoming.data)["id"]},"result":{result}}}'
        begin(agent.respond(incoming.reply, answer.encode()))

    async def renew() -> None:
        while True:
            await agent.tell(Presence(app, instance, "many", 1, 1, "running", "2026-11-30T12:00:00.000Z", "0.1.0"))
            await asyncio.sleep(INTERVAL)

    agent = Agent(
        connection, Identity(app, instance, "many", 1, "0.1.0", {}), ["observe", "inspect", "operate"], deliver
    )
    await agent.start()
    begin(renew())
    while agent.presence is None:
        await asyncio.sleep(0.01)
    return agent


async def add_services(url: str, names: Sequence[tuple[str, str]]) -> Any:
    import nats
    from nats import micro
    from nats.micro.service import EndpointConfig, ServiceConfig

    client = await nats.connect(url)
    answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": STATUS}, separators=(",", ":")).encode()

    async def handle(request: Any) -> None:
        await request.respond(answer)

    for name, instance in names:
        service = await micro.add_service(client, ServiceConfig(name="bare", version="1.0.0", queue_group=instance))
        await service.add_endpoint(EndpointConfig(name="status", subject=f"bare.{name}", handler=handle))
    await client.flush()
    return client


# The questions


def question(size: int, rounds: int) -> tuple[Comparison, Comparison]:
    """The status of so many instances that are known; and with the look who is there. Each beside a bare request."""
    from flask_ctl import Fleet

    share = json.dumps({"shop": size // PROCESSES})
    with scratch_directory() as scratch, broker(scratch) as url, ExitStack() as stack:
        for kind in ("agents", "services"):
            for number in range(PROCESSES):
                arguments = [str(HERE / "fleet.py"), "--serve", kind, url, share]
                program = stack.enter_context(Program(*arguments, log=scratch / f"{kind}{number}.log"))
                program.wait_until_ready()
        bare, fleet = stack.enter_context(closing(Bare(url))), stack.enter_context(Fleet(url))
        while len((roster := fleet.roster()).instances) < size:
            time.sleep(0.1)

        def theirs() -> float:
            return elapsed(lambda: bare.gather("shop", size))

        known = compare(rounds, lambda: elapsed(lambda: check(fleet.ask("status", roster.instances, roster))), theirs)
        whole = compare(rounds, lambda: elapsed(lambda: status_of(fleet)), theirs)
    return known, whole


def figures_of(known: Comparison, whole: Comparison) -> list[Figure]:
    most = SIZES[-1]
    seconds = Figure(
        f"who is there, and the status of {most:,}", duration(whole.ours), "the goal", duration(GOAL_SECONDS),
        f"{whole.ours / GOAL_SECONDS:.2f} ×", "–", "≤ 1 ×", whole.ours <= GOAL_SECONDS, "other work on the machine",
    )  # fmt: skip
    return [
        Figure.ratio(f"status of {most:,} instances that are known", "bare request", known, GOAL, "not known"),
        Figure.ratio(f"who is there, and the status of {most:,}", "bare request", whole, GOAL, "not known"),
        seconds,
    ]


def status_of(fleet: Any) -> None:
    roster = fleet.roster()
    check(fleet.ask("status", roster.instances, roster))


def check(answers: dict[Any, Any]) -> None:
    assert all(isinstance(answer, dict) and answer["state"] == "running" for answer in answers.values()), answers


class Bare:
    """What nats-py alone needs to ask services, and to take in as many answers."""

    def __init__(self, url: str) -> None:
        import nats

        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(nats.connect(url))

    def gather(self, name: str, count: int) -> None:
        self._loop.run_until_complete(self._gather(name, count))

    async def _gather(self, name: str, count: int) -> None:
        inbox = self._client.new_inbox()
        answers = await self._client.subscribe(inbox)
        await self._client.publish(f"bare.{name}", b'{"jsonrpc":"2.0","id":1,"method":"status"}', reply=inbox)
        for _ in range(count):
            json.loads((await answers.next_msg(timeout=10)).data)
        await answers.unsubscribe()

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


# The rolling reload


def rolling() -> str:
    """Reload real processes under load, and tell what was lost."""
    with scratch_directory() as scratch, broker(scratch) as url, ExitStack() as stack:
        (scratch / "app.py").write_text(APP)
        for number in range(REAL):
            environment = {**clean_environment(), "BROKER": url, "ADDRESS": str(scratch / f"{number}.sock")}
            stack.enter_context(instance_of(scratch, environment, number))
        loads = [stack.enter_context(closing(Load(address_of(scratch / f"{n}.sock")))) for n in range(REAL)]
        until_answered(loads)
        options = ["--nats", url, "--name", "real", "--rolling", "--batch", str(BATCH)]
        environment = {**clean_environment(), "HOME": str(scratch)}
        began = time.monotonic()
        done = subprocess.run([TOOL, "fleet", "reload", *options], capture_output=True, text=True, env=environment)
        took = time.monotonic() - began
        until_answered(loads)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    lost, answered = sum(load.lost for load in loads), sum(load.answered for load in loads)
    return f"exit code {done.returncode}, {duration(took)}, {answered} requests answered, **{lost} lost**."


@contextmanager
def instance_of(scratch: pathlib.Path, environment: dict[str, str], number: int) -> Iterator[None]:
    with (scratch / f"{number}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=scratch, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def address_of(socket: pathlib.Path) -> tuple[str, int]:
    """Where the instance serves HTTP, once it is connected, too."""
    from flask_ctl import ControlClient, ControlError

    while True:
        try:
            with ControlClient(str(socket)) as client:
                status = client.status()
            if status["fleet"]["problem"] is None:
                url = urlsplit(status["server"]["listeners"][0])
                assert url.hostname is not None
                assert url.port is not None
                return url.hostname, url.port
        except ControlError:
            # It starts.
            pass
        time.sleep(0.05)


def until_answered(loads: Sequence[Load]) -> None:
    """Each has one more answer."""
    before = [load.answered for load in loads]
    while not all(load.answered > count for load, count in zip(loads, before)):
        time.sleep(0.01)


class Load:
    """A client that asks again and again."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.answered = 0
        self.lost = 0
        self._address = address
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        while not self._over:
            try:
                with closing(HTTPConnection(*self._address, timeout=60)) as connection:
                    connection.request("GET", "/")
                    assert connection.getresponse().read() == b"hello"
                self.answered += 1
            except (OSError, HTTPException, AssertionError):
                self.lost += 1


# The page


@contextmanager
def broker(scratch: pathlib.Path) -> Iterator[str]:
    """A NATS server with JetStream; its URL."""
    port = free_port()
    command = [NATS_SERVER, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(scratch / "store")]
    with (scratch / "nats.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while b"Server is ready" not in (scratch / "nats.log").read_bytes():
            time.sleep(0.02)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def text_of(figures: list[Figure], by_size: dict[int, Comparison], reloads: str, rounds: int) -> str:
    from benchmarks.bench import _machine

    rows = [
        f"| {size:,} | {duration(one.ours / size)} | {duration(one.theirs / size)} |" for size, one in by_size.items()
    ]
    version = subprocess.run([NATS_SERVER, "--version"], capture_output=True, text=True).stdout.split()[-1]
    missed = misses(figures)
    return TEXT.format(
        server=version,
        rounds=rounds,
        processes=PROCESSES,
        machine=_machine(),
        figures=table(figures),
        missed=f"\nMissed, and why:\n\n{missed}\n" if missed else "",
        sizes="\n".join(rows),
        batch=BATCH,
        real=REAL,
        reloads=reloads,
    )


def plot(by_size: dict[int, Comparison]) -> str:
    """Microseconds per instance over the number of instances, which has a logarithmic scale."""
    import math

    width, height, left, bottom = 640, 320, 70, 40
    most = max(max(one.ours, one.theirs) / size for size, one in by_size.items()) * 1.1
    first, last = math.log10(SIZES[0]), math.log10(SIZES[-1])

    def place(size: int, seconds: float) -> tuple[float, float]:
        x = left + (math.log10(size) - first) / (last - first) * (width - left - 20)
        return round(x, 1), round(height - bottom - seconds / size / most * (height - bottom - 20), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="13" role="img"><title>Cost per instance</title>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left} 10V{height - bottom}H{width - 10}" stroke="#666" fill="none"/>',
    ]
    for size in SIZES:
        x, _ = place(size, 0)
        parts.append(f'<text x="{x}" y="{height - bottom + 18}" text-anchor="middle">{size:,}</text>')
    for share in (0.25, 0.5, 0.75, 1.0):
        seconds = most / 1.1 * share
        _, y = place(1, seconds)
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{duration(seconds)}</text>')
        parts.append(f'<path d="M{left} {y}H{width - 10}" stroke="#ddd"/>')
    lines: list[tuple[str, str, Callable[[Comparison], float]]] = [
        ("flask-ctl", "#0b6", lambda one: one.ours), ("bare request", "#06c", lambda one: one.theirs),
    ]  # fmt: skip
    for number, (name, colour, value) in enumerate(lines):
        points = " ".join("{},{}".format(*place(size, value(one))) for size, one in by_size.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 130}" y="{30 + 18 * number}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
