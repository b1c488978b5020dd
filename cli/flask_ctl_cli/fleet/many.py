"""A command for many instances over NATS: asked side by side, with a result for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from flask_ctl import ControlError, Fleet, ReloadFailed

from ..many import MAX_AT_ONCE, Answer, Ask, ask_each, first_of, print_answers
from ..output import exit_code_of, print_json, result_text
from ..rollout.course import Outcome
from ..rollout.member import outcome_of
from ..settings import settings
from .selection import FleetTarget, selected, servers_of


def for_each(
    method: str,
    ask: Ask,
    *,
    code: Callable[[Any], int] = lambda result: 0,
    text: Callable[[Any], str] | None = None,
    quiet: bool = False,
    chosen: Sequence[FleetTarget],
) -> NoReturn:
    """As `flask_ctl_cli.many.for_each`; 1 is the exit code for what is unknown, or could not be asked."""
    answers = ask_each(ask, chosen, code, MAX_AT_ONCE, lambda error: _code(error, method))
    if settings().json:
        print_json([answer.as_json() for answer in answers])
    else:
        for answer in answers:
            _explain(answer, method)
        print_answers(answers, text or (lambda result: result_text(method, result)), quiet)
    raise click.exceptions.Exit(first_of(answer.code for answer in answers))


def targets(fleet: Fleet, *, whole_server: bool = False) -> list[FleetTarget]:
    """The selected ones, for a command that changes something; with `whole_server` one of each server."""
    found, _ = selected(fleet, operate=True)
    return [FleetTarget(fleet, one) for one in (servers_of(found) if whole_server else found)]


def _code(error: ControlError, method: str) -> int:
    return 1 if outcome_of(error, method) in (Outcome.UNKNOWN, Outcome.UNREACHABLE) else exit_code_of(error)


def _explain(answer: Answer, method: str) -> None:
    """Say what is known of an instance that has not done it."""
    if answer.error is not None and not isinstance(answer.error, ReloadFailed):
        outcome = outcome_of(answer.error, method)
        if outcome in (Outcome.UNKNOWN, Outcome.UNREACHABLE):
            answer.heading = outcome.value
