"""Which instances there are: by their presences, or where there are none by who answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ..errors import RemoteProtocolError
from .buckets import READ_TIMEOUT, Entry, read_entries
from .connection import Connection
from .faults import is_without_jetstream, plain_faults
from .presence import Presence, is_lost, read_presence
from .subjects import PRESENCE, SERVICE, key_of

SILENCE = 0.3
"""Seconds without another answer, after which nobody else is expected; only where nothing tells who is missing."""

WRONG_REVISION = 10071
"""JetStream's code of an error: somebody else has written the entry."""


@dataclass(frozen=True)
class FleetInstance:
    """An instance, and how many seconds ago it was heard of."""

    presence: Presence
    age: float = 0.0
    revision: int = 0
    """Of the presence in its bucket."""

    @property
    def app(self) -> str:
        return self.presence.app

    @property
    def instance(self) -> str:
        """Its name among all instances of the app."""
        return self.presence.instance

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.app, self.instance

    @property
    def lost(self) -> bool:
        """Whether it has died, or has lost its server."""
        return is_lost(self.age, self.presence.interval)


@dataclass(frozen=True)
class Roster:
    """The instances, sorted; `complete` is False where nothing tells who is missing."""

    instances: list[FleetInstance]
    complete: bool = True


async def read_roster(connection: Connection) -> Roster:
    """All instances, as far as the server lets us know. Raises ControlError."""
    with plain_faults("who is there can't be read"):
        bucket = await presences(connection)
        if bucket is None:
            return Roster(_sorted(await _answering(connection)), complete=False)
        now, entries = await asyncio.gather(_now(connection), read_entries(connection.client, PRESENCE))
    return Roster(_sorted(_instances(entries, now)))


async def read_one(connection: Connection, app: str, instance: str) -> Presence | None:
    """The presence of one instance; None if it has none. Raises ControlError, and LookupError without the bucket."""
    from nats.js import errors

    with plain_faults(f"the presence of {instance} can't be read"):
        bucket = await presences(connection)
        if bucket is None:
            raise LookupError
        key = key_of(app, instance)
        try:
            entry = await bucket.get(key)
        except errors.KeyNotFoundError:
            return None
    return _presence_at(key, entry.value)


def _presence_at(key: str, value: bytes) -> Presence:
    """The presence in an entry. Raises RemoteProtocolError if it is none, or that of another key.

    The servers' permissions are for keys: who may write those of one app must not speak for another.
    """
    presence = read_presence(value)
    if key_of(presence.app, presence.instance) != key:
        raise RemoteProtocolError(f"the presence at {key} is of another instance")
    return presence


async def forget(connection: Connection, one: FleetInstance) -> bool:
    """Remove the presence of a lost instance; False if it was heard of meanwhile. Raises ControlError."""
    from nats.js import errors

    with plain_faults(f"{one.instance} can't be forgotten"):
        bucket = await presences(connection)
        try:
            await bucket.delete(key_of(one.app, one.instance), last=one.revision)
        except errors.APIError as error:
            if error.err_code != WRONG_REVISION:
                raise
            return False
    return True


async def presences(connection: Connection) -> Any:
    """The bucket; None if there is none, because no instance could make it."""
    from nats.js import errors

    try:
        return await connection.client.jetstream(timeout=READ_TIMEOUT).key_value(PRESENCE)
    except errors.BucketNotFoundError:
        return None
    except errors.ServiceUnavailableError as error:
        if not is_without_jetstream(error):
            raise
        return None


async def _now(connection: Connection) -> datetime:
    """The server's time, by which the ages are measured; ours where it does not tell."""
    text = (await connection.who()).get("time", "")
    try:
        # Nanoseconds are more than older versions of Python read.
        return datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        return datetime.now(timezone.utc)


def _instances(entries: Iterable[Entry], now: datetime) -> Iterable[FleetInstance]:
    for entry in entries:
        try:
            presence = _presence_at(entry.key, entry.value)
        except RemoteProtocolError:
            # Of a version that we don't know, or somebody else's.
            continue
        yield FleetInstance(presence, max(0.0, (now - entry.created).total_seconds()), entry.revision)


async def _answering(connection: Connection) -> Iterable[FleetInstance]:
    """Those that answer as services, by what never changes in them, and their figures of the moment."""
    found: dict[str, FleetInstance] = {}
    inbox = connection.client.new_inbox()
    subscription = await connection.client.subscribe(inbox)
    try:
        await connection.client.publish(f"$SRV.INFO.{SERVICE}", b"", reply=inbox)
        while True:
            message = await subscription.next_msg(timeout=SILENCE)
            if (one := _of_info(message.data)) is not None:
                found[f"{one.app}.{one.instance}"] = one
    except asyncio.TimeoutError:
        return found.values()
    finally:
        await subscription.unsubscribe()


def _of_info(data: bytes) -> FleetInstance | None:
    try:
        info = json.loads(data)
        told = dict(info["metadata"])
        app, instance, host, pid = (told.pop(name) for name in ("app", "instance", "host", "pid"))
        labels = {name.partition(".")[2]: value for name, value in told.items() if name.startswith("label.")}
        roles = [each["name"] for each in info["endpoints"] if each["name"] in ("observe", "inspect", "operate")]
        presence = Presence(app, instance, host, int(pid), 0, "unknown", "", info["version"], roles, labels)
    except (ValueError, KeyError, TypeError):
        return None
    return FleetInstance(presence)


def _sorted(instances: Iterable[FleetInstance]) -> list[FleetInstance]:
    return sorted(instances, key=lambda one: (one.app, one.presence.host, one.instance))
