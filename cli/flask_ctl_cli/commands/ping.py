"""``flask-ctl ping``."""

from __future__ import annotations

import time
from typing import Any

import click

from flask_ctl import AccessDenied, ConfigurationError, ControlError, LocalProtocolError, TimedOut

from ..output import print_result
from ..settings import ClientCommand, Seconds, settings

RETRY_INTERVAL = 0.05
"""Seconds between two tries of `ping --wait`."""

_FINAL = (ConfigurationError, LocalProtocolError, AccessDenied)
"""Errors that no waiting mends."""


@click.command(cls=ClientCommand)
@click.option("--wait", type=Seconds(), metavar="SECONDS", help="Try again until it answers.")
def ping(wait: float | None) -> None:
    """Ask whether it answers.

    With --wait: exit code 3 if nothing ever listened, 4 if it stayed silent.
    """
    if wait is not None:
        settings().patience = "--wait"
    answer = _ping(settings().timeout) if wait is None else _ping_until(time.monotonic() + wait)
    if settings().json or not settings().quiet:
        print_result("ping", answer, as_json=settings().json)


def _ping(timeout: float | None) -> dict[str, Any]:
    with settings().client() as client:
        return client.ping() if timeout is None else client.ping(timeout=timeout)


def _ping_until(deadline: float) -> dict[str, Any]:
    silent: TimedOut | None = None
    while True:
        remaining = max(RETRY_INTERVAL, deadline - time.monotonic())
        try:
            return _ping(min(remaining, settings().timeout or remaining))
        except _FINAL:
            raise
        except ControlError as error:
            silent = error if isinstance(error, TimedOut) else silent
            if time.monotonic() >= deadline:
                raise silent or error from None
        time.sleep(RETRY_INTERVAL)
