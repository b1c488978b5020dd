"""The group of commands: options that work before and after the command's name, the app's own commands, errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from flask_ctl import AmbiguousTarget, ControlClient, ControlError, find_instance, live_instances

from .custom import custom_command
from .output import exit_code, print_error

_META = "flask_ctl_cli.settings"


class Settings:
    """The options that every command has."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.timeout: float | None = None
        self.json = False
        self.quiet = False
        self.default_socket: Callable[[], str | None] = lambda: None

    @property
    def addressed(self) -> bool:
        """Whether it was said which instance is meant, so that it may be asked without guessing."""
        return self.socket is not None or bool(os.environ.get("FLASK_CTL_SOCKET"))

    def client(self) -> ControlClient:
        """A client for the instance that is meant; one that was found is named on stderr."""
        socket = self.socket
        if not self.addressed:
            socket = self.default_socket()
        if socket is None and not self.addressed:
            socket = find_instance(os.getcwd(), self.timeout)
            self.say(f"using {socket}")
        return ControlClient(socket) if self.timeout is None else ControlClient(socket, timeout=self.timeout)

    def say(self, message: str) -> None:
        """A remark on stderr."""
        if not self.quiet:
            click.echo(message, err=True)


def settings() -> Settings:
    """The settings of the command that runs."""
    return settings_of(click.get_current_context())


def settings_of(ctx: click.Context) -> Settings:
    """The settings of a context; a command and its groups share them."""
    found: Settings = ctx.meta.setdefault(_META, Settings())
    return found


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        setattr(settings_of(ctx), param.name or "", value)


def _complete_socket(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    live = [found.socket for found in live_instances() if found.socket.startswith(incomplete)]
    return [*map(CompletionItem, live), CompletionItem(incomplete, type="file")]


def common_options() -> list[click.Parameter]:
    """New --socket, --timeout, --json and --quiet options, whose values go to the Settings."""
    store: dict[str, Any] = {"callback": _store, "expose_value": False, "is_eager": True}
    return [
        click.Option(
            ["--socket", "-s"], metavar="ADDRESS", help="Where it listens.", shell_complete=_complete_socket, **store
        ),
        click.Option(
            ["--timeout"], type=click.FloatRange(min=0), metavar="SECONDS", help="Wait so long for answers.", **store
        ),
        click.Option(["--json"], is_flag=True, help="Print one JSON document.", **store),
        click.Option(["--quiet", "-q"], is_flag=True, help="Print results and errors only.", **store),
    ]


class ControlCommand(click.Command):
    """A command with the common options."""

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, params=[*(params or []), *common_options()], **kwargs)


class ControlGroup(click.Group):
    """The commands that are known, and those that the addressed instance has."""

    command_class = ControlCommand

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, params=[*(params or []), *common_options()], **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ControlError as error:
            code = exit_code(error)
            print_error(error.message, exit_code=code, as_json=settings_of(ctx).json, code=error.code, data=error.data)
            ctx.exit(code)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            _look_ahead(args[1:], ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        try:
            with settings_of(ctx).client() as client:
                commands = client.commands()
        except AmbiguousTarget:
            if cmd_name.isidentifier():
                raise
            return None
        name = cmd_name.replace("-", "_")
        return custom_command(name, commands[name], ControlCommand) if name in commands else None

    def list_commands(self, ctx: click.Context) -> list[str]:
        known = super().list_commands(ctx)
        if not settings_of(ctx).addressed:
            return known
        try:
            with settings_of(ctx).client() as client:
                custom = [name.replace("_", "-") for name in client.commands(timeout=1.0)]
        except ControlError:
            # Help and completion are there without a server, too.
            return known
        return sorted({*known, *custom} - {"commands"})


def _look_ahead(args: list[str], ctx: click.Context) -> None:
    """Take in a --socket that stands behind the name of a command which only that instance can explain."""
    scan = click.Command(
        "scan",
        params=common_options(),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    scan.make_context("scan", list(args), parent=ctx, resilient_parsing=True)
