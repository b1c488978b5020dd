"""A profile as a flame graph: one SVG file for a browser, with titles, zoom and search, that loads nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from .escaping import printable
from .profiles import frame_name, root_name

WIDTH, ROW, TOP = 1200.0, 17, 62
"""Width of the picture, height of a row, and of what is above the first one."""

LEAST = 0.4
"""Width of the narrowest frame that is drawn."""

MAX_DRAWN = 20_000
"""Frames that are drawn; the narrowest are left out."""

CHARACTER = 6.7
"""Width of a character."""


REQUESTS = "requests"


class Node:
    """A function, the seconds that it and what it has called took, and these by themselves."""

    def __init__(self, name: str, hue: int | None) -> None:
        self.name = name
        self.hue = hue
        self.seconds = self.own = 0.0
        self.below: dict[str, Node] = {}


class Box(NamedTuple):
    """Where a node is drawn."""

    node: Node
    left: float
    width: float
    depth: int


def flame_graph(profile: Mapping[str, Any]) -> str:
    """The root is at the top; a frame is as wide as its time, and what it has called is below it."""
    root = _tree(profile)
    drawn = sorted(_boxes(root), key=lambda box: -box.width)[:MAX_DRAWN]
    deepest = max(box.depth for box in drawn)
    height = TOP + (deepest + 1) * ROW + 10
    elapsed = max((process["elapsed"] for process in profile["processes"]), default=0.0)
    processes = "1 process" if len(profile["processes"]) == 1 else f"{len(profile['processes'])} processes"
    about = f"{elapsed:.1f} s of {processes}, {root.seconds:.2f} s of requests and threads together"
    # Parents first, as a screen reader reads them.
    boxes = sorted(drawn, key=lambda box: (box.depth, box.left))
    body = "\n".join(_drawn(box, root.seconds) for box in boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" width="100%"'
        ' preserveAspectRatio="xMinYMin"'
        f' font-family="monospace" font-size="11">\n<title>Flame graph</title>\n<style>{_STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="10" y="20" font-size="15" font-weight="bold">Flame graph, time on the clock</text>\n'
        f'<text x="10" y="37" id="about">{escape(about)}</text>\n'
        f'<text x="10" y="54" id="told">Click a frame to zoom in, the topmost one to zoom out; / searches.</text>\n'
        f'<text x="{WIDTH - 10:.0f}" y="20" id="search" text-anchor="end" class="button">Search</text>\n'
        f'<g id="frames">\n{body}\n</g>\n<script><![CDATA[{_SCRIPT}]]></script>\n</svg>\n'
    )


def _tree(profile: Mapping[str, Any]) -> Node:
    names = [printable(frame_name(frame)) for frame in profile["frames"]]
    hues = [_hue(frame) for frame in profile["frames"]]
    root = Node("all", None)
    for stack in profile["stacks"]:
        node, seconds = root, stack["seconds"]
        root.seconds += seconds
        kind = "other threads" if stack["route"] is None else REQUESTS
        heads = [(kind, None), (printable(root_name(stack)), None)]
        for name, hue in [*heads, *((names[number], hues[number]) for number in stack["frames"])]:
            node = node.below.setdefault(name, Node(name, hue))
            node.seconds += seconds
        node.own += seconds
    return root


def _hue(frame: Mapping[str, Any]) -> int:
    """Warm for the app's own code, cold for libraries, and always the same for the same function."""
    file = frame["file"]
    library = "site-packages" in file or "dist-packages" in file or "/lib/python" in file or file.startswith("<")
    return zlib.crc32(frame["function"].encode("utf-8", "replace")) % 40 + (190 if library else 10)


def _boxes(root: Node) -> Iterator[Box]:
    waiting = [Box(root, 0.0, WIDTH, 0)]
    while waiting:
        box = waiting.pop()
        yield box
        left = box.left
        # The widest on the left, but requests before all else.
        for node in sorted(box.node.below.values(), key=lambda node: (node.name != REQUESTS, -node.seconds)):
            width = WIDTH * node.seconds / max(root.seconds, 1e-9)
            if width >= LEAST:
                waiting.append(Box(node, left, width, box.depth + 1))
            left += width


