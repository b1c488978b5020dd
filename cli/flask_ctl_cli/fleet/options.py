"""The options that all commands of ``flask-ctl fleet`` have, before or after the command's name."""

from __future__ import annotations

from typing import Any

import click

from ..settings import STORE, ControlCommand, Seconds, settings_of


def _store_list(ctx: click.Context, param: click.Parameter, values: tuple[str, ...] | None) -> None:
    if values:
        setattr(settings_of(ctx), param.name or "", values)


def _store_labels(ctx: click.Context, param: click.Parameter, values: tuple[str, ...] | None) -> None:
    for value in values or ():
        name, separator, wanted = value.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE", ctx, param)
        settings_of(ctx).labels[name] = wanted


def fleet_options() -> list[click.Parameter]:
    """New options, which store their values in the Settings."""
    several: dict[str, Any] = {**STORE, "multiple": True}
    return [
        click.Option(
            ["--nats"],
            metavar="URL",
            help="NATS servers; several times, or with commas.  [default: FLASK_CTL_FLEET]",
            **{**several, "callback": _store_list},
        ),
        click.Option(
            ["--name", "selected_name"], metavar="PATTERN", help="Instances of apps with such a name: 'shop*'.", **STORE
        ),
        click.Option(
            ["--label"],
            metavar="KEY=VALUE",
            help="Instances with exactly this label, no pattern; given several times, with all.",
            **{**several, "callback": _store_labels},
        ),
        click.Option(
            ["--host", "host_pattern"], metavar="PATTERN", help="Instances on hosts with such a name.", **STORE
        ),
        click.Option(
            ["--instance", "instance_pattern"], metavar="PATTERN", help="Instances with such a name.", **STORE
        ),
        click.Option(["--all", "selected_all"], is_flag=True, help="All instances.", **STORE),
        click.Option(
            ["--timeout"],
            type=Seconds(),
            metavar="SECONDS",
            help="Wait at most this long for the answer of an instance."
            "  [default: 5; stop: delay + grace + 5; drain, resume: 60; reload, call: 300]",
            **STORE,
        ),
        click.Option(["--json"], is_flag=True, help="Print one JSON document.", **STORE),
        click.Option(["--quiet", "-q"], is_flag=True, help="Print no remarks; stop and reload print nothing.", **STORE),
    ]


class FleetCommand(ControlCommand):
    """A command for instances at NATS servers."""

    def common_options(self) -> list[click.Parameter]:
        return fleet_options()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        finally:
            # For the advice after a time-out: those of the commands for one machine do not help here.
            settings_of(ctx).command = f"fleet {ctx.info_name}"
