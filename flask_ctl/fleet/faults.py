"""What nats-py raises, as our own exceptions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from ..errors import ControlError


@contextlib.contextmanager
def plain_faults(what: str) -> Iterator[None]:
    """Turns an exception of nats-py into a ControlError: `what` can't be done, and why."""
    from nats import errors

    try:
        yield
    except (errors.Error, asyncio.TimeoutError) as error:
        why = "the NATS server does not answer" if isinstance(error, asyncio.TimeoutError) else str(error)
        raise ControlError(f"{what}: {(why or type(error).__name__).removeprefix('nats: ')}") from None
