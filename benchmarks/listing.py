"""What `flask-ctl ls` takes where many instances are registered, and how soon `--watch` shows one that comes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator

from benchmarks.measuring import Figure, duration, elapsed
from benchmarks.running import PROGRAMS, TOOL, Program, controlled, process, scratch_directory

REAL, HELD = 20, 180
"""Servers that answer, and entries that one helper process holds."""

GOAL, WATCH_GOAL = 0.5, 1.0
"""Seconds."""

STARTS, AT_ONCE = 50, 5


def listing(rounds: int) -> list[Figure]:
    """`ls`, from the start of its process to the end."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(_registry())
        holder = stack.enter_context(Program(PROGRAMS, "entries", str(HELD), log=scratch / "entries.log"))
        holder.wait_until_ready()
        for number in range(REAL):
            controlled(stack, scratch, str(scratch / f"{number}.sock"))
        told = json.loads(subprocess.run([TOOL, "ls", "--all", "--json"], capture_output=True, check=True).stdout)
        answering = sum(one["state"] == "running" for one in told)
        if (len(told), answering) != (REAL + HELD, REAL):
            raise RuntimeError(f"{len(told)} instances are listed, {answering} of them answer")
        ours, theirs = process(scratch, TOOL, "ls", "--all"), process(scratch, TOOL, "--version")
        for command in (ours, theirs):
            command()
        samples = [(elapsed(ours), elapsed(theirs), elapsed(ours)) for _ in range(rounds)]
    whole, bare, _ = (statistics.median(column) for column in zip(*samples))
    return [
        Figure(
            f"`ls` of {REAL + HELD} instances, {REAL} of which answer",
            duration(whole),
            "`flask-ctl --version`",
            duration(bare),
            duration(whole),
            f"{statistics.median(again / first for first, _, again in samples):.2f} ×",
            f"≤ {duration(GOAL)}",
            whole <= GOAL,
            "the start of Python takes the most of it, and each server has to get a processor to answer.",
        )
    ]


def watching(_rounds: int) -> list[Figure]:
    """The longest time from the first answer of a server until `ls --watch` has it, while others come and go."""
    seen: dict[str, float] = {}
    began: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(_registry())
        words = [TOOL, "ls", "--all", "--watch", "--json"]
        watch = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        reader = threading.Thread(target=_read, args=(watch.stdout or [], seen))
        reader.start()
        stack.callback(reader.join)
        stack.callback(watch.terminate)
        for first in range(0, STARTS, AT_ONCE):
            with contextlib.ExitStack() as some:
                for number in range(first, first + AT_ONCE):
                    client, server = controlled(some, scratch, str(scratch / f"{number}.sock"))
                    began[client.endpoint] = time.monotonic()
                server.wait_until(lambda: [seen[socket] for socket in began])
    late = [max(0.0, seen[socket] - began[socket]) for socket in began]
    return [
        Figure(
            f"`ls --watch` shows each of {STARTS} servers that come and go, the last one",
            duration(max(late)),
            "the median",
            duration(statistics.median(late)),
            duration(max(late)),
            "–",
            f"≤ {duration(WATCH_GOAL)}",
            max(late) <= WATCH_GOAL,
            "the servers that start meanwhile take the processors.",
        )
    ]


def _read(lines: Iterable[str], seen: dict[str, float]) -> None:
    """Note when each socket is listed first; end at a list that has one twice."""
    for line in lines:
        now, listed = time.monotonic(), [one["socket"] for one in json.loads(line)]
        if len(set(listed)) != len(listed):
            raise RuntimeError(f"an instance is listed twice: {listed}")
        for socket in listed:
            seen.setdefault(socket, now)


@contextlib.contextmanager
def _registry() -> Iterator[pathlib.Path]:
    """A directory for sockets, and a registry of its own for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in ("XDG_RUNTIME_DIR", "TMPDIR")}
    with scratch_directory() as scratch:
        os.environ.update(dict.fromkeys(before, str(scratch)))
        try:
            yield scratch
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
