"""The pictures of docs/how-it-works: who tells whom what, from top to bottom, as SVG.

``python docs/pictures.py`` writes them; a test compares them with `pictures`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

DIRECTORY = pathlib.Path(__file__).parent / "how-it-works"

LANE, ROW, TOP = 220, 46, 76
"""Pixels between two lanes, between two steps, and above the first step."""

INK = "#4a6785"


class Step(NamedTuple):
    """A message from one lane to another one, or within a lane what happens there; `late` ones are drawn dashed."""

    start: str
    end: str
    text: str
    late: bool = False


class Picture(NamedTuple):
    """Lanes from left to right, and what happens from top to bottom."""

    title: str
    lanes: Sequence[str]
    steps: Sequence[Step]


STOP = Picture(
    "How a stop goes: the command returns when the kernel reports the end of the process",
    ("client", "control thread", "HTTP server", "kernel"),
    (
        Step("client", "kernel", "pidfd of the peer"),
        Step("client", "control thread", "stop"),
        Step("control thread", "HTTP server", "accept no more"),
        Step("HTTP server", "HTTP server", "answers what is in flight"),
        Step("control thread", "client", "progress: 2 in flight", late=True),
        Step("HTTP server", "control thread", "drained"),
        Step("control thread", "control thread", "on_stop hooks"),
        Step("control thread", "client", "result: drained, cut 0"),
        Step("HTTP server", "HTTP server", "finally, atexit functions"),
        Step("kernel", "client", "the process has ended: exit 0"),
    ),
)

RELOAD = Picture(
    "How a reload goes: the new code has to load before anything happens to the old code",
    ("client", "old code", "preflight", "new code"),
    (
        Step("client", "old code", "reload"),
        Step("old code", "preflight", "the same command"),
        Step("preflight", "preflight", "loads the new code"),
        Step("preflight", "client", "if that fails: its traceback, exit 7; nothing has happened", late=True),
        Step("preflight", "old code", "it would serve"),
        Step("old code", "old code", "answers what is in flight"),
        Step("old code", "old code", "hooks, atexit functions"),
        Step("old code", "new code", "exec: same process, same sockets"),
        Step("new code", "new code", "serves"),
        Step("new code", "client", "result: generation 2, exit 0"),
    ),
)

HUB = Picture(
    "How a hub answers for the workers of a master",
    ("client", "hub", "master", "workers"),
    (
        Step("master", "workers", "forks"),
        Step("workers", "hub", "start it; hello"),
        Step("client", "hub", "status"),
        Step("hub", "workers", "figures?"),
        Step("workers", "hub", "requests in flight, totals"),
        Step("hub", "client", "sums, and each worker"),
        Step("client", "hub", "reload"),
        Step("hub", "workers", "preflight: load the new code beside you"),
        Step("hub", "master", "its signal"),
        Step("master", "workers", "replaces them"),
        Step("workers", "hub", "hello from the new ones; the old ones have ended"),
        Step("hub", "client", "result: generation 2"),
    ),
)

TRUST = Picture(
    "Who asks the kernel what, before and after a stop",
    ("client", "kernel", "server"),
    (
        Step("client", "kernel", "whose are file and directory?"),
        Step("client", "kernel", "connect"),
        Step("kernel", "client", "pid and user of the listener"),
        Step("client", "kernel", "pidfd of that pid"),
        Step("client", "server", "stop"),
        Step("server", "kernel", "whose is the connection?"),
        Step("kernel", "server", "user, groups: the role"),
        Step("server", "client", "result"),
        Step("kernel", "client", "that process has ended"),
    ),
)


def pictures() -> dict[str, str]:
    """The SVG text of each picture, by file name."""
    return {
        "stop.svg": _drawn(STOP),
        "reload.svg": _drawn(RELOAD),
        "hub.svg": _drawn(HUB),
        "trust.svg": _drawn(TRUST),
    }


def _drawn(picture: Picture) -> str:
    places = {lane: 80 + LANE * number for number, lane in enumerate(picture.lanes)}
    width, height = 160 + LANE * (len(places) - 1), TOP + ROW * len(picture.steps)
    body = [_lane(lane, x, height) for lane, x in places.items()]
    for number, step in enumerate(picture.steps):
        body.append(_step(places[step.start], places[step.end], TOP + ROW * number + 14, step))
    return "\n".join((*_head(picture.title, width, height), *body, "</svg>", ""))


def _head(title: str, width: int, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="14">'
    )
    yield f"<title>{escape(title)}</title>"
    yield '<defs><marker id="tip" markerWidth="10" markerHeight="8" refX="9" refY="4" orient="auto">'
    yield f'<path d="M0,0 L10,4 L0,8 z" fill="{INK}"/></marker></defs>'
    yield f'<rect width="{width}" height="{height}" fill="white"/>'


def _lane(lane: str, x: int, height: int) -> str:
    line = f'<line x1="{x}" y1="44" x2="{x}" y2="{height - 8}" stroke="#b9c6d3"/>'
    box = f'<rect x="{x - 72}" y="8" width="144" height="36" rx="8" fill="#eef3f8" stroke="{INK}"/>'
    return f'{line}\n{box}\n<text x="{x}" y="31" text-anchor="middle" font-weight="bold">{escape(lane)}</text>'


def _step(start: int, end: int, y: int, step: Step) -> str:
    if start == end:
        mark = f'<rect x="{start - 5}" y="{y - 14}" width="10" height="20" fill="{INK}"/>'
        return f"{mark}\n{_label(start + 12, y + 1, 'start', step.text)}"
    dashes = ' stroke-dasharray="5 4"' if step.late else ""
    line = f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" stroke="{INK}" stroke-width="1.5"{dashes}'
    return f'{line} marker-end="url(#tip)"/>\n{_label((start + end) / 2, y - 7, "middle", step.text)}'


def _label(x: float, y: int, anchor: str, text: str) -> str:
    """A text with a white border, which covers the lines behind it."""
    drawn = f'<text x="{x:g}" y="{y}" text-anchor="{anchor}"'
    return f'{drawn} stroke="white" stroke-width="5">{escape(text)}</text>\n{drawn}>{escape(text)}</text>'


if __name__ == "__main__":
    for name, text in pictures().items():
        (DIRECTORY / name).write_text(text)
