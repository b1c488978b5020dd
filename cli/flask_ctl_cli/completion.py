"""Shell completion: the scripts of the shells, and the words that only a running server knows.

The Tab key must neither wait for a server that hangs nor show an error.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from typing import Any

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from flask_ctl import live_instances

from .custom import without_null

TIMEOUT = 0.15
"""Seconds to wait for all instances, or for one."""

_SAFE = re.compile(r"[\w.,:/@%+=-]+")
"""Words that no shell takes for anything else than a word."""

LIMIT = 2.0
"""Seconds after which the program ends without a word, whatever it waits for, such as the address of a host."""


def begin(instruction: str) -> None:
    """Prepare this process for what a shell wants, such as ``bash_complete``: it prints no error, and ends in time."""
    if instruction.endswith("_complete"):
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, LIMIT)


class OfServers(ShellComplete):
    """Offers only words that need no quotes, each on one line: they may be a server's, which is not to be trusted."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        found = [item for item in found if item.type != "plain" or _SAFE.fullmatch(item.value)]
        for item in found:
            item.help = item.help and " ".join(item.help.split())
        return found


@add_completion_class
class _Bash(OfServers, BashComplete):
    # The program may have been removed. No word is a pattern of files. After KEY= no space follows.
    source_template = (
        BashComplete.source_template.replace("_complete $1)", "_complete $1 2>/dev/null)")
        .replace("    local response\n", "    local response -\n    set -f\n")
        .replace(
            "            COMPREPLY+=($value)\n",
            '            COMPREPLY+=("$value")\n            [[ $value == *= ]] && compopt -o nospace\n',
        )
    )


@add_completion_class
class _Zsh(OfServers, ZshComplete):
    source_template = ZshComplete.source_template.replace(
        "_complete %(prog_name)s)}", "_complete %(prog_name)s 2>/dev/null)}"
    )


@add_completion_class
class _Fish(OfServers, FishComplete):
    source_template = FishComplete.source_template.replace(" %(prog_name)s);", " %(prog_name)s 2>/dev/null);")


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def items(words: Mapping[str, str | None], incomplete: str) -> list[CompletionItem]:
    """The words that begin like the incomplete one, each with its explanation."""
    return [CompletionItem(word, help=text) for word, text in words.items() if word.startswith(incomplete)]


def sockets(incomplete: str) -> list[CompletionItem]:
    """The sockets of live instances that begin so, or whose app's name does; and files."""
    found = []
    for instance in live_instances(TIMEOUT):
        name = str((instance.status or {}).get("app", ""))
        if instance.socket.startswith(incomplete) or (name and name.startswith(incomplete)):
            found.append(CompletionItem(instance.socket, help=instance.describe().partition("  ")[2]))
    return [*found, CompletionItem(incomplete, type="file")]


def assignments(description: Mapping[str, Any], incomplete: str) -> list[CompletionItem]:
    """``KEY=`` for each parameter of a command, after that ``KEY=VALUE`` where the values are listed."""
    schemas = description.get("parameters", {}).get("properties", {})
    key, separator, _ = incomplete.partition("=")
    if not separator:
        return items({f"{name}=": None for name in schemas}, incomplete)
    schema = without_null(schemas.get(key, {}))
    values = {"boolean": ["true", "false"]}.get(schema.get("type", ""), schema.get("enum", []))
    return items({f"{key}={value}": None for value in values}, incomplete)
