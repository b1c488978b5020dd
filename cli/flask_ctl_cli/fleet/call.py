"""``flask-ctl fleet call``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from flask_ctl import ControlError

from ..custom import YES_HELP, parse_values
from ..many import TARGET_TIMEOUT
from ..merging import merged
from ..output import confirm
from ..settings import settings
from ..words import assignment
from .many import for_each, targets
from .options import FleetCommand
from .selection import FleetTarget, opened, selected

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

ASKED_AT_ONCE = 8
"""Instances that are asked for their commands side by side, so that one which hangs holds nobody up."""

NOT_CALLED = ("stop", "reload", "drain", "resume", "events", "logs")
"""Commands of their own."""


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ..completion import items

    described = _described_for_completion(ctx)
    return items({name: command.get("summary") for name, command in described.items()}, incomplete)


def _complete_parameter(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ..completion import assignments

    return assignments(_described_for_completion(ctx).get(ctx.params.get("name", "").replace("-", "_"), {}), incomplete)


def _described_for_completion(ctx: click.Context) -> dict[str, Any]:
    """The commands of one of the selected instances; {} if nobody answers in time."""
    try:
        with ctx, opened() as fleet:
            found, _ = selected(fleet)
            return _described([FleetTarget(fleet, one) for one in found])
    except (ControlError, click.ClickException):
        return {}


@click.command(
    cls=FleetCommand,
    examples=[
        "flask-ctl fleet call clear_cache prefix=u: --name shop",
        "flask-ctl fleet call doctor --name shop --json",
    ],
)
@click.argument("name", shell_complete=_complete_name)
@click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=_complete_parameter)
@click.option("--yes", is_flag=True, help=YES_HELP)
def call(name: str, parameters: tuple[str, ...], yes: bool) -> None:
    """Call a command by name in the selected instances.

    The first one that answers tells which parameters it has. An instance runs a command of the role operate at most
    once, also where it had to be sent again.

    Exit codes, the gravest of all instances: 0 done, 1 it failed, its outcome is not known, or an instance could not be
    asked, 2 wrong usage, 3 nothing is selected, 5 permission denied.
    """
    name = name.replace("-", "_")
    if name in NOT_CALLED:
        raise click.UsageError(f"{name} is a command of its own: flask-ctl fleet {name}")
    texts = dict(map(assignment, parameters))
    with opened() as fleet:
        chosen = targets(fleet)
        described = _described(chosen)
        # The instances refuse an unknown command, and their messages list the known ones.
        values = parse_values(name, described[name], texts) if name in described else {}
        confirm(name, described.get(name, {}), yes=yes)
        limit: dict[str, Any] = {"timeout": TARGET_TIMEOUT if settings().timeout is None else settings().timeout}
        for_each(
            name,
            lambda client: client.call(name, **values, **limit),
            text=lambda result: json.dumps(result),
            chosen=chosen,
        )


def _described(chosen: Sequence[FleetTarget]) -> dict[str, Any]:
    """The commands of the first instance that tells them. Raises what the last one has raised."""
    given, problem = settings(), ControlError("no instance has answered")

    def ask(target: FleetTarget) -> Iterator[dict[str, Any] | ControlError]:
        try:
            with target.client(given) as client:
                yield client.commands()
        except ControlError as error:
            yield error

    for begin in range(0, len(chosen), ASKED_AT_ONCE):
        for told in merged([partial(ask, target) for target in chosen[begin : begin + ASKED_AT_ONCE]]):
            if not isinstance(told, ControlError):
                return told
            problem = told
    raise problem
