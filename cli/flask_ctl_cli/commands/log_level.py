"""``flask-ctl log-level``."""

from __future__ import annotations

import re
from typing import Any

import click

from ..many import change
from ..settings import ClientCommand, Seconds, settings

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
"""Seconds in each unit of a duration."""


class Duration(Seconds):
    """A number with a unit: 90, 90s, 10m, 2h, 1d; in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration, such as 90s, 10m, 2h or 1d.", param, ctx)
        return super().convert(float(found[1]) * UNITS[found[2]], param, ctx)


@click.command(
    "log-level",
    cls=ClientCommand,
    role="operate",
    impact_note="records of a low level cost time and space",
    examples=["flask-ctl log-level", "flask-ctl log-level shop.db DEBUG --for 10m", "flask-ctl log-level root reset"],
)
@click.argument("logger", required=False)
@click.argument("level", required=False)
@click.option("--for", "seconds", type=Duration(), default="10m", show_default=True, metavar="DURATION",
              help="The level from before comes back after that time.")  # fmt: skip
def log_level(logger: str | None, level: str | None, seconds: float) -> None:
    """Set the LEVEL of a LOGGER for a time, in all workers; without arguments show what holds.

    The name of the root logger is root. The level reset ends what was set for a logger. Of several settings of one
    logger the last one holds until its time is over, then the one before. A level that the app itself sets meanwhile
    stays: then nothing comes back.

    Exit codes: 0 it holds in all workers, 1 it was refused, 2 wrong usage, 3 nothing is running, 4 a worker has not
    confirmed it in time, or the server does not answer, 5 permission denied, 8 the server does not speak this protocol.
    """
    change(
        "log_level",
        lambda client: client.log_level(logger, level, seconds=seconds),
        quiet=settings().quiet and level is not None,
    )
