"""``flask-ctl call``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..custom import may_change, parse_values
from ..group import load_command
from ..output import print_result
from ..settings import ClientCommand, settings, settings_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_OWN = ("ping", "status", "stop")
"""Methods that our own commands call, whatever protocol the server speaks."""

_WHOLE = (*_OWN, "reload", "commands")
"""Methods that are for the whole server, and not for one of its workers."""


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in settings_of(ctx).offered_commands() if name.startswith(incomplete)]


@click.command(cls=ClientCommand)
@click.argument("name", shell_complete=_complete_name)
@click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--worker", metavar="PID", help="Ask this worker only; the same as _pid=PID.")
@click.pass_context
def call(ctx: click.Context, name: str, parameters: tuple[str, ...], worker: str | None) -> None:
    """Call any command by name.

    A list is written with commas: tags=a,b.
    """
    name = settings().command = name.replace("-", "_")
    texts = dict(map(_assignment, parameters))
    if worker is not None:
        texts["_pid"] = worker
    if name in _WHOLE and "_pid" in texts:
        raise click.UsageError(f"{name} is for the whole server; a worker can be asked for the app's own commands")
    if name in _OWN:
        _call_own(ctx, name, texts)
        return
    about = {key: _worker(texts.pop(key)) for key in ("_pid",) if key in texts}
    described = settings().described_commands()
    # A command that the server does not have is refused by the server, with the list of those that it has.
    values = parse_values(name, described[name], texts) if name in described else {}
    with settings().client(operate=may_change(name)) as client:
        print_result(name, client.call(name, **values, **about), as_json=settings().json)


def _call_own(ctx: click.Context, name: str, texts: dict[str, str]) -> None:
    command = load_command(name)
    with command.make_context(name, [f"--{key}={text}" for key, text in texts.items()], parent=ctx.parent) as own:
        command.invoke(own)


def _worker(text: str) -> int:
    if not text.isdecimal():
        raise click.UsageError(f"{text!r} is no process id of a worker")
    return int(text)


def _assignment(word: str) -> tuple[str, str]:
    key, separator, value = word.partition("=")
    key = key.replace("-", "_")
    if not separator or not key.isidentifier():
        raise click.UsageError(f"{word!r} is not of the form KEY=VALUE")
    return key, value
