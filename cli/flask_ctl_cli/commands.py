"""ping, status, stop and call."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from flask_ctl import NotRunning, TimedOut

from .custom import convert
from .group import ControlCommand, settings
from .output import OUTCOME_CODES, print_result

RETRY_INTERVAL = 0.05
"""Seconds between two tries of `ping --wait`."""


@click.command(cls=ControlCommand)
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Try again until it answers.")
def ping(wait: float | None) -> None:
    """Ask whether it answers."""
    answer = _ping_until(time.monotonic() + wait) if wait is not None else _ping(None)
    if not settings().quiet:
        print_result("ping", answer, as_json=settings().json)


def _ping(timeout: float | None) -> dict[str, Any]:
    with settings().client() as client:
        return client.ping() if timeout is None else client.ping(timeout=timeout)


def _ping_until(deadline: float) -> dict[str, Any]:
    silent: TimedOut | None = None
    while True:
        try:
            return _ping(max(RETRY_INTERVAL, deadline - time.monotonic()))
        except TimedOut as error:
            silent = error
        except NotRunning:
            if time.monotonic() >= deadline and silent is None:
                raise
        if time.monotonic() >= deadline and silent is not None:
            raise silent
        time.sleep(RETRY_INTERVAL)


@click.command(cls=ControlCommand)
def status() -> None:
    """Show what it is, does and has done."""
    with settings().client() as client:
        print_result("status", client.status(), as_json=settings().json)


@click.command(cls=ControlCommand)
@click.option(
    "--mode",
    type=click.Choice(["graceful", "fast", "immediate"]),
    default="graceful",
    show_default=True,
    help="Drain; or cut, with hooks and atexit; or cut without.",
)
@click.option("--grace", type=click.FloatRange(min=0), metavar="SECONDS", help="Drain so long.  [default: CTL_GRACE]")
@click.option("--delay", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Accept so long before.")
@click.option("--no-wait", is_flag=True, help="Return once the stop is accepted.")
@click.option("--kill-after", type=click.FloatRange(min=0), metavar="SECONDS", help="Then end the process by SIGKILL.")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 if nothing is running.")
def stop(
    mode: str, grace: float | None, delay: float, no_wait: bool, kill_after: float | None, missing_ok: bool
) -> int:
    """End the server; return when its process is gone.

    Exit codes: 0 every request was finished, 3 nothing is running, 4 it is still there, 6 requests were cut or the
    process was killed.
    """
    line = _ProgressLine(enabled=sys.stderr.isatty() and not settings().quiet)
    try:
        with settings().client() as client:
            result = client.stop(
                mode, grace=grace, delay=delay, wait=not no_wait, kill_after=kill_after, on_progress=line.show
            )
    except NotRunning as error:
        if not missing_ok:
            raise
        settings().say(error.message)
        return 0
    finally:
        line.clear()
    if no_wait:
        _print_accepted(result)
        return 0
    if not settings().quiet:
        print_result("stop", result, as_json=settings().json)
    return OUTCOME_CODES.get(result["outcome"], 1)


def _print_accepted(result: dict[str, Any]) -> None:
    if settings().json:
        print_result("accepted", result, as_json=True)
    elif not settings().quiet:
        click.echo(f"pid {result['pid']} is stopping")


class _ProgressLine:
    """One line on the terminal's stderr that is written over."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._shown = False

    def show(self, progress: Mapping[str, Any]) -> None:
        if self._enabled:
            text = "{phase}: {in_flight} in flight, {remaining:.0f} s left".format_map(progress)
            click.echo(f"\r\033[K{text}", err=True, nl=False)
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\033[K", err=True, nl=False)


@click.command(cls=ControlCommand)
@click.argument("name")
@click.argument("parameters", nargs=-1, metavar="[KEY=VALUE]...")
def call(name: str, parameters: tuple[str, ...]) -> None:
    """Call any command by name."""
    name = name.replace("-", "_")
    texts = dict(map(_assignment, parameters))
    with settings().client() as client:
        described = client.commands().get(name, {}).get("parameters", {}).get("properties", {})
        values = {key: convert(key, described[key], text) if key in described else text for key, text in texts.items()}
        print_result(name, client.call(name, **values), as_json=settings().json)


def _assignment(word: str) -> tuple[str, str]:
    key, separator, value = word.partition("=")
    if not separator or not key.isidentifier():
        raise click.UsageError(f"{word!r} is not of the form KEY=VALUE")
    return key, value


BUILTIN: list[click.Command] = [ping, status, stop, call]
