"""What peers can grow at most: every limit with its reason, and the settings that change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError

MAX_CONNECTIONS = 256
"""At one address: far more than an app has controllers, and a quarter of the descriptors that a process often has."""

MAX_PENDING = 64
"""Commands of one connection that have not been answered; the next is read when one is."""

MAX_QUEUE = 64
"""Custom commands that wait for one of the four threads."""

MAX_REFUSALS = 10
"""Refused commands of one peer in REFUSAL_WINDOW: a person who errs has fewer, a program that tries has more."""

REFUSAL_WINDOW = 10.0
"""Seconds."""

MAX_REFUSED_PEERS = 256
"""Peers whose refusals are counted at the same time."""


@dataclass(frozen=True)
class Limits:
    """The limits of one app."""

    connections: int = MAX_CONNECTIONS
    pending: int = MAX_PENDING
    queue: int = MAX_QUEUE
    refusals: int = MAX_REFUSALS

    @classmethod
    def from_config(cls, setting: Callable[[str], Any]) -> Limits:
        """Limits with the values of `setting("CTL_MAX_…")`. Raises ConfigurationError for an invalid value."""
        names = ("CTL_MAX_CONNECTIONS", "CTL_MAX_PENDING", "CTL_MAX_QUEUE", "CTL_MAX_REFUSALS")
        return cls(*(whole_number(name, setting(name)) for name in names))


def whole_number(name: str, value: Any, *, at_least: int = 1) -> int:
    """The value of a setting. Raises ConfigurationError if it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigurationError(f"{name} has to be a whole number, {at_least} or more, not {value!r}")
    return value
