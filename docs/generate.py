"""Write the generated pages of docs/reference from the tables in the code.

``python docs/generate.py`` writes the pages; a test compares them with `pages`.
"""

from __future__ import annotations

import inspect
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, cast

import click

from flask_ctl import SETTINGS
from flask_ctl.dispatch.commands import CommandRegistry
from flask_ctl.lifecycle.commands import builtin_commands
from flask_ctl.lifecycle.state import TRANSITIONS, Event, State
from flask_ctl_cli.group import contexts_of
from flask_ctl_cli.main import COMMANDS, cli
from flask_ctl_cli.settings import ControlCommand
from flask_ctl_cli.topics import ERROR_CODES, EXIT_CODES

REFERENCE = pathlib.Path(__file__).parent / "reference"


def pages() -> dict[str, str]:
    """The text of every generated page, by file name."""
    return {
        "codes.md": "\n".join(_codes()),
        "command-line.md": "\n".join(_command_line()),
        "commands.md": "\n".join(_commands()),
        "lifecycle.md": "\n".join(_lifecycle()),
        "lifecycle.svg": _drawing(),
        "settings.md": "\n".join(_settings()),
    }


def _table(*rows: tuple[str, ...]) -> Iterator[str]:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    for row in (head, ("---",) * len(head), *body):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _codes() -> Iterator[str]:
    yield from ("# Exit codes and error codes", "", "`flask-ctl help CODE` prints the same texts.", "")
    yield from ("## Exit codes", "")
    yield from _table(("exit", "means"), *((str(code), means) for code, means in EXIT_CODES.items()))
    yield from ("## Error codes", "", "The `code` of an error object (JSON-RPC 2.0, section 5.1).", "")
    yield from _table(("code", "means"), *((str(code), means) for code, means in ERROR_CODES.items()))


def _command_line() -> Iterator[str]:
    yield from ("# Command line", "", "`flask-ctl help COMMAND` prints the same texts.", "")
    parent = click.Context(cli, info_name="flask-ctl", terminal_width=1000)
    yield from _command(cli, parent, "flask-ctl")
    for context in contexts_of(cli, COMMANDS, parent):
        yield from _command(context.command, context, context.command_path)


def _command(command: click.Command, context: click.Context, title: str) -> Iterator[str]:
    yield from (f"## {title}", "", "```text", context.get_usage().removeprefix("Usage: "), "```", "")
    yield from (_as_markdown(command.help or ""), "")
    options = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    yield from (f"- `{name}`: {means}" for name, means in filter(None, options) if means)
    yield ""
    if isinstance(command, ControlCommand) and command.examples:
        yield from ("```sh", *command.examples, "```", "")


def _as_markdown(text: str) -> str:
    """A help text, with the names of options as code."""
    return re.sub(r"(?<![\w`-])(--[a-z-]+)", r"`\1`", inspect.cleandoc(text))


def _commands() -> Iterator[str]:
    yield from ("# Commands of every server", "")
    yield "`commands` describes the app's own commands in the same way, `rpc.discover` as an OpenRPC document."
    yield ""
    nothing = cast(Any, None)
    for command in builtin_commands(nothing, nothing, CommandRegistry([])):
        described = command.describe()
        yield from (f"## {command.name}", "", described["summary"], "", f"Role: `{command.role}`.", "")
        for title, schema in (("Parameters", described["parameters"]), ("Result", described["result"])):
            yield from (f"{title}:", "", "```json", json.dumps(schema, indent=2), "```", "")


def _settings() -> Iterator[str]:
    yield from ("# Settings", "", "`flask-ctl help settings` prints the same texts.", "")
    for title, prefix in (("In `app.config`", "CTL_"), ("In the environment", "FLASK_CTL_")):
        rows = [setting for setting in SETTINGS if setting.name.startswith(prefix)]
        yield from (f"## {title}", "")
        # No table: it would be too wide for a narrow screen.
        for setting in rows:
            default = "" if setting.default is None else f" (default: `{setting.default!r}`)"
            yield f"- **`{setting.name}`**{default}: {setting.meaning}"
        yield ""


def _lifecycle() -> Iterator[str]:
    yield from ("# Lifecycle", "")
    yield "`status` shows the state, but never `stopped`: until the process ends it is still stopping or reloading."
    yield from ("", "![The states, and what leads from one to another](lifecycle.svg)", "")
    rows = ((f"`{a.value}`", event.value, f"`{b.value}`") for (a, event), b in TRANSITIONS.items())
    yield from _table(("state", "event", "next state"), *rows)


PLACES = {
    State.STARTING: (110, 50),
    State.RUNNING: (430, 50),
    State.RELOADING: (750, 50),
    State.STOPPING: (640, 300),
    State.STOPPED: (160, 420),
}
SHORT = {
    Event.SERVE: "serves",
    Event.RELOAD: "reload",
    Event.RETURN: "reload failed",
    Event.STOP: "stop",
    Event.END: "server ended",
}
WIDTH, HEIGHT = 130, 44


def _drawing() -> str:
    """The lifecycle as SVG: a box for each state, an arrow for each way to another state."""
    ways: dict[tuple[State, State], list[str]] = {}
    for (start, event), end in TRANSITIONS.items():
        if start is not end:
            ways.setdefault((start, end), []).append(SHORT[event])
    body = [_arrow(start, end, ", ".join(labels), (end, start) in ways) for (start, end), labels in ways.items()]
    for state, (x, y) in PLACES.items():
        corner = f'x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}"'
        body.append(f'<rect {corner} width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#eef3f8" stroke="#4a6785"/>')
        body.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-weight="bold">{state.value}</text>')
    return "\n".join((_HEAD, *body, "</svg>", ""))


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 470" font-family="sans-serif" font-size="15">
<style>.label { paint-order: stroke; stroke: white; stroke-width: 4px }</style>
<title>The lifecycle of a served app</title>
<defs><marker id="tip" markerWidth="10" markerHeight="8" refX="9" refY="4" orient="auto">
<path d="M0,0 L10,4 L0,8 z" fill="#4a6785"/></marker></defs>
<rect width="860" height="470" fill="white"/>"""


def _arrow(start: State, end: State, label: str, both: bool) -> str:
    """A straight arrow from box to box; of two in opposite directions each keeps to its right."""
    (x1, y1), (x2, y2) = (map(float, PLACES[state]) for state in (start, end))
    length = math.hypot(x2 - x1, y2 - y1)
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    shift = 13 if both else 0
    x1, y1, x2, y2 = x1 - dy * shift, y1 + dx * shift, x2 - dy * shift, y2 + dx * shift
    reach = min(WIDTH / 2 / max(abs(dx), 0.001), HEIGHT / 2 / max(abs(dy), 0.001)) + 3
    ends = (
        f'x1="{x1 + dx * reach:.0f}" y1="{y1 + dy * reach:.0f}" x2="{x2 - dx * reach:.0f}" y2="{y2 - dy * reach:.0f}"'
    )
    x, y = x1 + (x2 - x1) * 0.4, y1 + (y2 - y1) * 0.4
    if dy:
        x, y, anchor = x - 8, y - 4, "end"
    else:
        y, anchor = y - 8 if dx < 0 or not both else y + 20, "middle"
    line = f'<line {ends} stroke="#4a6785" stroke-width="1.5" marker-end="url(#tip)"/>'
    return f'{line}\n<text class="label" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{label}</text>'


if __name__ == "__main__":
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)
