"""Which requests a stop or a reload cuts, for its answer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ..servers.base import HttpServer
from .operation import Work

MAX_CUT_REQUESTS = 20
"""Requests that an answer names, the oldest ones."""

Requests = Mapping[Hashable, Mapping[str, Any]]
"""The oldest requests in flight: ``method``, ``route``, ``age`` and ``worker``, by what tells one from all others."""


def cut_off(server: HttpServer, work: Work) -> tuple[int, list[Mapping[str, Any]]]:
    """Have the server cut its requests; their number, and the oldest of them."""
    before = work.requests_in_flight()
    count = server.cut()
    after = work.requests_in_flight()
    # Those that go on are certainly not answered; those that have ended in between have most likely been cut, too.
    sure = [before[key] for key in before if key in after]
    likely = [before[key] for key in before if key not in after]
    return count, oldest((sure + likely)[:count])


def oldest(requests: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that an answer names."""
    return sorted(requests, key=lambda request: -request["age"])[:MAX_CUT_REQUESTS]


def named(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The field of an answer, if there are any."""
    return {"cut_requests": list(requests)} if requests else {}
