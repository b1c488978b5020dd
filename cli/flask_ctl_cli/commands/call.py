"""``flask-ctl call``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..custom import YES_HELP, call_command, parse_values
from ..group import load_command
from ..output import confirm
from ..settings import ClientCommand, settings, settings_of
from ..words import assignment

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_FROZEN = ("ping", "status", "stop")
"""Commands that are the same in all versions of the protocol: `call` runs the built-in command of that name."""

_WHOLE_SERVER = (*_FROZEN, "reload", "commands")
"""Commands for the whole server, which a single worker can't run."""


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ..completion import items

    described = settings_of(ctx).described_commands()
    return items({name: command.get("summary") for name, command in described.items()}, incomplete)


def _complete_parameter(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ..completion import assignments

    described = settings_of(ctx).described_commands()
    return assignments(described.get(ctx.params.get("name", "").replace("-", "_"), {}), incomplete)


@click.command(
    cls=ClientCommand,
    examples=["flask-ctl call clear_cache prefix=u:", "flask-ctl call clear_cache prefix=u: --worker 4243"],
)
@click.argument("name", shell_complete=_complete_name)
@click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=_complete_parameter)
@click.option("--worker", metavar="PID", help="Run only in this worker; the same as _pid=PID.")
@click.option("--yes", is_flag=True, help=YES_HELP)
@click.pass_context
def call(ctx: click.Context, name: str, parameters: tuple[str, ...], worker: str | None, yes: bool) -> None:
    """Call any command by name.

    The items of a list are separated by commas: tags=a,b.
    """
    name = settings().command = name.replace("-", "_")
    texts = dict(map(assignment, parameters))
    if worker is not None:
        texts["_pid"] = worker
    if name in _WHOLE_SERVER and "_pid" in texts:
        raise click.UsageError(
            f"{name} is for the whole server; only the app's own commands can run in a single worker"
        )
    if name in _FROZEN:
        _call_builtin(ctx, name, texts)
        return
    options = {key: _worker(texts.pop(key)) for key in ("_pid",) if key in texts}
    described = settings().described_commands()
    # The server refuses an unknown command, and its message lists the known ones.
    values = parse_values(name, described[name], texts) if name in described else {}
    confirm(name, described.get(name, {}), yes=yes)
    call_command(name, {**values, **options})


def _call_builtin(ctx: click.Context, name: str, texts: dict[str, str]) -> None:
    command = load_command(name)
    with command.make_context(name, [f"--{key}={text}" for key, text in texts.items()], parent=ctx.parent) as own:
        command.invoke(own)


def _worker(text: str) -> int:
    if not text.isdecimal():
        raise click.UsageError(f"{text!r} is not the process id of a worker")
    return int(text)
