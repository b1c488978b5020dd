"""``flask-ctl help``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..output import print_json, write
from ..settings import ControlCommand, settings
from ..topics import described_settings, meaning_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    group, context = _group(ctx)
    names = [*group.list_commands(context), "settings"]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


# An error code looks like an option.
@click.command(
    cls=ControlCommand,
    context_settings={"ignore_unknown_options": True},
    examples=["flask-ctl help stop", "flask-ctl help 6", "flask-ctl help -32005", "flask-ctl help CTL_GRACE"],
)
@click.argument(
    "topic",
    required=False,
    metavar="[COMMAND|EXIT CODE|ERROR CODE|SETTING|settings]",
    default=None,
    shell_complete=_complete_topic,
)
@click.pass_context
def help(ctx: click.Context, topic: str | None) -> None:
    """Explain a command, an exit code, an error code or a setting; `settings` lists all settings."""
    described = [] if topic is None else described_settings(topic)
    if described:
        _show_settings(described)
        return
    try:
        meaning = None if topic is None else meaning_of(topic)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if meaning is None:
        _show_help(ctx, topic)
    elif settings().json:
        kind, number, text = meaning
        print_json({"kind": kind, "code": number, "means": text})
    else:
        write("{} {}: {}\n".format(*meaning))


def _show_settings(described: list[dict[str, Any]]) -> None:
    if settings().json:
        print_json(described)
        return
    for setting in described:
        default = "" if setting["default"] is None else f" (default: {setting['default']!r})"
        write(f"{setting['name']}{default}: {setting['means']}\n")


def _show_help(ctx: click.Context, topic: str | None) -> None:
    group, context = _group(ctx)
    if topic is None:
        text = context.get_help()
    else:
        command = group.get_command(context, topic)
        assert command is not None
        with click.Context(command, info_name=command.name, parent=context) as own:
            text = command.get_help(own)
    if settings().json:
        print_json({"help": text})
    else:
        write(f"{text}\n")


def _group(ctx: click.Context) -> tuple[click.Group, click.Context]:
    """The group to which this command belongs, and the context of that group."""
    assert ctx.parent is not None
    assert isinstance(ctx.parent.command, click.Group)
    return ctx.parent.command, ctx.parent
