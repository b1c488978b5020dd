"""What nats-py raises, as our own exceptions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from ..errors import ControlError

SILENT = "the NATS server does not answer, or its JetStream does not; its log may tell why, then try again"

UNAVAILABLE = (
    "JetStream is not available at the moment, as while its servers choose a leader; try again in some seconds"
)

_NO_JETSTREAM = (10039, 10076)
"""The err_codes that say so: for this account, and at all."""


@contextlib.contextmanager
def plain_faults(what: str) -> Iterator[None]:
    """Turns an exception of nats-py into a ControlError: `what` can't be done, and why."""
    from nats import errors

    try:
        yield
    except (errors.Error, asyncio.TimeoutError) as error:
        raise ControlError(f"{what}: {_why(error)}") from None


def is_without_jetstream(error: Exception) -> bool:
    """Whether JetStream is switched off at the servers; one that is only unavailable, as in an election, is not."""
    from nats.js import errors

    if not isinstance(error, errors.ServiceUnavailableError):
        return False
    # Where nobody takes the request, there is no code.
    return error.err_code is None or error.err_code in _NO_JETSTREAM


def _why(error: Exception) -> str:
    from nats.js import errors

    if isinstance(error, asyncio.TimeoutError):
        return SILENT
    if isinstance(error, errors.ServiceUnavailableError) and not is_without_jetstream(error):
        return UNAVAILABLE
    return (str(error) or type(error).__name__).removeprefix("nats: ")
