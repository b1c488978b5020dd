"""``flask-ctl top``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import click

from flask_ctl import ConfigurationError, NotRunning

from ..selection import targets
from ..settings import ClientCommand, Settings, settings

if TYPE_CHECKING:
    from ..top.samples import Watched


theme_option = click.option(
    "--theme",
    type=click.Choice(["dark", "light"]),
    help="The colours; the key d changes them. By default as COLORFGBG tells, else dark.",
)


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=["flask-ctl top", "flask-ctl top --all", "flask-ctl top --name shop --theme light"],
)
@theme_option
def top(theme: Literal["dark", "light"] | None) -> None:
    """Watch servers: rates, durations, requests in flight, workers and log records.

    Keys: s stacks, l log records, r reload, x stop (both ask first), d dark or light, q quit; with several instances
    the arrows choose one. Stacks and log records are for the role inspect, reload and stop for operate. It needs a
    terminal, and the extra "top" (pip install 'flask-ctl[top]').
    """
    given = settings()
    view(lambda: _selected(given) if given.selects_many else _only(given), theme)


def view(begin: Callable[[], Callable[[], Sequence[Watched]]], theme: Literal["dark", "light"] | None) -> None:
    """Show the instances that the function which `begin` gives finds, until the user quits.

    Raises UsageError without a terminal, ConfigurationError without Textual.
    """
    # Textual draws on stderr.
    terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if settings().json or not terminal or os.environ.get("TERM") == "dumb":
        raise click.UsageError("top is for a terminal; for programs there are `status --watch --json` and `metrics`")
    try:
        from ..top.app import Top, theme_of_terminal
    except ImportError:
        raise ConfigurationError(
            "the view is drawn by Textual, which is not installed: pip install 'flask-ctl[top]'"
        ) from None
    Top(begin(), theme=theme or theme_of_terminal()).run()


def _only(given: Settings) -> Callable[[], Sequence[Watched]]:
    from ..top.samples import Watched

    # Which one it is, is found once, and told before the view covers the terminal.
    with given.client() as client:
        client.ping()
        given.socket = client.endpoint
    only = [Watched(given.client)]
    return lambda: only


def _selected(given: Settings) -> Callable[[], Sequence[Watched]]:
    from ..top.samples import Watched

    known: dict[tuple[str, int | None], Watched] = {}

    def discover() -> Sequence[Watched]:
        try:
            found = targets(given, whole_server=True)
        except NotRunning:
            found = []
        for target in found:
            if (target.socket, target.pid) not in known:
                known[target.socket, target.pid] = Watched(lambda target=target: target.client(given), target.name)  # type: ignore[misc]
        present = {(target.socket, target.pid) for target in found}
        for gone in known.keys() - present:
            known.pop(gone).close()
        return list(known.values())

    if not discover():
        targets(given)
    return discover
