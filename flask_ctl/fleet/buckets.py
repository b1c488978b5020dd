"""The buckets of JetStream's key-value store. The first client that needs one creates it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import ConfigurationError
from .connection import Connection
from .faults import is_without_jetstream
from .presence import FORGOTTEN_AFTER
from .subjects import LEASES, PRESENCE, ROLLOUTS

LEASE_TIME = 30.0
"""Seconds after which a lease that is not renewed is free."""

MIN_LEVEL = 1
"""The least level of JetStream's API: that of server 2.11."""

REPLICAS = 3
"""Of a bucket, in a cluster of that many servers."""

READ_TIMEOUT = 5.0
"""Seconds for a bucket to be read."""

TAKE_TIMEOUT, TAKE_INTERVAL = 5.0, 0.1
"""Seconds for a bucket that has just been created to be known to each server of a cluster, and between two tries."""

LOOK_INTERVAL = 0.5
"""Seconds without the last entry, after which the server is asked whether there is one still."""

CONSUMER_TIMEOUT = 5.0
"""Seconds after which the server forgets a consumer that nobody reads; it keeps a thousand of them."""

_REMOVED = ("KV-Operation", "Nats-Marker-Reason")
"""Headers of what is written in the place of a removed entry: ADR-8, ADR-48."""

_MAX_AGES = {PRESENCE: FORGOTTEN_AFTER, LEASES: LEASE_TIME, ROLLOUTS: None}


@dataclass(frozen=True)
class Entry:
    """An entry of a bucket, and when the server has got it."""

    key: str
    value: bytes
    revision: int
    created: datetime


async def open_presence(connection: Connection) -> Any:
    """The bucket of presences. Raises like `open_bucket`."""
    return await open_bucket(connection, PRESENCE)


async def open_bucket(connection: Connection, name: str) -> Any:
    """The bucket with that name.

    Raises ConfigurationError if it has another form than ours, or the servers have no JetStream that can be used, and
    what nats-py raises.
    """
    from nats import js
    from nats.js import errors

    context = connection.client.jetstream(timeout=READ_TIMEOUT)
    try:
        return await _checked(name, await context.key_value(name))
    except errors.BucketNotFoundError:
        pass
    except errors.ServiceUnavailableError as error:
        if not is_without_jetstream(error):
            raise
        raise ConfigurationError("the NATS server has no JetStream; switch it on by: jetstream {}") from None
    await _check_level(connection)
    config = js.api.KeyValueConfig(bucket=name, history=1, ttl=_MAX_AGES[name], direct=True)
    try:
        return await _create(context, config, REPLICAS if connection.info.get("cluster") else 1)
    except errors.BadRequestError:
        # Somebody else has created it meanwhile.
        return await _checked(name, await context.key_value(name))


async def taken(write: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a write, which is tried again while no server knows the bucket: then nothing has been done."""
    from nats.js import errors

    loop = asyncio.get_running_loop()
    limit = loop.time() + TAKE_TIMEOUT
    while True:
        try:
            return await write()
        except errors.NoStreamResponseError:
            if loop.time() > limit:
                raise
        await asyncio.sleep(TAKE_INTERVAL)


async def read_entries(client: Any, name: str, *, values: bool = True) -> list[Entry]:
    """All entries of that bucket; without `values` these are empty. Raises TimeoutError and errors of nats-py.

    The watcher of nats-py takes a bucket for empty if the server has sent all entries before they are looked for.
    """
    from nats.js import api

    arrived: list[Any] = []
    complete = asyncio.Event()

    async def take(message: Any) -> None:
        arrived.append(message)
        if not message.metadata.num_pending:
            complete.set()

    subscription = await client.jetstream(timeout=READ_TIMEOUT).subscribe(
        f"$KV.{name}.>", stream=f"KV_{name}", cb=take, ordered_consumer=True, headers_only=not values,
        deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT, inactive_threshold=CONSUMER_TIMEOUT,
    )  # fmt: skip
    try:
        await asyncio.wait_for(_wait_for_all(subscription, arrived, complete), READ_TIMEOUT)
    finally:
        await subscription.unsubscribe()
    prefix = len(f"$KV.{name}.")
    return [
        Entry(message.subject[prefix:], message.data, message.metadata.sequence.stream, message.metadata.timestamp)
        for message in arrived
        if not any(header in _REMOVED for header in message.headers or ())
    ]


async def _wait_for_all(subscription: Any, arrived: list[Any], complete: asyncio.Event) -> None:
    while not complete.is_set():
        info = await subscription.consumer_info()
        # The server may have removed an entry before it was sent.
        if not info.num_pending and info.delivered.consumer_seq <= len(arrived):
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(complete.wait(), LOOK_INTERVAL)


async def _create(context: Any, config: Any, replicas: int) -> Any:
    from nats.js import errors

    config.replicas = replicas
    try:
        return await context.create_key_value(config)
    except errors.APIError as error:
        # 10005, 10074: fewer servers than replicas.
        if replicas == 1 or error.err_code not in (10005, 10074):
            raise
        return await _create(context, config, 1)


async def _checked(name: str, bucket: Any) -> Any:
    age = (await bucket.status()).stream_info.config.max_age or None
    if age != _MAX_AGES[name]:
        raise ConfigurationError(
            f"the bucket {name} was not made by flask-ctl: its entries live {_lasting(age)}, not"
            f" {_lasting(_MAX_AGES[name])}; set the max age of its stream, KV_{name}, to that by: nats stream edit"
        )
    return bucket


def _lasting(age: float | None) -> str:
    return "for ever" if age is None else f"for {age:g} s"


async def _check_level(connection: Connection) -> None:
    answer = await connection.client.request("$JS.API.INFO", b"", timeout=READ_TIMEOUT)
    level = json.loads(answer.data).get("api", {}).get("level", 0)
    if level < MIN_LEVEL:
        raise ConfigurationError("control over NATS needs nats-server 2.11 or later in the whole cluster")
