"""The options of a rollout, and those that watch what becomes of new code."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import click

from ..settings import Seconds
from .course import number_of


class Percentage(click.FloatRange):
    """A share of 0 to 100 percent, with the sign or without; the value is 0 to 1."""

    name = "percentage"

    def __init__(self) -> None:
        super().__init__(min=0, max=100)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text: Any = str(value).removesuffix("%")
        number = super().convert(text, param, ctx)
        return number / 100 if math.isfinite(number) else self.fail(f"{value!r} is not a percentage.", param, ctx)


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "batch": click.option(
        "--batch",
        default="1",
        show_default=True,
        metavar="N|P%",
        help="Of a rollout: instances at once.",
    ),
    "canary": click.option(
        "--canary", type=click.IntRange(min=1), metavar="N", help="Of a rollout: so many before the first batch."
    ),
    "max_failures": click.option(
        "--max-failures",
        default="0",
        show_default=True,
        metavar="N|P%",
        help="Of a rollout: go on after so many failures.",
    ),
    "pause": click.option(
        "--pause", type=Seconds(), default=0.0, metavar="SECONDS", help="Of a rollout: wait between two batches."
    ),
    "min_healthy": click.option(
        "--min-healthy",
        type=Seconds(),
        default=0.0,
        metavar="SECONDS",
        help="Of a rollout: watch the error rate of each instance for so long.",
    ),
    "allow_idle": click.option(
        "--allow-idle", is_flag=True, help="Of a rollout: too little traffic to judge is no failure."
    ),
}
"""All but --rolling, by the names of their parameters."""

HEALTH = ("min_healthy", "allow_idle")


confirm_option = click.option(
    "--confirm", type=Seconds(), metavar="SECONDS", help="Then watch the error rate for so long."
)
max_errors_option = click.option(
    "--max-errors",
    type=Percentage(),
    default="1%",
    show_default=True,
    metavar="PERCENT",
    help="With --confirm or --min-healthy: by how much it may rise.",
)


def rolling_options(*, health: bool) -> Callable[[Any], Any]:
    """Adds --rolling and the options of a rollout, which the command gets as one parameter, ``rollout``.

    That is None without --rolling; an option of a rollout is then refused. `health` adds the options of health.
    """
    names = [name for name in OPTIONS if health or name not in HEALTH]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_rollout(*arguments: Any, rolling: bool, **options: Any) -> Any:
            rollout = {name: options.pop(name) for name in names}
            _check(rollout, rolling)
            return command(*arguments, **options, rollout=rollout if rolling else None)

        for name in reversed(names):
            with_rollout = OPTIONS[name](with_rollout)
        return click.option(
            "--rolling", is_flag=True, help="One batch of instances after the other, if all goes well."
        )(with_rollout)

    return add


def _check(rollout: dict[str, Any], rolling: bool) -> None:
    """Raises BadParameter for a wrong amount, UsageError for an option that is given without --rolling."""
    given = click.get_current_context().get_parameter_source
    for name in rollout:
        if not rolling and given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} is for a rollout: give --rolling, too")
    for name in ("batch", "max_failures"):
        try:
            number_of(rollout[name], 1)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=f"--{name.replace('_', '-')}") from None
    if rollout["batch"].removesuffix("%").strip("0") == "":
        raise click.UsageError("a --batch is of one instance at least")
