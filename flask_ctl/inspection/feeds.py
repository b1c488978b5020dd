"""What can be streamed of a process: its log records and its events. A hub reads the feeds of its workers."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..dispatch.commands import invalid_parameter
from ..dispatch.streams import Pulled
from ..protocol.typed import from_json
from . import events, logs
from .logs import LogFilter, recorder
from .ring import AsItem, Keep, Ring, RingStream

epoch = os.urandom(8).hex()
"""Numbers of items count within an epoch: from the start of a program, over its reloads."""

MAX_FILTER = 200
"""Characters of a text that a reader looks for: a hub sends it to its workers again and again."""

HANDED_OVER = 512 * 1024
"""Bytes of each feed that go over the exec of a reload: what is more takes a tenth of a second."""

LEFT = 64 * 1024
"""Bytes of each feed that a worker leaves to its hub at its end."""

logger = logging.getLogger("flask_ctl")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Feed:
    """One of the FEEDS: where its items are, of which kind they are, which ones a reader wants."""

    ring: Callable[[], Ring]
    new_ring: Callable[[int], Ring]
    kind: type
    keep: Callable[[Mapping[str, Any]], Keep]
    as_item: Callable[[Mapping[str, Any]], AsItem]
    describe: Callable[[], dict[str, Any]]
    capture: Callable[[], Any]


FEEDS = {
    "logs": Feed(
        lambda: recorder.ring,
        logs.new_ring,
        logs.Entry,
        lambda wanted: LogFilter(**wanted).keep,
        lambda wanted: logs.as_item,
        recorder.describe,
        recorder.capture,
    ),
    "events": Feed(
        lambda: events.ring,
        Ring,
        events.Event,
        events.keep,
        lambda wanted: functools.partial(events.as_item, full=wanted["full"]),
        events.describe,
        lambda: None,
    ),
}


@dataclass(frozen=True)
class StreamStart:
    """Where a client's stream begins: `after` a number of this `epoch`, else with the last `lines`.

    With `follow` it has no end.
    """

    lines: int | None = None
    follow: bool = False
    after: int | None = None
    epoch: str = ""


class FeedStream(RingStream):
    """A stream of this process's items, or those in the `ring` of another one that has ended.

    They are those behind the number `after`, else the last `lines`.
    """

    def __init__(
        self,
        name: str,
        wanted: Mapping[str, Any],
        *,
        ring: Ring | None = None,
        after: int | None = None,
        **options: Any,
    ) -> None:
        self._feed = feed = FEEDS[name]
        about = feed.describe() if after is None and ring is None else None
        items, keep = ring or feed.ring(), feed.keep(wanted)
        super().__init__(items, feed.as_item(wanted), keep=keep, after=after, about=about, name=name, **options)

    def pull(self) -> Pulled:
        if self._follow:
            self._feed.capture()
        return super().pull()


def left() -> dict[str, Any]:
    """What this process leaves at its end to readers: by the name of the feed, as `Ring.export_state` gives it."""
    found = {name: feed.ring().export_state(LEFT) for name, feed in FEEDS.items()}
    return {name: state for name, state in found.items() if state["items"]}


def ring_of(name: str, last: int, items: Sequence[tuple[int, Any]]) -> Ring:
    """The ring of a feed that another process has `left`.

    Raises RemoteProtocolError if the items are none of that feed.
    """
    feed = FEEDS[name]
    ring = feed.new_ring(len(items))
    ring.restore_state({"last": last, "items": items}, lambda fields: from_json(feed.kind, fields, name))
    return ring


def export_state() -> dict[str, Any]:
    """What the next image of this process continues with."""
    return {"epoch": epoch, "logs": recorder.export_state(HANDED_OVER), "events": events.ring.export_state(HANDED_OVER)}


def restore_state(state: dict[str, Any] | None) -> None:
    """Continue with what the previous image has exported; None of an older version, which has exported nothing."""
    global epoch
    if state is None:
        return
    epoch = state["epoch"]
    try:
        recorder.restore_state(state["logs"])
        events.restore_state(state["events"])
    except (KeyError, TypeError, ValueError):
        # Of another version of this package. There is no way back, and the app is to serve.
        logger.warning("log records and events of before the reload can't be read", exc_info=True)


def read(app: Any, *, name: str, wanted: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """One step of a hub's stream: ``messages``, where the next step begins, and whether there is ``more`` now."""
    stream = FeedStream(name, wanted, **options)
    pulled = stream.pull()
    return [{"messages": pulled.messages, "after": stream.cursor, "quiet": stream.quiet, "more": pulled.more}]


def log_filter(level: str, logger: str, request: str, grep: str, since: str) -> dict[str, Any]:
    """The fields of a LogFilter. Raises CommandError -32602 for a level or a time that is none."""
    for parameter, text in (("logger", logger), ("request", request), ("grep", grep)):
        if len(text) > MAX_FILTER:
            raise invalid_parameter(parameter, f"has more than {MAX_FILTER} characters")
    number = logging.getLevelName(level.upper()) if level else 0
    if not isinstance(number, int):
        raise invalid_parameter("level", f"{level!r} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    return {"level": number, "logger": logger, "request": request, "grep": grep, "since": parse_since(since)}


def parse_since(text: str) -> float:
    """Seconds since the epoch, of a time (RFC 3339) or an age (``90``, ``10m``, ``2h``, ``1d``); 0 for none.

    Raises CommandError -32602 for another text.
    """
    if not text:
        return 0.0
    age = _DURATION.fullmatch(text)
    if age is not None:
        return time.time() - float(age[1]) * _SECONDS[age[2]]
    try:
        # Python 3.10 does not know the Z.
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().timestamp()
    except ValueError:
        raise invalid_parameter("since", f"{text!r} is no time, such as 10m or 2026-01-31T12:00:00Z") from None
