"""Requests that take longer than CTL_SLOW_REQUEST: each is an event, once, with the stack that it had then."""

from __future__ import annotations

from typing import Any

from ..servers.middleware import RequestCounter
from . import events
from .stacks import stacks_of

MAX_AT_ONCE = 10
"""Slow requests with an event of their own in one look; the others are counted."""


class SlowRequests:
    """Looks now and then for slow requests of one app; a `limit` of 0 seconds is none."""

    def __init__(self, requests: RequestCounter, limit: float) -> None:
        self._requests = requests
        self._limit = limit
        self._told: set[int] = set()

    def tick(self) -> None:
        """Record the requests that have become slow since the last look."""
        if not self._limit:
            return
        in_flight = self._requests.requests_in_flight()
        slow = [request for request in in_flight if request.age >= self._limit]
        new = [request for request in slow if request.number not in self._told]
        self._told = {request.number for request in slow}
        for stack in stacks_of(new[:MAX_AT_ONCE], in_flight):
            _record(stack)
        if len(new) > MAX_AT_ONCE:
            events.record("slow_request", more=len(new) - MAX_AT_ONCE)


def _record(stack: dict[str, Any]) -> None:
    request = stack["request"]
    shown = {name: request.pop(name) for name in ("method", "route", "age")}
    lines = [f"{frame['file']}:{frame['line']} in {frame['function']}" for frame in stack["frames"]]
    private = {name: value for name, value in request.items() if value} | {"stack": "\n".join(lines) + "\n"}
    events.record("slow_request", private, **shown)
