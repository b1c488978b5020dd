"""What has happened to the process: its lifecycle, its workers, commands, slow requests, new exceptions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..dispatch.redaction import masked_text
from ..system.fork import Step, in_child
from .bounds import shortened
from .logs import as_time, later
from .ring import Keep, Ring

SIZE = 1000
"""Events that are kept."""

MAX_HEAD, MAX_TAIL = 1500, 2500
"""Characters of a text that are kept, of its beginning and of its end."""

MAX_SEARCHED = 64 * 1024
"""Characters of a text that are searched for secrets."""

KINDS = {
    "starting": "the process has begun to control its server",
    "serving": "requests are served from now on",
    "stopping": "a stop has begun",
    "draining": "no new connections are accepted; requests in flight end",
    "drain_begun": "health checks fail from now on; requests are still served",
    "drain_ended": "health checks pass again",
    "reload_begun": "a reload has begun",
    "reload_done": "the new code serves",
    "reload_refused": "the old code goes on; why is for inspectors",
    "worker_joined": "a worker serves",
    "worker_ended": "a worker has ended in order",
    "worker_lost": "a worker has died, with so many requests in flight",
    "control_restarted": "the control thread had failed, and goes on",
    "slow_request": "a request takes longer than CTL_SLOW_REQUEST; its stack is for inspectors",
    "exception": "an unhandled exception of a new kind; its text is for inspectors",
    "command": "a command of role inspect or operate, or a refused one; its parameters are for inspectors",
}
"""Every kind of event, and what it means."""


class Event(NamedTuple):
    """One event: what every observer may know of it, and what only inspectors may."""

    at: float
    kind: str
    shown: dict[str, Any]
    private: dict[str, Any]


ring = Ring(SIZE)

in_child(Step.MEMORY, ring.clear)


def record(kind: str, private: Mapping[str, Any] | None = None, **shown: Any) -> None:
    """Note an event of one of the KINDS. Any thread may; the values are JSON."""
    ring.append(Event(time.time(), kind, shown, _fit(dict(private or {}))))


def record_command(fields: Mapping[str, Any]) -> None:
    """Note a record of the audit log."""
    private = {name: fields[name] for name in ("parameters", "error") if fields[name]}
    record("command", private, **{name: fields[name] for name in ("command", "outcome", "peer", "duration")})


def describe() -> dict[str, Any]:
    """Since when events are kept; None from the start."""
    oldest = ring.oldest() if ring.is_full() else None
    return {"kept_since": {"events": None if oldest is None else as_time(oldest.at)}}


def restore_state(state: dict[str, Any]) -> None:
    """Continue with the events of the previous image of this process."""
    ring.restore_state(state, lambda fields: Event(*fields))


def keep(wanted: Mapping[str, Any]) -> Keep:
    """Whether an event is later than ``since``, in seconds since the epoch."""
    since: float = wanted["since"]
    return lambda event: later(event.at, since)


def as_item(event: Event, *, full: bool) -> dict[str, Any]:
    """An event as a client gets it; `full` with what is for inspectors, without secrets."""
    item = {"time": as_time(event.at), "event": event.kind, **event.shown}
    if full:
        item |= event.private
    return item


def _fit(value: Any) -> Any:
    """A JSON value whose texts are without secrets, and bounded."""
    if isinstance(value, dict):
        return {name: _fit(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_fit(each) for each in value]
    return shortened(masked_text(value[:MAX_SEARCHED]), MAX_HEAD, MAX_TAIL) if isinstance(value, str) else value
