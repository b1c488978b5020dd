"""``flask-ctl help``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..codes import meaning_of
from ..output import print_json
from ..settings import ControlCommand, settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    group, context = _group(ctx)
    names = group.list_commands(context)
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


# An error code looks like an option.
@click.command(cls=ControlCommand, context_settings={"ignore_unknown_options": True})
@click.argument(
    "topic", required=False, metavar="[COMMAND|EXIT CODE|ERROR CODE]", default=None, shell_complete=_complete_topic
)
@click.pass_context
def help(ctx: click.Context, topic: str | None) -> None:
    """Explain a command, an exit code or an error code."""
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
        click.echo("{} {}: {}".format(*meaning))


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
        click.echo(text)


def _group(ctx: click.Context) -> tuple[click.Group, click.Context]:
    """The group to which this command belongs, and the context of that group."""
    assert ctx.parent is not None
    assert isinstance(ctx.parent.command, click.Group)
    return ctx.parent.command, ctx.parent
