"""Who is there: the records that instances renew in a bucket, and what their age tells.

An instance removes its record when it ends. The record of an instance that has died stays: after LOST_AFTER the
instance counts as lost, and after FORGOTTEN_AFTER the server removes the record. A watcher of the bucket is not told
of that (ADR-8), so readers look at the record's age.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from ..errors import RemoteProtocolError
from ..protocol.typed import from_json

INTERVAL = 10.0
"""Seconds between two renewals."""

LOST_AFTER = 3 * INTERVAL + 5.0
"""Seconds without a renewal."""

MAX_INTERVAL = 120.0
"""The longest interval between two renewals that a record may claim: one that has died must be seen to be lost."""

FORGOTTEN_AFTER = 24 * 3600.0
"""Seconds after which a lost instance is forgotten."""


@dataclass(frozen=True)
class Presence:
    """What an instance tells of itself."""

    app: str
    instance: str
    """Its name among all instances of the app, the same over a reload."""
    host: str
    pid: int
    generation: int
    state: str
    started_at: str
    version: str
    """Of flask-ctl."""
    roles: list[str] = field(default_factory=list)
    """Those whose requests it takes."""
    labels: dict[str, str] = field(default_factory=dict)
    in_flight: int = 0
    requests: int = 0
    """Since the start."""
    rss: int | None = None
    """Bytes of the process that answers for it."""
    interval: float = INTERVAL
    life: str = ""
    """What tells its memory of commands from that of another process with this name; the same over a reload."""

    def encoded(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def read_presence(data: bytes) -> Presence:
    """The record in a bucket. Raises RemoteProtocolError if it is none."""
    try:
        value = json.loads(data)
    except ValueError:
        raise RemoteProtocolError("the presence of an instance is no JSON") from None
    presence: Presence = from_json(Presence, value, "the presence of an instance")
    return presence


def is_lost(age: float, interval: float = INTERVAL) -> bool:
    """Whether an instance whose record is so many seconds old has died, or has lost the server."""
    return age > max(LOST_AFTER, 3 * min(interval, MAX_INTERVAL) + 5.0)
