"""Write the files of share/: a manual page for each command, and the completion scripts of three shells.

``python docs/manual.py`` writes the files; a test compares them with `files`. The wheel installs them in the ``share``
of the environment, where man, bash, zsh and fish look for them.
"""

from __future__ import annotations

import inspect
import pathlib
import re
from collections.abc import Iterator
from importlib.metadata import version

import click

from flask_ctl import SETTINGS
from flask_ctl_cli.completion import SHELLS
from flask_ctl_cli.group import contexts_of
from flask_ctl_cli.main import COMMANDS, cli
from flask_ctl_cli.settings import ControlCommand
from flask_ctl_cli.topics import EXIT_CODES

SHARE = pathlib.Path(__file__).parent.parent / "share"
SCRIPTS = {
    "bash": "bash-completion/completions/flask-ctl",
    "zsh": "zsh/site-functions/_flask-ctl",
    "fish": "fish/vendor_completions.d/flask-ctl.fish",
}
"""Where each shell looks for a completion script of that command, below ``share``."""


def files() -> dict[str, str]:
    """The text of every file, by its path below ``share``."""
    scripts = {SCRIPTS[shell]: _completion(shell) for shell in SCRIPTS}
    parent = click.Context(cli, info_name="flask-ctl", terminal_width=1000)
    pages = {"flask-ctl": _page(cli, parent)}
    for context in contexts_of(cli, COMMANDS, parent):
        pages[_title(context)] = _page(context.command, context)
    return scripts | {f"man/man1/{title}.1": "\n".join([*lines, ""]) for title, lines in pages.items()}


def _completion(shell: str) -> str:
    """The script that ``_FLASK_CTL_COMPLETE=SHELL_source flask-ctl`` prints; `source` itself would start bash."""
    script = SHELLS[shell](cli, {}, "flask-ctl", "_FLASK_CTL_COMPLETE")
    return (script.source_template % script.source_vars()).strip() + "\n"


def _page(command: click.Command, context: click.Context) -> Iterator[str]:
    """The lines of a manual page, in the macros of man(7)."""
    title = _title(context)
    yield f'.TH {_escaped(title.upper())} 1 "" "flask\\-ctl {version("flask-ctl")}" "flask\\-ctl Manual"'
    summary = _summary(command).rstrip(".")
    yield from (".SH NAME", rf"{_escaped(title)} \- {_text(summary[:1].lower() + summary[1:])}")
    arguments = context.get_usage().removeprefix(f"Usage: {context.command_path}").strip()
    yield from (".SH SYNOPSIS", rf"\fB{_escaped(context.command_path)}\fR {_escaped(arguments)}")
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    yield from (".SH DESCRIPTION", "\n.PP\n".join(_text(" ".join(each.split())) for each in paragraphs))
    if command is cli:
        yield from (".PP", _text(cli.epilog or ""))
    if isinstance(command, click.Group):
        names = COMMANDS if command is cli else command.list_commands(context)
        parts = ((name, command.get_command(context, name)) for name in names)
        yield ".SH COMMANDS"
        yield from _list((f"`{title}-{name}`(1)", _summary(part)) for name, part in parts if part is not None)
    yield ".SH OPTIONS"
    options = (option.get_help_record(context) for option in command.get_params(context))
    # Newer versions of click list arguments, too, without a text.
    yield from _list(record for record in options if record and record[1])
    if isinstance(command, ControlCommand) and command.examples:
        yield from (".SH EXAMPLES", ".EX", *map(_escaped, command.examples), ".EE")
    if command is cli:
        yield ".SH EXIT STATUS"
        yield from _list((f"`{code}`", means) for code, means in EXIT_CODES.items())
        yield ".SH ENVIRONMENT"
        yield from _list((f"`{each.name}`", each.meaning) for each in SETTINGS if each.name.startswith("FLASK_CTL_"))
    if context.parent is not None:
        yield from (".SH SEE ALSO", rf"\fB{_escaped(_title(context.parent))}\fR(1)")


def _title(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000)


def _list(entries: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A list of terms, each with its meaning."""
    for term, meaning in entries:
        yield from (".TP", _text(term), _text(meaning))


def _text(text: str) -> str:
    """Text as roff, with options and what stands in backticks in bold."""
    return re.sub(r"`([^`]*)`|(?<![\w`\\-])((?:\\-){1,2}[a-z](?:[a-z]|\\-)*)", r"\\fB\1\2\\fR", _escaped(text))


def _escaped(text: str) -> str:
    """Text whose characters mean nothing to roff (groff_char(7)); no line of ours begins with a dot or apostrophe."""
    return text.replace("\\", r"\e").replace("-", r"\-")


if __name__ == "__main__":
    for name, text in files().items():
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