def _drawn(box: Box, whole: float) -> str:
    node = box.node
    fill = "#ddd" if node.hue is None else f"hsl({node.hue},{'75%' if node.hue < 100 else '45%'},72%)"
    share = node.seconds / max(whole, 1e-9)
    title = f"{node.name}: {node.seconds:.3f} s ({share:.1%}), of its own {node.own:.3f} s"
    top = TOP + box.depth * ROW
    room = int((box.width - 6) / CHARACTER)
    shown = node.name if len(node.name) <= room else node.name[: room - 1] + "…" if room >= 3 else ""
    return (
        f'<g class="f" data-d="{box.depth}"><title>{escape(title)}</title>'
        f'<rect x="{box.left:.2f}" y="{top}" width="{box.width:.2f}" height="{ROW - 1}" rx="2" fill="{fill}"/>'
        f'<text x="{box.left + 3:.2f}" y="{top + 12}">{escape(shown)}</text></g>'
    )


_STYLE = """
.f { cursor: pointer } .f:hover rect { stroke: #000 } .f text { pointer-events: none } .above { opacity: .5 }
.found rect { fill: #c040ff } .button { cursor: pointer; text-decoration: underline }
"""

_SCRIPT = """
"use strict";
const WIDTH = 1200, CHARACTER = 6.7;
const frames = [...document.querySelectorAll(".f")].map(element => {
  const rect = element.querySelector("rect");
  return {element, rect, text: element.querySelector("text"), name: element.querySelector("title").textContent,
          left: +rect.getAttribute("x"), width: +rect.getAttribute("width"), depth: +element.dataset.d};
});
const told = document.getElementById("told"), hint = told.textContent;
function zoom(to) {
  for (const one of frames) {
    const right = one.left + one.width, edge = to.left + to.width;
    const above = one.depth < to.depth && one.left <= to.left + .01 && right >= edge - .01;
    const within = one.depth >= to.depth && one.left >= to.left - .01 && right <= edge + .01;
    one.element.style.display = above || within ? "" : "none";
    one.element.classList.toggle("above", above);
    if (!(above || within)) continue;
    const left = above ? 0 : (one.left - to.left) / to.width * WIDTH;
    const width = above ? WIDTH : one.width / to.width * WIDTH;
    one.rect.setAttribute("x", left); one.rect.setAttribute("width", width); one.text.setAttribute("x", left + 3);
    const name = one.name.slice(0, one.name.lastIndexOf(": ")), room = Math.floor((width - 6) / CHARACTER);
    one.text.textContent = name.length <= room ? name : room >= 3 ? name.slice(0, room - 1) + "\\u2026" : "";
  }
}
function search(words) {
  let total = 0, end = -1;
  const found = frames.filter(one => words && one.name.slice(0, one.name.lastIndexOf(": ")).includes(words));
  for (const one of frames) one.element.classList.toggle("found", found.includes(one));
  // What is below a frame that was found is not counted once more.
  for (const one of found.sort((a, b) => a.left - b.left || b.width - a.width)) {
    const right = one.left + one.width;
    if (right > end + .01) { total += right - Math.max(one.left, end); end = right; }
  }
  const share = (total / WIDTH * 100).toFixed(1);
  told.textContent = words ? `${found.length} frames with "${words}": ${share}% of the time` : hint;
}
function ask() { const words = prompt("Search for a part of a name:", ""); if (words !== null) search(words); }
for (const one of frames) one.element.addEventListener("click", () => zoom(one));
document.getElementById("search").addEventListener("click", ask);
document.addEventListener("keydown", event => {
  if (event.key === "/") { event.preventDefault(); ask(); }
  if (event.key === "Escape") { search(""); zoom(frames[0]); }
});
"""
