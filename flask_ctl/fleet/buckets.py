"""The buckets of JetStream's key-value store. The first client that needs one creates it."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ConfigurationError
from .connection import Connection
from .presence import FORGOTTEN_AFTER
from .subjects import LEASES, PRESENCE, ROLLOUTS

LEASE_TIME = 30.0
"""Seconds after which a lease that is not renewed is free."""

MIN_LEVEL = 1
"""The least level of JetStream's API: that of server 2.11."""

REPLICAS = 3
"""Of a bucket, in a cluster of that many servers."""

_MAX_AGES = {PRESENCE: FORGOTTEN_AFTER, LEASES: LEASE_TIME, ROLLOUTS: None}


async def open_presence(connection: Connection) -> Any:
    """The bucket of presences. Raises like `open_bucket`."""
    return await open_bucket(connection, PRESENCE)


async def open_bucket(connection: Connection, name: str) -> Any:
    """The bucket with that name.

    Raises ConfigurationError if it has another form than ours, or the servers have no JetStream that can be used.
    """
    from nats import js
    from nats.js import errors

    context = connection.client.jetstream(timeout=5)
    try:
        return await _checked(name, await context.key_value(name))
    except errors.BucketNotFoundError:
        pass
    except errors.ServiceUnavailableError:
        raise ConfigurationError("the NATS server has no JetStream; switch it on by: jetstream {}") from None
    await _check_level(connection)
    config = js.api.KeyValueConfig(bucket=name, history=1, ttl=_MAX_AGES[name], direct=True)
    try:
        return await _create(context, config, REPLICAS if connection.info.get("cluster") else 1)
    except errors.BadRequestError:
        # Somebody else has created it meanwhile.
        return await _checked(name, await context.key_value(name))


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
            f"the bucket {name} was not made by flask-ctl: its entries live for {age} s, not {_MAX_AGES[name]} s"
        )
    return bucket


async def _check_level(connection: Connection) -> None:
    answer = await connection.client.request("$JS.API.INFO", b"", timeout=5)
    level = json.loads(answer.data).get("api", {}).get("level", 0)
    if level < MIN_LEVEL:
        raise ConfigurationError("control over NATS needs nats-server 2.11 or later in the whole cluster")
