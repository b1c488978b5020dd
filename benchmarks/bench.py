"""What flask-ctl costs: ``python benchmarks/bench.py [--quick] [NAME ...]``.

Times differ from machine to machine and from minute to minute. So each figure is taken beside something well known, by
turns in the same run, and is a median of ratios. Beside it stands the ratio of two samples of the same thing (A/A).
A goal that is missed is shown, and is no error. A complete run writes the page ``results.md``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Callable

from benchmarks import costs, hub, stops, wire
from benchmarks.fixtures import live_app, plugin
from benchmarks.floods import floods
from benchmarks.followers import stopped_follower
from benchmarks.listing import listing, watching
from benchmarks.measuring import MIN_ROUNDS, Figure, misses, table
from benchmarks.reloads import reloads
from benchmarks.running import HERE

RESULTS = HERE / "results.md"

VERSIONS = ("flask-ctl", "flask", "werkzeug", "click", "pyzmq", "psutil", "gunicorn")

Measurement = Callable[[int], list[Figure]]

GOALS: dict[str, tuple[Measurement, int, int]] = {
    "kept": (wire.kept, 200, 50),
    "one_shot": (wire.one_shot, 100, 30),
    "ipc": (wire.ipc, 200, 50),
    "spinning": (wire.spinning, 20, 5),
    "command_line": (costs.command_line, 11, MIN_ROUNDS),
    "memory": (costs.memory, 9, MIN_ROUNDS),
    "middleware": (costs.middleware, 101, 21),
    "stop": (stops.idle, 9, MIN_ROUNDS),
    "gunicorn": (stops.gunicorn, MIN_ROUNDS, MIN_ROUNDS),
    "plugin": (plugin, 9, MIN_ROUNDS),
    "live_app": (live_app, MIN_ROUNDS, MIN_ROUNDS),
    "hub": (hub.status, MIN_ROUNDS, MIN_ROUNDS),
    "ls": (listing, 11, MIN_ROUNDS),
    "ls_watch": (watching, MIN_ROUNDS, MIN_ROUNDS),
}
"""The figures with a goal: how each is measured, and the number of rounds or calls in a complete and in a quick run."""

OTHERS: dict[str, tuple[Measurement, int, int]] = {
    "wake_ups": (costs.wake_ups, 10, 4),
    "floods": (floods, 200, 30),
    "stopped_follower": (stopped_follower, MIN_ROUNDS, MIN_ROUNDS),
    "reloads": (reloads, MIN_ROUNDS, MIN_ROUNDS),
}
"""Others, whose counterpart is the same server without what is measured."""

PAGE = """# Results

What flask-ctl costs, beside something well known: the medians of at least {rounds} rounds, taken by turns in one run.
`A/A` is the ratio of two samples of the same thing in the same rounds: how far it is from 1 tells how little the last
digits mean. `make bench` measures, and writes this page.

{machine}

## Goals

{goals}
{missed}
## Other figures

{others}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What flask-ctl costs, as ratios.")
    known = [*GOALS, *OTHERS]
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no page")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of: {', '.join(known)}")
    options = parser.parse_args()
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    # A job that is terminated ends its servers, too.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    names = options.names or known
    goals, others = (_measure(group, names, quick=options.quick) for group in (GOALS, OTHERS))
    page = _page(goals, others)
    print(page)
    if not options.names and not options.quick:
        RESULTS.write_text(page)


def _measure(group: dict[str, tuple[Measurement, int, int]], names: list[str], *, quick: bool) -> list[Figure]:
    figures = []
    for name, (measure, rounds, few) in group.items():
        if name in names:
            began = time.monotonic()
            figures += measure(few if quick else rounds)
            print(f"measured: {name}, in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return figures


def _page(goals: list[Figure], others: list[Figure]) -> str:
    missed = misses([*goals, *others])
    return PAGE.format(
        rounds=MIN_ROUNDS,
        machine=_machine(),
        goals=table(goals),
        missed=f"\nMissed, and why:\n\n{missed}\n" if missed else "",
        others=table(others),
    )


def _machine() -> str:
    """The machine and the versions, as a sentence."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    return (
        f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {_processor()},"
        f" {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {versions}."
    )


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
