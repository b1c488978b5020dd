"""``flask-ctl fleet top``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import click

from flask_ctl import ControlError, Fleet

from ..commands.top import theme_option, view
from ..settings import Settings, settings
from .options import FleetCommand
from .selection import FleetTarget, matches, opened, selected

if TYPE_CHECKING:
    from flask_ctl.fleet.roster import FleetInstance

    from ..top.samples import Watched


@click.command(
    cls=FleetCommand,
    role="observe",
    examples=["flask-ctl fleet top --name shop", "flask-ctl fleet top --label zone=a --theme light"],
)
@theme_option
def top(theme: Literal["dark", "light"] | None) -> None:
    """Watch instances: rates, durations, requests in flight, workers and log records.

    The view and its keys are those of `flask-ctl help top`. Instances come and go as their presences do.
    """
    with contextlib.ExitStack() as stack:
        view(lambda: watched(stack.enter_context(opened()), settings()), theme)


def watched(fleet: Fleet, given: Settings) -> Callable[[], Sequence[Watched]]:
    """A function that finds the selected instances. Raises NothingSelected if there is none at the start."""
    from ..top.samples import Watched

    known: dict[tuple[str, str], tuple[FleetTarget, Watched]] = {}

    def show(found: Sequence[FleetInstance]) -> Sequence[Watched]:
        for one in found:
            if one.key not in known:
                target = FleetTarget(fleet, one)
                known[one.key] = target, Watched(lambda target=target: target.client(given), target.name)  # type: ignore[misc]
                continue
            target, watched = known[one.key]
            if one.lost or _process(one) != _process(target.one):
                # The next client is for what is there now; of a lost one it is none, and nothing is waited for.
                watched.close()
            target.one = one
        for gone in known.keys() - {one.key for one in found}:
            known.pop(gone)[1].close()
        return [watched for _, watched in known.values()]

    def discover() -> Sequence[Watched]:
        try:
            found = [one for one in fleet.roster().instances if matches(given, one)]
        except ControlError:
            # What is known says itself that the server is away.
            return [watched for _, watched in known.values()]
        return show(found)

    show(selected(fleet, operate=False)[0])
    return discover


def _process(one: FleetInstance) -> tuple[object, ...]:
    """What a client of an instance depends on."""
    presence = one.presence
    return presence.life, presence.pid, presence.started_at, presence.roles
