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

from ..many import for_each
from ..output import print_result
from ..settings import ClientCommand, Seconds, settings

RETRY_INTERVAL = 0.05
"""Seconds between two attempts of `ping --wait`."""

WATCHED_TIMEOUT = 1.0
"""Seconds that one attempt waits for an answer with --pid, so that the end of the process is noticed."""

_NOT_RETRIED = (ConfigurationError, LocalProtocolError, AccessDenied, WrongScheme)
"""Errors that do not go away by waiting."""


@click.command(
    cls=ClientCommand, role="observe", examples=["flask-ctl ping --wait 10", "flask-ctl ping --wait 10 --pid $!"]
)
@click.option(
    "--wait", type=Seconds(), metavar="SECONDS", help="Try again, for at most this long, until the server answers."
)
@click.option("--pid", type=click.IntRange(min=1), help="Stop waiting when this process has ended.")
def ping(wait: float | None, pid: int | None) -> None:
    """Check that the server answers.

    With --wait: exit code 3 if nothing listened, or the process of --pid has ended; 4 if the server did not answer.
    """
    if wait is None:
        if pid is not None:
            raise click.UsageError("--pid can only be given with --wait")
        if settings().selects_many:
            for_each("ping", lambda client: client.ping(), quiet=settings().quiet)
        answer = _ping(settings().timeout)
    else:
        settings().wait_option = "--wait"
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
        # Checked before the attempt, so that a last answer of the process is not missed.
        over = has_ended()
        try:
            return _ping(min(remaining, settings().timeout or remaining))
        except _NOT_RETRIED:
            raise
        except ControlError as error:
            silent = error if isinstance(error, TimedOut) else silent
            if over and not isinstance(error, TimedOut):
                raise NotRunning(f"pid {pid} has ended; {error.message}", error.data) from None
            if time.monotonic() >= deadline:
                raise silent or error from None
        time.sleep(RETRY_INTERVAL)


def _end_of(pid: int | None) -> Callable[[], bool]:
    """A function that tells whether the process has ended, as a zombie has; always False without a pid."""
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
