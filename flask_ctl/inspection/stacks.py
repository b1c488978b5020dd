"""The Python stacks of threads and greenlets, each with the request that it serves.

Frames are read and let go at once: one that is kept would keep its local variables alive.
"""

from __future__ import annotations

import collections
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

from ..protocol.framing import MAX_FRAME
from ..servers.middleware import InFlight, RequestCounter
from .bounds import that_fit
from .requests import Threads, full_description, id_of
from .sources import Sources

OUTER, INNER = 30, 70
"""Frames of a stack that are shown, at its beginning and at its end."""

MAX_STACKS = 500

MAX_BYTES = MAX_FRAME // 2
"""Bytes of JSON in one process's answer."""

MAX_MESSAGE, MAX_CHUNKS = MAX_FRAME * 7 // 8, 8 * MAX_FRAME
"""Bytes of JSON in the answer of all processes, as one message and in chunks."""

MAX_BLOCKS = 2_000_000
"""Blocks of memory up to which greenlets without a request are searched for; one takes up to 0.5 µs with the GIL."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Stack(NamedTuple):
    """Code and line of each frame, the outermost first; of a deep stack `left_out` are missing after the first ones."""

    frames: list[tuple[CodeType, int | None]]
    left_out: int = 0


def stacks(requests: RequestCounter, *, request: str | None, everything: bool) -> list[dict[str, Any]]:
    """One object: the ``stacks``, that of the oldest request first, the number ``left_out``, and ``notes``.

    They are those of the threads and greenlets that serve a request, or the one with the id `request`; with
    `everything` all others follow.
    """
    notes: list[str] = []
    threads = Threads()
    in_flight = requests.requests_in_flight()
    wanted = [each for each in in_flight if request in (None, id_of(each))]
    captured = list(_serving(wanted[:MAX_STACKS], in_flight, threads))
    count = len(wanted)
    if everything:
        others, more = _others(wanted, captured, notes)
        captured += others
        count += len(others) + more
    captured = captured[:MAX_STACKS]
    sources = Sources((code.co_filename, line) for one in captured for code, line in one.stack.frames)
    shown = that_fit((_described(one, threads, sources) for one in captured), MAX_BYTES)
    return [{"stacks": shown, "left_out": count - len(shown), "notes": notes}]


def stacks_of(requests: Sequence[InFlight], in_flight: Sequence[InFlight]) -> list[dict[str, Any]]:
    """The stacks of what serves some of the requests in flight, as in ``stacks``, but without source lines."""
    threads, sources = Threads(), Sources([])
    return [_described(one, threads, sources) for one in _serving(requests, in_flight, threads)]


def stacks_together(answers: Sequence[dict[str, Any]], room: int) -> dict[str, Any]:
    """The answers of some processes, each with its ``worker``, as one of the same form.

    They share the `room`, in bytes of JSON.
    """
    shown: list[dict[str, Any]] = []
    notes: list[str] = []
    left_out = 0
    for answer in answers:
        pid = answer["worker"]
        stacks = ({"worker": pid, **stack} for stack in answer["stacks"])
        fitting = that_fit(stacks, room // len(answers))
        shown += fitting
        left_out += answer["left_out"] + len(answer["stacks"]) - len(fitting)
        notes += (f"pid {pid}: {note}" for note in answer["notes"])
    shown.sort(key=lambda stack: -stack["request"]["age"] if stack["request"] else 1.0)
    return {"stacks": shown, "left_out": left_out, "notes": notes}


class Captured(NamedTuple):
    """Something that runs code: the ident of an OS thread, None if not known, or a greenlet and its thread's ident."""

    thread: int | None
    greenlet: Any
    stack: Stack
    request: dict[str, Any] | None = None
    note: str = ""


