"""Profiles: the parts that a server sends, merged over its processes, and as text: a table, or collapsed stacks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from .escaping import printable
from .text import Column, plural, table

Form = Literal["table", "collapsed", "speedscope", "svg"]

TOP = 15
"""Functions in a table, and routes."""


class ProfileParts:
    """Puts the parts of a profile together."""

    def __init__(self) -> None:
        self._frames: dict[tuple[Any, ...], int] = {}
        self._stacks: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._numbers: dict[int, list[int]] = {}
        self._processes: list[dict[str, Any]] = []
        self._routes: dict[str, dict[str, Any]] = {}
        self._unanswered: list[dict[str, Any]] = []

    def add(self, part: Mapping[str, Any]) -> None:
        """Add an item of the stream ``profile``."""
        self._unanswered += part.get("unanswered", [])
        if "worker" not in part:
            return
        # Each process has its own numbers.
        numbers = self._numbers.setdefault(part["worker"], [])
        for frame in part.get("frames", []):
            key = frame["function"], frame["file"], frame["line"]
            numbers.append(self._frames.setdefault(key, len(self._frames)))
        for stack in part.get("stacks", []):
            frames = tuple(numbers[number] for number in stack["frames"])
            key = stack["route"], stack["thread"], frames
            known = self._stacks.setdefault(
                key, {"route": key[0], "thread": key[1], "frames": list(frames), "seconds": 0.0, "samples": 0}
            )
            known["seconds"] += stack["seconds"]
            known["samples"] += stack["samples"]
        if "summary" in part:
            summary = dict(part["summary"])
            for row in summary.pop("routes"):
                known = self._routes.setdefault(row["route"], {"route": row["route"], "requests": 0, "seconds": 0.0})
                known["requests"] += row["requests"]
                known["seconds"] += row["seconds"]
            self._processes.append({"worker": part["worker"], **summary})

    def profile(self) -> dict[str, Any]:
        """All of it; the ``routes`` and ``stacks`` with the most time first."""
        frames = [{"function": function, "file": file, "line": line} for function, file, line in self._frames]
        stacks = sorted(self._stacks.values(), key=lambda stack: -stack["seconds"])
        return {
            "processes": self._processes,
            "routes": sorted(self._routes.values(), key=lambda row: -row["seconds"]),
            "frames": frames,
            "stacks": [{**stack, "seconds": round(stack["seconds"], 6)} for stack in stacks],
            "unanswered": self._unanswered,
        }


def render_profile(profile: Mapping[str, Any], form: Form = "table") -> str:
    """A result of `ControlClient.profile` as text: a table of what takes the most time, or another form.

    ``collapsed`` is a line for each stack, as flamegraph.pl and other tools take it, ``speedscope`` a JSON document for
    https://www.speedscope.app, ``svg`` a flame graph for a browser.
    """
    if form == "svg":
        from .flamegraph import flame_graph

        return flame_graph(profile)
    if form == "speedscope":
        from .speedscope import speedscope

        return json.dumps(speedscope(profile)) + "\n"
    return _collapsed(profile) if form == "collapsed" else _table(profile)


def _collapsed(profile: Mapping[str, Any]) -> str:
    """Frames from the outermost, separated by semicolons, and milliseconds."""
    names = [_one_word(frame_name(frame)) for frame in profile["frames"]]
    lines = []
    for stack in profile["stacks"]:
        path = [_one_word(root_name(stack)), *(names[number] for number in stack["frames"])]
        lines.append(f"{';'.join(path)} {max(1, round(stack['seconds'] * 1000))}\n")
    return "".join(lines)


def _table(profile: Mapping[str, Any]) -> str:
    """The routes, the functions of requests, and those of other threads, with the most time."""
    requests = [stack for stack in profile["stacks"] if stack["route"] is not None]
    others = [stack for stack in profile["stacks"] if stack["route"] is None]
    parts = [_head(profile)]
    if profile["routes"]:
        parts.append(_routes(profile["routes"]))
    elif profile["processes"]:
        parts.append("no request was seen\n")
    if requests:
        parts.append(_functions(profile, requests, "in requests", TOP))
    if others:
        parts.append(_functions(profile, others, "in other threads", TOP // 3))
    parts += [f"pid {one['worker']} did not answer: {one['error']}\n" for one in profile["unanswered"]]
    return "\n".join(parts)


def frame_name(frame: Mapping[str, Any]) -> str:
    """Function, file (with the last directory only) and line."""
    directory, file = os.path.split(frame["file"])
    return f"{frame['function']} ({os.path.join(os.path.basename(directory), file)}:{frame['line']})"


def root_name(stack: Mapping[str, Any]) -> str:
    """What a stack belongs to: the method and route of a request, or a thread."""
    return str(stack["route"] or f"thread {stack['thread']}")


def _head(profile: Mapping[str, Any]) -> str:
    lines = []
    for one in profile["processes"]:
        coverage = "coverage unknown"
        if one["coverage"] is not None:
            coverage = f"coverage {one['coverage']:.0%} ({one['seen']} of {one['expected']:.0f} expected samples)"
        lines.append(
            f"pid {one['worker']}: {one['elapsed']:.1f} s, {one['hz']:g} Hz reached, {plural(one['samples'], 'sample')}"
            f" of requests, {coverage}, the sampler took {one['cpu']:.1%} of a processor\n"
        )
    return "".join(lines)


def _routes(routes: list[dict[str, Any]]) -> str:
    rows, whole = routes[:TOP], sum(row["seconds"] for row in routes)
    return table(
        [
            Column("time", 0, [f"{row['seconds']:.2f} s" for row in rows]),
            Column("share", 1, [f"{row['seconds'] / max(whole, 1e-9):.0%}" for row in rows]),
            Column("requests", 2, [str(row["requests"]) for row in rows]),
            Column("route", 3, [printable(row["route"]) for row in rows], is_number=False),
        ]
    )


def _functions(profile: Mapping[str, Any], stacks: list[dict[str, Any]], where: str, count: int) -> str:
    own: dict[int, float] = {}
    total: dict[int, float] = {}
    for stack in stacks:
        for number in set(stack["frames"]):
            total[number] = total.get(number, 0.0) + stack["seconds"]
        for number in stack["frames"][-1:]:
            own[number] = own.get(number, 0.0) + stack["seconds"]
    rows = sorted(own.items(), key=lambda row: -row[1])[:count]
    whole = sum(stack["seconds"] for stack in stacks)
    return table(
        [
            Column("self", 0, [f"{value:.2f} s" for _, value in rows]),
            Column("share", 1, [f"{value / whole:.0%}" for _, value in rows]),
            Column("total", 2, [f"{total[number]:.2f} s" for number, _ in rows]),
            Column(
                f"function {where}",
                3,
                [printable(frame_name(profile["frames"][number])) for number, _ in rows],
                is_number=False,
            ),
        ]
    )


def _one_word(text: str) -> str:
    """Without what separates the parts of a line."""
    return printable(text).replace(";", ",").replace("\n", " ")
