"""What a serving process is asked about itself. Any thread can answer, at once, while the app's own threads hang.

A single process asks itself. A hub asks its workers, and puts their answers together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ..errors import CommandError
from ..servers.middleware import RequestCounter
from ..system.reserve import reserve
from .checkup import process_findings
from .description import Described, described_process, described_routes
from .exceptions import ExceptionTable
from .feeds import read
from .metrics import own_families, pack
from .requests import oldest_requests, requests_in_flight
from .stacks import stacks


class Inspected(Described, Protocol):
    """An app in a process that serves it."""

    @property
    def requests(self) -> RequestCounter:
        """What counts its requests."""

    @property
    def exceptions(self) -> ExceptionTable:
        """What counts its unhandled exceptions."""


class Answer(NamedTuple):
    """A process, and its answer, or the CommandError that there is instead."""

    pid: int
    value: Any


def _describe(app: Inspected) -> list[dict[str, Any]]:
    # The program may have used up its descriptors.
    with reserve.lend():
        return described_process(app)


def _profile(app: Inspected, **params: Any) -> list[dict[str, Any]]:
    # Late: most processes are never profiled. The program may have used up its descriptors.
    with reserve.lend():
        from .profiler import answer as profiler_answer

    return profiler_answer(app, **params)


QUESTIONS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "describe": _describe,
    "doctor": lambda app: [finding._asdict() for finding in process_findings()],
    "exceptions": lambda app: app.exceptions.entries(),
    "profile": _profile,
    "read": read,
    "metrics": lambda app: [{"own": pack(own_families(app.requests))}],
    "oldest": lambda app: oldest_requests(app.requests),
    "requests": lambda app, **params: requests_in_flight(app.requests, **params),
    "routes": described_routes,
    "stacks": lambda app, **params: stacks(app.requests, **params),
}
"""Functions of an Inspected and the parameters of the question. Each answers a list of JSON objects."""


def answer(app: Inspected, question: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """This process's answer. Raises KeyError for an unknown question, as of a later version."""
    return QUESTIONS[question](app, **params)


def gathered(answers: Sequence[Answer]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The objects in the answers, each with the pid of its ``worker``; and the errors, as ``{"worker", "error"}``."""
    found: list[dict[str, Any]] = []
    errors = []
    for pid, value in answers:
        if isinstance(value, CommandError):
            errors.append({"worker": pid, "error": value.message, **(value.data or {})})
        else:
            found += ({"worker": pid, **item} for item in value)
    return found, errors
