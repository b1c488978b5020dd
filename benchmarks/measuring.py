"""Samples taken by turns, their medians, and the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

Samples = Callable[[], Sequence[float]]
"""Takes some samples, in seconds."""


def medians(rounds: int, *measured: Samples) -> list[float]:
    """The median of each, all taken by turns (A B A B …): what else the machine does then meets them alike."""
    samples: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for taken, take in zip(samples, measured):
            taken += take()
    return [statistics.median(taken) for taken in samples]


def each(calls: int, function: Callable[[], object]) -> Samples:
    """Every call's own time."""

    def take() -> list[float]:
        return [elapsed(function) for _ in range(calls)]

    return take


def average(calls: int, function: Callable[[], object]) -> Samples:
    """The average time of a call, for calls so short that the clock itself would show."""

    def take() -> list[float]:
        repeated = range(calls)
        began = time.perf_counter()
        for _ in repeated:
            function()
        return [(time.perf_counter() - began) / calls]

    return take


def elapsed(function: Callable[[], object]) -> float:
    """The time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@dataclass
class Row:
    """One line of the table: a figure of ours beside another one that was taken in the same run."""

    what: str
    ours: str
    beside: str = "–"
    theirs: str = "–"
    ratio: str = "–"
    target: str = "–"
    reached: str = ""

    @classmethod
    def compare(
        cls, what: str, ours: float, beside: str, theirs: float, most: float | None = None, target: str | None = None
    ) -> Row:
        """Times in seconds; the target is `most` times theirs, if there is one."""
        ratio = ours / theirs
        if most is None:
            return cls(what, duration(ours), beside, duration(theirs), f"{ratio:.2f}")
        target = target or f"≤ {most:g}"
        return cls(what, duration(ours), beside, duration(theirs), f"{ratio:.2f}", target, verdict(ratio <= most))


def verdict(reached: bool) -> str:
    return "yes" if reached else "NO"


def duration(seconds: float) -> str:
    """A time with three digits that mean something: 1.23 µs, 45.6 ms."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            break
    value = seconds * factor
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    head = ("what", "ours", "beside", "theirs", "ratio", "target", "reached")
    lines = [head, *(astuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, tuple("-" * width for width in widths))
    right = {1, 3, 4, 5}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
