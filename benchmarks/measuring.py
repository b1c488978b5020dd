"""Samples taken by turns, the medians of their ratios, and the tables of the page."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Take = Callable[[], float]
"""Takes one sample: seconds, or another quantity of which less is better."""

MIN_ROUNDS = 7


@dataclass(frozen=True)
class Comparison:
    """The medians of `ours` and `theirs` over some rounds, and of the ratios of each round.

    `same` is the A/A run: the ratio of two samples of the same thing, taken in the same rounds. How far it is from 1
    tells how little a difference in `ratio` means.
    """

    ours: float
    theirs: float
    ratio: float
    same: float

    @classmethod
    def of(cls, rounds: Sequence[tuple[float, float, float]]) -> Comparison:
        """Of rounds with a sample of ours, and two of theirs."""
        return cls(
            statistics.median(ours for ours, _, _ in rounds),
            statistics.median(theirs for _, theirs, _ in rounds),
            statistics.median(ours / theirs for ours, theirs, _ in rounds),
            statistics.median(again / theirs for _, theirs, again in rounds),
        )


def compare(rounds: int, ours: Take, theirs: Take) -> Comparison:
    """Take samples by turns, ours, theirs, theirs again: what else the machine does meets them alike."""
    return Comparison.of([(ours(), theirs(), theirs()) for _ in range(max(rounds, MIN_ROUNDS))])


def median_time(calls: int, function: Callable[[], object]) -> Take:
    """The median of the times of some calls."""
    return lambda: statistics.median(elapsed(function) for _ in range(calls))


def average_time(calls: int, function: Callable[[], object]) -> Take:
    """The average processor time of a call, for calls that only compute, so short that the clock itself would show."""

    def take() -> float:
        repeated = range(calls)
        began = time.thread_time()
        for _ in repeated:
            function()
        return (time.thread_time() - began) / calls

    return take


def elapsed(function: Callable[[], object]) -> float:
    """The time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Figure:
    """One line of the table. `reached` is None without a goal; `reason` says why a goal is missed, if it is."""

    what: str
    ours: str
    beside: str
    theirs: str
    figure: str
    same: str
    goal: str = "–"
    reached: bool | None = None
    reason: str = ""

    @classmethod
    def ratio(
        cls,
        what: str,
        beside: str,
        compared: Comparison,
        most: float | None = None,
        reason: str = "",
        unit: Callable[[float], str] | None = None,
    ) -> Figure:
        """A ratio that is to be `most` at the most."""
        show = unit or duration
        return cls(
            what,
            show(compared.ours),
            beside,
            show(compared.theirs),
            f"{compared.ratio:.2f} ×",
            f"{compared.same:.2f} ×",
            "–" if most is None else f"≤ {most:g} ×",
            None if most is None else round(compared.ratio, 2) <= most,
            reason,
        )

    @property
    def missed(self) -> bool:
        return self.reached is False


def duration(seconds: float) -> str:
    """A time with three digits that mean something: 1.23 µs, 45.6 ms."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * factor >= 1 or unit == "µs":
            break
    value = seconds * factor
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines: list[tuple[str, ...]] = [("figure", "ours", "beside", "theirs", "reached", "A/A", "goal", "")]
    lines += [(f.what, f.ours, f.beside, f.theirs, f.figure, f.same, f.goal, _verdict(f)) for f in figures]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def misses(figures: Sequence[Figure]) -> str:
    """A line for each goal that is missed, with the reason."""
    return "\n".join(f"- **{figure.what}**: {figure.reason}" for figure in figures if figure.missed)


def _verdict(figure: Figure) -> str:
    return "" if figure.reached is None else "yes" if figure.reached else "**no**"
