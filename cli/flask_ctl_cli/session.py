"""The commands of a shell, one after another, each with its exit code."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from types import TracebackType
from typing import Any, Optional

import click

from flask_ctl import ControlClient

from .settings import Settings

Read = Callable[[int], Optional[str]]
"""Reads a line, None at the end; it gets the exit code of the line before."""

ENDS = ("exit", "quit")


class KeptClient(ControlClient):
    """A client whose connection stays from one `with` block to the next, until `end`."""

    @classmethod
    def of(cls, given: Settings) -> KeptClient:
        """For the address and the trust of these settings."""
        options: dict[str, Any] = {} if given.timeout is None else {"timeout": given.timeout}
        return cls(given.socket, owner=given.owner, client_key=given.client_key, server_key=given.server_key, **options)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None and not isinstance(exc, click.exceptions.Exit):
            # An answer may still come, and be taken for the next command's.
            self.close()


def run_all(read: Read) -> int:
    """Run the commands that `read` gives; the exit code of the last one."""
    code = 0
    while (line := read(code)) is not None and line.strip() not in ENDS:
        code = run_line(line, code)
    return code


def run_line(line: str, before: int = 0) -> int:
    """Run one command; its exit code, for an empty line or a comment that of the command `before`."""
    if not line.strip() or line.lstrip().startswith("#"):
        return before
    from .main import cli

    try:
        words = shlex.split(line)
        if words[:1] == ["flask-ctl"]:
            # As it stands in the documentation.
            words = words[1:]
        with cli.make_context("flask-ctl", words) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except ValueError as error:
        click.echo(f"Error: {error}: {line}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Aborted!", err=True)
        return 1
    return 0
