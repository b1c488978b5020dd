"""The click group: the built-in commands, which are imported when used, and the app's own commands."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import click

from flask_ctl import AmbiguousTarget, ControlError, NotRunning, TimedOut

from .output import report_errors
from .settings import (
    HELP_TIMEOUT,
    ControlCommand,
    Settings,
    common_options,
    selection_options,
    settings_of,
    trust_options,
)


class ControlGroup(click.Group):
    """The built-in commands with the names `builtin`, and the commands that the target instance describes."""

    def __init__(
        self, name: str, builtin: Iterable[str], params: Iterable[click.Parameter] = (), **kwargs: Any
    ) -> None:
        super().__init__(
            name,
            params=[*common_options(), *trust_options(), *selection_options(), *params],
            context_settings={"token_normalize_func": _hyphens},
            **kwargs,
        )
        self._builtin = frozenset(builtin)

    def default_socket(self, ctx: click.Context) -> str | None:
        """The address if none is given; None to search for the one instance of this directory.

        An address from a file is put into the environment, where it may be a list, too.
        """
        from .dotenv import VARIABLE, socket_from_files

        # A variable that is set, but empty, counts as set: Flask does not replace it either.
        if VARIABLE not in os.environ and (found := socket_from_files(settings_of(ctx).say)):
            os.environ[VARIABLE] = found
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
            from .completion import TIMEOUT

            settings.be_brief(TIMEOUT)
        given = list(args)
        rest = super().parse_args(ctx, args)
        if settings.on is not None:
            from .remote.command import without_hosts

            # The command's name is not among the rest.
            settings.common_words = without_hosts(given[: -len(rest) - 1])
            settings.command_words = given[-len(rest) - 1 :]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        settings = settings_of(ctx)

        def hint(error: TimedOut) -> str:
            from .hints import hint_after

            return hint_after(error, settings.command, ctx.command_path, settings.wait_option)

        with report_errors(as_json=settings.json or "--json" in ctx.args, hint=hint):
            # A rollout runs here, and asks each host for one instance after the other.
            if settings.on is not None and "--rolling" not in settings.command_words:
                from .remote.command import run_on_hosts

                run_on_hosts(settings)
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if _hyphens(args[0]) not in self._builtin:
            _read_options_behind_name(args[1:], ctx)
            _read_selection_behind_name(args[0].replace("-", "_"), args[1:], ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        if _hyphens(cmd_name) in self._builtin:
            return load_command(name)
        try:
            described = settings_of(ctx).described_commands()
        except (ControlError, click.ClickException) as error:
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
        settings = settings_of(ctx)
        settings.be_brief(HELP_TIMEOUT)
        return sorted({*self._builtin, *map(_hyphens, settings.described_commands())})


def load_command(name: str) -> click.Command:
    """The built-in command of that name."""
    name = name.replace("-", "_")
    command: click.Command = getattr(importlib.import_module(f"{__package__}.commands.{name}"), name)
    return command


def contexts_of(group: click.Group, names: Sequence[str], parent: click.Context) -> Iterator[click.Context]:
    """A context for each of a group's commands with these names, and for the commands of those that are groups."""
    for name in names:
        command = group.get_command(parent, name)
        assert command is not None
        yield (context := click.Context(command, info_name=name, parent=parent))
        if isinstance(command, click.Group):
            yield from contexts_of(command, command.list_commands(context), context)


def _custom_command(name: str, described: dict[str, Any]) -> click.Command:
    from .custom import custom_command

    return custom_command(name, described[name], ControlCommand)


def _unknown(ctx: click.Context, name: str, near: list[str], where: str) -> click.UsageError:
    question = f"; did you mean {' or '.join(near)}?" if near else f"; {ctx.command_path} --help lists all commands"
    return click.UsageError(f"there is no command {name!r}, {where}{question}", ctx)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _read_selection_behind_name(name: str, args: list[str], ctx: click.Context) -> None:
    """Store the options that select instances behind the name of a command of the app's own.

    A parameter of such a name takes precedence, and so does --socket.
    """
    options: list[click.Parameter] = [click.Option([word]) for word in ("--name", "--dir", "--owner")]
    scan = click.Command(
        "scan",
        params=[*options, click.Option(["--all"], is_flag=True)],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    found = scan.make_context("scan", list(args), parent=ctx, resilient_parsing=True).params
    given = {word: value for word, value in found.items() if value}
    settings = settings_of(ctx)
    if not given or settings.sockets:
        return
    for word in given.keys() - _parameters_of(name, settings):
        setattr(settings, word if word == "owner" else f"selected_{word}", given[word])


def _parameters_of(name: str, settings: Settings) -> Collection[str]:
    """The parameters of a command of the app's own, as the instance here describes it, or any other one."""
    quiet, everything = settings.quiet, settings.selected_all
    settings.quiet = True
    try:
        for settings.selected_all in (everything, True):
            with contextlib.suppress(NotRunning, AmbiguousTarget):
                if name in (described := settings.described_commands()):
                    parameters: dict[str, Any] = described[name].get("parameters", {}).get("properties", {})
                    return parameters.keys()
            settings.forget_described()
        return ()
    finally:
        settings.quiet, settings.selected_all = quiet, everything
        settings.forget_described()


def _read_options_behind_name(args: list[str], ctx: click.Context) -> None:
    """Store the common options behind the name of a command of the app's own: --socket says which app describes it."""
    scan = click.Command(
        "scan",
        params=common_options(),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    scan.make_context("scan", list(args), parent=ctx, resilient_parsing=True)