def _serving(requests: Sequence[InFlight], in_flight: Sequence[InFlight], threads: Threads) -> Iterator[Captured]:
    """What serves each of some of the requests in flight."""
    # A request that a server has forgotten outlives its thread, whose ident the system gives to another one.
    newest: dict[int, int] = {}
    for each in in_flight:
        if isinstance(each.served_by, int):
            newest[each.served_by] = max(each.number, newest.get(each.served_by, 0))
    idents = {each.served_by for each in requests if isinstance(each.served_by, int)}
    read = {ident: _read(frame) for ident, frame in sys._current_frames().items() if ident in idents}
    for each in requests:
        request = full_description(each, threads)
        for name in ("thread", "thread_id", "greenlet"):
            del request[name]
        if isinstance(each.served_by, int):
            is_newest = newest[each.served_by] == each.number
            stack = read.get(each.served_by) if is_newest else None
            note = "its thread has ended" if is_newest else "its thread has ended, or serves another request"
            note = "" if stack else note
            yield Captured(each.served_by if stack else None, None, stack or Stack([]), request, note)
        else:
            yield _of_greenlet(each.served_by, request)


def _of_greenlet(greenlet: Any, request: dict[str, Any]) -> Captured:
    thread = thread_of(greenlet)
    for _ in range(100):
        if (frame := greenlet.gr_frame) is not None:
            return Captured(None, greenlet, _read(frame), request)
        if greenlet.dead or thread is None:
            break
        # It is the one that runs, so its frames are those of its thread, unless another one goes on at this moment.
        frame = sys._current_frames().get(thread)
        if frame is not None and greenlet.gr_frame is None:
            return Captured(thread, greenlet, _read(frame), request)
    note = "its greenlet has ended" if greenlet.dead else "it can't be seen"
    return Captured(None, greenlet, Stack([]), request, note)


def _others(requests: Sequence[InFlight], serving: list[Captured], notes: list[str]) -> tuple[list[Captured], int]:
    """All threads that serve none of the requests, some such greenlets that wait, and the number of all the others."""
    seen = {one.thread for one in serving} | {one.served_by for one in requests if isinstance(one.served_by, int)}
    threads = [
        Captured(ident, None, _read(frame)) for ident, frame in sys._current_frames().items() if ident not in seen
    ]
    module = sys.modules.get("greenlet")
    if module is None:
        return threads, 0
    if (blocks := sys.getallocatedblocks()) > MAX_BLOCKS:
        notes.append(f"greenlets without a request were not searched for among {blocks} blocks of memory")
        return threads, 0
    served = {id(one.served_by) for one in requests}
    # `type`, because `isinstance` asks a proxy for its class.
    greenlets = [one for one in gc.get_objects() if issubclass(type(one), module.greenlet) and id(one) not in served]
    waiting = [one for one in greenlets if one.gr_frame is not None]
    return threads + [Captured(None, one, _read(one.gr_frame)) for one in waiting[:MAX_STACKS]], len(
        waiting[MAX_STACKS:]
    )


def thread_of(greenlet: Any) -> int | None:
    """The OS thread in which a greenlet of gevent's runs: its hub knows it."""
    while greenlet is not None:
        thread: int | None = getattr(greenlet, "thread_ident", None)
        if thread is not None:
            return thread
        greenlet = greenlet.parent
    return None


def _read(frame: FrameType | None) -> Stack:
    inner: list[tuple[CodeType, int | None]] = []
    outer: collections.deque[tuple[CodeType, int | None]] = collections.deque(maxlen=OUTER)
    count = 0
    while frame is not None:
        count += 1
        (inner if count <= INNER else outer).append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return Stack([*reversed(outer), *reversed(inner)], count - len(inner) - len(outer))


def _described(one: Captured, threads: Threads, sources: Sources) -> dict[str, Any]:
    frames, left_out = one.stack
    who = threads.describe(one.thread if one.greenlet is None else one.greenlet)
    if who["thread"] is None and one.greenlet is None and frames:
        # Our own threads are unknown to `threading`.
        path = frames[0][0].co_filename
        who["thread"] = f"flask-ctl {os.path.basename(path)[:-3]}" if path.startswith(_PACKAGE) else None
    return {
        **who,
        "request": one.request,
        "frames": [
            {
                "file": code.co_filename,
                "line": line,
                "function": getattr(code, "co_qualname", code.co_name),
                "source": sources.line(code.co_filename, line or 0),
            }
            for code, line in frames
        ],
        "left_out": {"after": OUTER, "frames": left_out} if left_out else None,
        "note": one.note,
    }
