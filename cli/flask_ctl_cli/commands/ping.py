"""``flask-ctl ping``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from flask_ctl import (
    AccessDenied,
    ConfigurationError,
    ControlError,
    LocalProtocolError,
    NotRunning,
    TimedOut,
    WrongScheme,
)

from ..output import print_result
from ..settings import ClientCommand, Seconds, settings

RETRY_INTERVAL = 0.05
"""Seconds between two tries of `ping --wait`."""

WATCHED_TIMEOUT = 1.0
"""Seconds for one answer while the end of a process is watched for, too."""

_FINAL = (ConfigurationError, LocalProtocolError, AccessDenied, WrongScheme)
"""Errors that no waiting mends."""


@click.command(cls=ClientCommand)
@click.option("--wait", type=Seconds(), metavar="SECONDS", help="Try again until it answers.")
@click.option("--pid", type=click.IntRange(min=1), help="Stop waiting when this process has ended.")
def ping(wait: float | None, pid: int | None) -> None:
    """Ask whether it answers.

    With --wait: exit code 3 if nothing ever listened, or the process of --pid has ended, 4 if it stayed silent.
    """
    if wait is None:
        if pid is not None:
            raise click.UsageError("--pid is for --wait")
        answer = _ping(settings().timeout)
    else:
        settings().patience = "--wait"
        answer = _ping_until(time.monotonic() + wait, pid)
    if settings().json or not settings().quiet:
        print_result("ping", answer, as_json=settings().json)


def _ping(timeout: float | None) -> dict[str, Any]:
    with settings().client() as client:
        return client.ping() if timeout is None else client.ping(timeout=timeout)


def _ping_until(deadline: float, pid: int | None) -> dict[str, Any]:
    silent: TimedOut | None = None
    has_ended = _end_of(pid)
    while True:
        remaining = max(RETRY_INTERVAL, deadline - time.monotonic())
        if pid is not None:
            remaining = min(remaining, WATCHED_TIMEOUT)
        # Asked before the try, so that an answer that the process gave at last is not missed.
        over = has_ended()
        try:
            return _ping(min(remaining, settings().timeout or remaining))
        except _FINAL:
            raise
        except ControlError as error:
            silent = error if isinstance(error, TimedOut) else silent
            if over and not isinstance(error, TimedOut):
                raise NotRunning(f"pid {pid} has ended; {error.message}", error.data) from None
            if time.monotonic() >= deadline:
                raise silent or error from None
        time.sleep(RETRY_INTERVAL)


def _end_of(pid: int | None) -> Callable[[], bool]:
    """What tells whether a process has ended; a zombie has. Never without a pid."""
    if pid is None:
        return lambda: False
    import psutil

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return lambda: True

    def has_ended() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return has_ended
