"""The group of commands: our own, loaded when used, and those that the instance has."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import click

from flask_ctl import ControlError, NotRunning, TimedOut

from .hints import hint_after
from .names import near_names, one_edit_from
from .output import reported
from .settings import ControlCommand, common_options, settings_of, trust_options


class ControlGroup(click.Group):
    """The commands in modules of `commands` that `own` names, and those of the instance that is meant."""

    def __init__(self, name: str, own: Iterable[str], **kwargs: Any) -> None:
        super().__init__(
            name,
            params=[*common_options(), *trust_options()],
            context_settings={"token_normalize_func": _hyphens},
            **kwargs,
        )
        self._own = frozenset(own)

    def default_socket(self, ctx: click.Context) -> str | None:
        """The address for when none is given; None to look for the one instance of this directory."""
        return None

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with reported(as_json="--json" in args):
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        settings = settings_of(ctx)
        settings.default_socket = lambda: self.default_socket(ctx)
        if ctx.resilient_parsing:
            settings.be_brief()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        settings = settings_of(ctx)

        def hint(error: TimedOut) -> str:
            return hint_after(error, settings.command, ctx.command_path, settings.patience)

        with reported(as_json=settings.json or "--json" in ctx.args, hint=hint):
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if _hyphens(args[0]) not in self._own:
            _look_ahead(args[1:], ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        if name in self._own:
            return load_command(name)
        try:
            described = settings_of(ctx).described_commands()
        except (ControlError, click.ClickException) as error:
            if ctx.resilient_parsing:
                return None
            meant = one_edit_from(_hyphens(cmd_name), self._own)
            if isinstance(error, NotRunning) and meant is not None:
                raise _unknown(ctx, cmd_name, [meant], "and nothing is running that could have one") from None
            settings_of(ctx).say(f"{cmd_name!r} is none of flask-ctl's own commands; asking the app")
            raise
        if name in described:
            return _custom_command(name, described)
        if ctx.resilient_parsing:
            return None
        names = [*self._own, *map(_hyphens, described)]
        raise _unknown(ctx, cmd_name, near_names(_hyphens(cmd_name), names), "neither here nor in the app")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self._own, *map(_hyphens, settings_of(ctx).offered_commands())})


def load_command(name: str) -> click.Command:
    """One of our own commands."""
    command: click.Command = getattr(importlib.import_module(f"{__package__}.commands.{name}"), name)
    return command


def _custom_command(name: str, described: dict[str, Any]) -> click.Command:
    from .custom import custom_command

    return custom_command(name, described[name], ControlCommand)


def _unknown(ctx: click.Context, name: str, near: list[str], where: str) -> click.UsageError:
    question = (
        f"; did you mean {' or '.join(near)}?" if near else f"; {ctx.command_path} --help lists those that there are"
    )
    return click.UsageError(f"there is no command {name!r}, {where}{question}", ctx)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _look_ahead(args: list[str], ctx: click.Context) -> None:
    """Take in a --socket that stands behind the name of a command which only that instance can explain."""
    scan = click.Command(
        "scan",
        params=common_options(),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    scan.make_context("scan", list(args), parent=ctx, resilient_parsing=True)
