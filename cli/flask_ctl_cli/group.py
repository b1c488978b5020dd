"""The click group: the built-in commands, which are imported when used, and the app's own commands."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import click

from flask_ctl import ControlError, NotRunning, TimedOut

from .output import report_errors
from .settings import ControlCommand, common_options, settings_of, trust_options


class ControlGroup(click.Group):
    """The built-in commands with the names `builtin`, and the commands that the target instance describes."""

    def __init__(self, name: str, builtin: Iterable[str], **kwargs: Any) -> None:
        super().__init__(
            name,
            params=[*common_options(), *trust_options()],
            context_settings={"token_normalize_func": _hyphens},
            **kwargs,
        )
        self._builtin = frozenset(builtin)

    def default_socket(self, ctx: click.Context) -> str | None:
        """The address if none is given; None to search for the one instance of this directory."""
        return None

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with report_errors(as_json="--json" in args):
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
            from .hints import hint_after

            return hint_after(error, settings.command, ctx.command_path, settings.wait_option)

        with report_errors(as_json=settings.json or "--json" in ctx.args, hint=hint):
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if _hyphens(args[0]) not in self._builtin:
            _read_options_behind_name(args[1:], ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        if name in self._builtin:
            return load_command(name)
        try:
            described = settings_of(ctx).described_commands()
        except (ControlError, click.ClickException) as error:
            if ctx.resilient_parsing:
                return None
            from .suggestions import one_edit_from

            meant = one_edit_from(_hyphens(cmd_name), self._builtin)
            if isinstance(error, NotRunning) and meant is not None:
                raise _unknown(ctx, cmd_name, [meant], "and nothing is running that could have one") from None
            settings_of(ctx).say(f"{cmd_name!r} is not a built-in command of flask-ctl; asking the app")
            raise
        if name in described:
            return _custom_command(name, described)
        if ctx.resilient_parsing:
            return None
        from .suggestions import similar_names

        names = [*self._builtin, *map(_hyphens, described)]
        raise _unknown(ctx, cmd_name, similar_names(_hyphens(cmd_name), names), "neither here nor in the app")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self._builtin, *map(_hyphens, settings_of(ctx).command_names())})


def load_command(name: str) -> click.Command:
    """The built-in command of that name."""
    command: click.Command = getattr(importlib.import_module(f"{__package__}.commands.{name}"), name)
    return command


def _custom_command(name: str, described: dict[str, Any]) -> click.Command:
    from .custom import custom_command

    return custom_command(name, described[name], ControlCommand)


def _unknown(ctx: click.Context, name: str, near: list[str], where: str) -> click.UsageError:
    question = f"; did you mean {' or '.join(near)}?" if near else f"; {ctx.command_path} --help lists all commands"
    return click.UsageError(f"there is no command {name!r}, {where}{question}", ctx)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _read_options_behind_name(args: list[str], ctx: click.Context) -> None:
    """Store the common options behind the name of a command of the app's own: --socket says which app describes it."""
    scan = click.Command(
        "scan",
        params=common_options(),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    scan.make_context("scan", list(args), parent=ctx, resilient_parsing=True)
