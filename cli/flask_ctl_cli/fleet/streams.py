"""``flask-ctl fleet events`` and ``flask-ctl fleet logs``: the streams of many instances as one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import click

from flask_ctl import AccessDenied, ControlError, printable, render_message

from .. import merging
from ..many import first_of
from ..output import exit_code_of, write
from ..settings import Settings, settings
from ..streams import ENDS, EVENTS_OPTIONS, LOGS_OPTIONS, add_options, ended_by_ctrl_c
from .options import FleetCommand
from .selection import FleetTarget, opened, selected


class Item(NamedTuple):
    """What has come from an instance: a message, or why there are no more."""

    target: FleetTarget
    message: dict[str, Any]
    error: ControlError | None = None

    @property
    def code(self) -> int | None:
        """The exit code at the end of a stream; None before it."""
        if self.error is not None:
            return exit_code_of(self.error) if isinstance(self.error, AccessDenied) else 1
        return ENDS.get(self.message["end"], 1) if "end" in self.message else None


@click.command(
    cls=FleetCommand,
    role="observe",
    examples=["flask-ctl fleet events --name shop --since 1h", "flask-ctl fleet events --follow --lines 0 --json"],
)
@add_options(EVENTS_OPTIONS)
def events(**wanted: Any) -> None:
    """Show what has happened in all selected instances, each line with its instance.

    With --follow the events come as they happen, until Ctrl-C; without it they are in the order of their times. An
    instance that ends is told.

    Exit codes: 0 shown, 1 an instance has not answered, or no server can be reached, 2 wrong usage, 3 nothing is
    selected, or with --follow all have ended, 5 permission denied.
    """
    _print_all("events", wanted)


@click.command(
    cls=FleetCommand,
    role="inspect",
    impact_note="with --follow, records of every level are taken, 2 us each",
    examples=["flask-ctl fleet logs --name shop --follow --level WARNING"],
)
@add_options(LOGS_OPTIONS)
def logs(level: str | None, **wanted: Any) -> None:
    """Show the last log records of all selected instances, each line with its instance.

    Exit codes: those of `flask-ctl fleet events`.
    """
    _print_all("logs", {"level": level or "", **wanted})


def _print_all(name: str, wanted: dict[str, Any]) -> None:
    given = settings()
    params = {key: value for key, value in wanted.items() if value not in (None, "")}
    codes: list[int] = []
    with opened() as fleet, ended_by_ctrl_c():
        found, _ = selected(fleet)
        items = merged([FleetTarget(fleet, one) for one in found], name, params, given)
        for item in items if params["follow"] else sorted(items, key=_time):
            if item.code is not None:
                codes.append(item.code)
            _print(item, name)
    raise click.exceptions.Exit(first_of(codes))


def merged(chosen: Sequence[FleetTarget], name: str, params: dict[str, Any], given: Settings) -> Iterator[Item]:
    """What comes from each, until all have ended. Raises what a reader raises, but no ControlError.

    Where too many items wait to be written, the instances tell how many.
    """

    def read(target: FleetTarget) -> Iterator[Item]:
        try:
            with target.client(given) as client:
                for message in client.follow(name, **params):
                    yield Item(target, message)
        except ControlError as error:
            yield Item(target, {}, error)

    return merging.merged([partial(read, target) for target in chosen])


def _time(item: Item) -> str:
    # What has no time of its own comes at the end.
    return str(item.message.get("time", "~"))


def _print(item: Item, name: str) -> None:
    given, message, instance = settings(), item.message, printable(item.target.name, keep="")
    if given.json:
        told = (
            {"error": {"code": item.error.code, "message": item.error.message}} if item.error is not None else message
        )
        one = item.target.one
        write(json.dumps({"app": one.app, "instance": one.instance, **told}) + "\n")
    elif item.error is not None:
        click.echo(f"Error: {instance}: {printable(item.error.message)}", err=True)
    elif "end" in message:
        if message["end"] != "complete":
            given.say(f"{instance}  — {printable(str(message['end']))} —")
    elif "about" not in message:
        for line in render_message(name, message).splitlines():
            write(f"{instance}  {line}\n")
