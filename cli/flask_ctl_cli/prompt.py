"""The lines of a shell: from a pipe, or from a terminal, by prompt_toolkit, with completion and a history."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import click

from flask_ctl import masked_text, printable

from .session import ENDS, Read

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History


def lines_of(stream: IO[str], name: str) -> Read:
    """Reads the lines of standard input; on a terminal with a prompt that begins with `name`.

    Raises UsageError without prompt_toolkit.
    """
    return _typed(name) if stream.isatty() else lambda code: stream.readline() or None


def _typed(name: str) -> Read:
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        raise click.UsageError("the prompt needs prompt_toolkit: pip install 'flask-ctl[cli]'") from None
    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=_completer(),
        # Only for the Tab key: the server is asked for it.
        complete_while_typing=False,
        complete_in_thread=True,
        enable_open_in_editor=False,
    )
    # The name is the server's own word.
    label = printable(name, keep="")

    def read(code: int) -> str | None:
        try:
            return session.prompt(f"{label} [{code}]> " if code else f"{label}> ")
        except KeyboardInterrupt:
            # Like an empty line.
            return ""
        except EOFError:
            return None

    return read


def _history() -> History:
    """A file that only this user can read, of lines without secrets; where that is not possible, nothing that stays."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class MaskedHistory(FileHistory):
        def store_string(self, string: str) -> None:
            # The disk may be full.
            with suppress(OSError):
                super().store_string(masked_text(string))

    state = os.environ.get("XDG_STATE_HOME", "")
    directory = os.path.join(state if os.path.isabs(state) else os.path.expanduser("~/.local/state"), "flask-ctl")
    path = os.path.join(directory, "history")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError:
        return InMemoryHistory()
    return MaskedHistory(path)


def _completer() -> Completer:
    from click.shell_completion import split_arg_string
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    from .completion import OfServers
    from .main import cli

    words = OfServers(cli, {}, "flask-ctl", "")
    files = PathCompleter(expanduser=True)

    class CommandCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            args = split_arg_string(text)
            incomplete = args.pop() if args and not text[-1].isspace() else ""
            for item in _offered(words, args, incomplete):
                if item.type == "plain":
                    yield Completion(item.value, start_position=-len(incomplete), display_meta=item.help or "")
                else:
                    yield from files.get_completions(Document(incomplete), complete_event)

    return CommandCompleter()


ELSEWHERE = ("run", "shell")
"""Commands that a shell does not have."""


def _offered(words: Any, args: list[str], incomplete: str) -> list[Any]:
    """What click offers, without what the shell does not have."""
    # The Tab key shows no error.
    with suppress(Exception):
        found = [item for item in words.get_completions(args, incomplete) if args or item.value not in ELSEWHERE]
        if not args:
            from click.shell_completion import CompletionItem

            found += [CompletionItem(word) for word in ENDS if word.startswith(incomplete)]
        return found
    return []
