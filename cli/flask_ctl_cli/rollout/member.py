"""One instance of a rollout: what it was at the start, and what has become of it once it was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from flask_ctl import (
    AccessDenied,
    CommandError,
    ConfigurationError,
    ControlClient,
    ControlError,
    NotRunning,
    ReloadFailed,
    ServerDied,
    TimedOut,
)

from ..output import exit_code_of
from .course import Outcome

if TYPE_CHECKING:
    from ..remote.client import RemoteClient

QUESTION_TIMEOUT = 5.0
"""Seconds for one answer to a status."""

Status = dict[str, Any]


@dataclass
class Member:
    """An instance as it was when the rollout began, and what has become of it. The record has its fields."""

    name: str
    socket: str
    pid: int | None
    generation: int | None
    started_at: str | None
    host: str | None = None
    """As ssh knows it; None for this machine."""
    program: str = ""
    """The path of flask-ctl there."""
    asked: bool = False
    """Whether it was asked, which is in the record before that."""
    outcome: str | None = None
    """None as long as it has not answered, or was not asked."""
    exit: int | None = None
    """As of the command for this instance alone; 1 for an instance of which nothing, or nothing certain, is known."""
    message: str = ""
    now: dict[str, Any] | None = None
    """The ``pid``, ``generation`` and ``state`` after it was asked; None if it does not answer."""
    seconds: float | None = None
    problem: str = field(default="", repr=False)
    """Why it could not be asked at the start."""

    def as_record(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "problem"}

    def described(self) -> str:
        name = "/".join(filter(None, [self.host, self.name])) or self.socket
        return f"{name} (pid {self.pid})" if self.pid is not None else name

    def take(self, answer: Answer, seconds: float | None = None) -> None:
        """What has become of it, and how long that took."""
        self.outcome, self.exit, self.message = answer.outcome.value, answer.exit, answer.message
        self.now, self.seconds = answer.now, None if seconds is None else round(seconds, 3)

    def is_as_before(self, status: Status) -> bool:
        """Whether it is still the instance and the code of the start of the rollout."""
        return (self.pid, self.generation, self.started_at) == identity(status)


class Answer(NamedTuple):
    """What has come of one instance."""

    outcome: Outcome
    exit: int
    message: str = ""
    now: dict[str, Any] | None = None


@dataclass(frozen=True)
class Health:
    """What a changed instance has to be like. `seconds` 0 is a look at its state alone; `max_errors` is 0 to 1."""

    seconds: float = 0.0
    max_errors: float = 0.01
    min_requests: int = 10
    allow_idle: bool = False


def identity(status: Status) -> tuple[int, int, str]:
    """What tells an instance and its code from others."""
    return status["pid"], status["generation"], status["started_at"]


Client = Union[ControlClient, "RemoteClient"]
Change = Callable[[Client], dict[str, Any]]
"""Sends the command; returns its result."""


def ask(client: Client, member: Member, method: str, change: Change, health: Health) -> Answer:
    """Have an instance do it, if it is still as at the start, and see whether it is well. Never raises ControlError."""
    try:
        status = client.status(timeout=QUESTION_TIMEOUT)
    except ControlError as error:
        return _not_asked(error)
    if not member.is_as_before(status):
        changed = f"it has changed since the rollout began: pid {status['pid']}, generation {status['generation']}"
        return Answer(Outcome.NOT_STARTED, 1, changed, now_of(status))
    try:
        result = change(client)
    except ControlError as error:
        outcome = outcome_of(error, method)
        code = 1 if outcome in (Outcome.UNKNOWN, Outcome.UNREACHABLE) else exit_code_of(error)
        return Answer(outcome, code, error.message, look(client))
    if method == "stop":
        return _stopped(result)
    return _judged(client, method, result, health)


def look(client: Client) -> dict[str, Any] | None:
    """What the instance is now, None if it does not answer."""
    try:
        return now_of(client.status(timeout=QUESTION_TIMEOUT))
    except ControlError:
        return None


def now_of(status: Status) -> dict[str, Any]:
    """What a record has of the instance as it is now."""
    return {name: status[name] for name in ("pid", "generation", "state")}


def _not_asked(error: ControlError) -> Answer:
    if isinstance(error, AccessDenied):
        return Answer(Outcome.REFUSED, exit_code_of(error), error.message)
    return Answer(Outcome.UNREACHABLE, 1, error.message)


def outcome_of(error: ControlError, method: str) -> Outcome:
    """What an error of the command says of the instance."""
    data = error.data if isinstance(error.data, dict) else {}
    if data.get("begun") is False:
        return Outcome.UNREACHABLE
    if data.get("may_have_run") or data.get("ran"):
        return Outcome.UNKNOWN
    if not data.keys().isdisjoint(("stopped", "reload", "wanted")) or isinstance(error, ServerDied):
        # It was stopped and does not come back, is not what the reload has promised, or has too few new workers.
        return Outcome.FAILED
    if isinstance(error, NotRunning):
        return Outcome.UNREACHABLE
    if isinstance(error, TimedOut):
        # A reload answers so itself: the old code serves.
        return Outcome.REFUSED if method == "reload" else Outcome.UNKNOWN
    refused = isinstance(error, (ReloadFailed, CommandError, ConfigurationError))
    return Outcome.REFUSED if refused else Outcome.UNKNOWN


def _stopped(result: dict[str, Any]) -> Answer:
    from ..commands.stop import exit_code

    code = exit_code(result)
    if code:
        return Answer(Outcome.CUT, code, _losses("stop", result))
    return Answer(Outcome.DONE, 0)


def _judged(client: Client, method: str, result: dict[str, Any], health: Health) -> Answer:
    """Whether an instance that has been changed is well."""
    try:
        status = client.status(timeout=QUESTION_TIMEOUT)
    except ControlError as error:
        return Answer(Outcome.FAILED, 6, f"after the {method} it can't be asked: {error.message}")
    now = now_of(status)
    if (status["pid"], status["generation"]) != (result["pid"], result["generation"]):
        other = f"pid {status['pid']}, generation {status['generation']}"
        return Answer(Outcome.FAILED, 6, f"what serves is not what the {method} has promised: {other}", now)
    if status["state"] not in ("running", "draining"):
        return Answer(Outcome.FAILED, 6, f"it is {status['state']} after the {method}", now)
    if sick := _illness(result, health):
        return Answer(Outcome.FAILED, 6, sick, now)
    if losses := _losses(method, result):
        return Answer(Outcome.CUT, 6, losses, now)
    return Answer(Outcome.DONE, 0, "", now)


def _illness(result: dict[str, Any], health: Health) -> str:
    """What is wrong with the error rate; empty if nothing is."""
    if not health.seconds:
        return ""
    before, after = result["confirmed"]["before"], result["confirmed"]["after"]
    if after["requests"] < health.min_requests:
        idle = f"{after['requests']} requests within {health.seconds:g} s, not {health.min_requests}"
        return "" if health.allow_idle else f"too little traffic to judge: {idle}; with --allow-idle this is no failure"
    if result["confirmed"]["ok"] is not False:
        return ""
    return (
        f"{after['errors']} of {after['requests']} requests have failed within {health.seconds:g} s, before"
        f" {before['errors']} of {before['requests']}"
    )


def _losses(method: str, result: dict[str, Any]) -> str:
    """What was cut, left or killed; empty if nothing was."""
    told = result["stopped"] if method == "restart" else result
    parts = [f"{told['cut']} requests cut"] if told.get("cut") else []
    parts += ["hooks left unfinished"] if told.get("hooks") == "unfinished" else []
    parts += [f"threads left: {', '.join(map(str, told['threads_left']))}"] if told.get("threads_left") else []
    parts += ["a process was killed"] if told.get("outcome") == "killed" else []
    parts += ["a process has died"] if told.get("outcome") == "died" or told.get("died") else []
    return ", ".join(parts)
