"""``flask-ctl status``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from flask_ctl import ControlError

from ..many import ask_each, first_of
from ..output import print_json, print_result, write
from ..selection import targets
from ..settings import ClientCommand, settings
from ..terminal import columns
from ..watching import show, watch_option

if TYPE_CHECKING:
    from flask_ctl import ControlClient

RECORDS = 5
"""Log records behind the status on a terminal."""


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=["flask-ctl status", "flask-ctl status --watch 2", "flask-ctl status --json --socket /tmp/shop.sock"],
)
@watch_option
def status(watch: float | None) -> None:
    """Show the server's state, requests, workers and last reload.

    On a terminal the last log records follow, for callers with the role inspect.

    With --watch: exit code 3 when the server has ended.
    """
    if settings().selects_many and watch is None:
        _show_many()
    with settings().client() as client:
        show("status", client.status if watch is not None else lambda: client.status(policy=True), watch)
        if watch is None and not settings().json and sys.stdout.isatty():
            _show_last_records(client)


def _show_many() -> NoReturn:
    """The table of `ls`; with --json the status of each."""
    from dataclasses import replace

    from flask_ctl import LiveInstance

    chosen = targets(settings())
    answers = ask_each(lambda client: client.status(policy=True), chosen)
    if settings().json:
        print_json([answer.as_json() for answer in answers])
    else:
        rows = []
        for target, answer in zip(chosen, answers):
            known = target.instance or LiveInstance(target.socket, None)
            problem = "" if answer.error is None else answer.error.message
            rows.append(replace(known, status=answer.result, problem=problem).as_dict())
        print_result("ls", rows, as_json=False)
    raise click.exceptions.Exit(first_of(answer.code for answer in answers))


def _show_last_records(client: ControlClient) -> None:
    """The first line of each; nothing for a caller who may not inspect, or if the server is too old for it."""
    from flask_ctl import render_message

    # What was asked for has been shown.
    with contextlib.suppress(ControlError):
        records = [message for message in client.follow("logs", lines=RECORDS) if "time" in message]
        width = columns(sys.stdout)
        for record in records:
            line = render_message("logs", record).partition("\n")[0]
            write(f"{line[: width - 1] + '…' if width and len(line) > width else line}\n")
