"""An instance as a micro service of a NATS server (ADR-32): takes in requests, gives answers, renews its presence.

Several agents can share one connection and one loop. What answers the requests is told to an agent as `deliver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..dispatch.commands import ROLES, Role
from ..errors import ConfigurationError
from .buckets import open_presence
from .connection import Connection
from .presence import Presence
from .subjects import (
    ALL,
    ERROR,
    ERROR_CODE,
    FENCE,
    ID,
    INSTANCE,
    KEEP,
    LIFE,
    PART,
    PREFIX,
    PRESENCE,
    SERVICE,
    USER,
    key_of,
    subject_of,
)

HEADERS = 2048
"""Bytes of a message that are left for its headers."""

MARKER_TIME = "60s"
"""For how long the bucket remembers that a presence was removed (ADR-48)."""

_SEMVER = re.compile(r"^(\d+)\.(\d+)(?:\.(\d+))?")

logger = logging.getLogger("flask_ctl")


class Incoming(NamedTuple):
    """A request as it has come."""

    role: Role
    """What its sender may do, by the subject."""
    reply: str
    """Where the answer goes."""
    data: bytes
    """JSON-RPC; empty for a word that the caller still wants the rest."""
    id: str | None = None
    fence: int | None = None
    life: str | None = None
    """The life of the instance that is meant, see `CommandMemory`."""
    user: str | None = None


@dataclass(frozen=True)
class Identity:
    """What never changes in an instance."""

    app: str
    instance: str
    host: str
    pid: int
    version: str
    labels: dict[str, str]

    def metadata(self) -> dict[str, str]:
        """For the service's INFO."""
        labels = {f"label.{name}": value for name, value in self.labels.items()}
        return {"app": self.app, "instance": self.instance, "host": self.host, "pid": str(self.pid), **labels}


Deliver = Callable[[Incoming], Any]


class Agent:
    """One instance at the connected server, from `start` to `stop`; on the connection's loop.

    `deliver` takes each request and returns at once; the answers come by `respond`, as many as there are.
    """

    def __init__(self, connection: Connection, identity: Identity, roles: Sequence[Role], deliver: Deliver) -> None:
        self.roles = roles
        self.presence: Presence | None = None
        """What was told last; STATS has it."""
        self._connection = connection
        self._identity = identity
        self._deliver = deliver
        self._service: Any = None
        self._bucket: Any = None
        self._complained: str | None = None

    async def start(self) -> None:
        """Answer requests from now on. The connection puts the subscriptions back after it was lost."""
        from nats import micro
        from nats.micro.service import EndpointConfig, ServiceConfig

        app, instance = self._identity.app, self._identity.instance
        self._service = await micro.add_service(
            self._connection.client,
            ServiceConfig(
                name=SERVICE,
                version=semantic_version(self._identity.version),
                description="a Flask app under control of flask-ctl",
                metadata=self._identity.metadata(),
                # An empty one becomes "q", and one instance would answer for all.
                queue_group=key_of(app, instance),
                stats_handler=self._stats,
            ),
        )
        endpoints: list[tuple[str, Role, str]] = [(role, role, instance) for role in self.roles]
        endpoints.append((f"observe-{ALL.strip('_')}", "observe", ALL))
        for name, role, at in endpoints:
            await self._service.add_endpoint(
                EndpointConfig(name=name, subject=subject_of(role, app, at), handler=self._handler(role))
            )
        await self._connection.client.flush()

    async def stop(self) -> None:
        """Remove the presence, without waiting for the server to say so: it may hang. The connection ends next."""
        from nats import errors

        subject = f"$KV.{PRESENCE}.{key_of(self._identity.app, self._identity.instance)}"
        headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": MARKER_TIME}
        with contextlib.suppress(errors.Error):
            if self._bucket is not None:
                await self._connection.client.publish(subject, b"", headers=headers)

    async def tell(self, presence: Presence) -> None:
        """Renew the presence; a server that does not take it is told once in the log."""
        from nats import errors

        self.presence = presence = replace(presence, roles=list(self.roles))
        if not self._connection.connected:
            return
        try:
            if self._bucket is None:
                self._bucket = await open_presence(self._connection)
            await self._bucket.put(key_of(presence.app, presence.instance), presence.encoded())
            self._complained = None
        except (errors.Error, asyncio.TimeoutError, ConfigurationError) as error:
            # Another server may be the leader by now, or the bucket was removed, or there is none to be had.
            self._bucket = None
            self._complain(str(error) or type(error).__name__)

    async def respond(self, reply: str, data: bytes, error: tuple[int, str] | None = None) -> None:
        """Send an answer, in parts if it is too long for the server; `error` is its code and message."""
        headers = {INSTANCE: self._identity.instance}
        if error is not None:
            # Of what a client has sent it may hold a half of a surrogate pair.
            message = " ".join(error[1].split())[:200].encode(errors="replace").decode()
            headers |= {ERROR_CODE: str(error[0]), ERROR: message}
        size = max(1, self._connection.client.max_payload - HEADERS)
        parts = max(1, -(-len(data) // size))
        for number in range(parts):
            part = {} if parts == 1 else {PART: f"{number + 1}/{parts}"}
            piece = data[number * size : (number + 1) * size]
            await self._connection.client.publish(reply, piece, headers={**headers, **part})

    def _handler(self, role: Role) -> Callable[[Any], Any]:
        async def handle(request: Any) -> None:
            message, headers = request._msg, request.headers or {}
            if not self._is_inbox(message.reply):
                return
            fence = headers.get(FENCE, "")
            self._deliver(
                Incoming(
                    role,
                    message.reply,
                    b"" if KEEP in headers else message.data,
                    headers.get(ID),
                    int(fence) if fence.isascii() and fence.isdigit() else None,
                    headers.get(LIFE),
                    headers.get(USER),
                )
            )

        return handle

    def _is_inbox(self, reply: str) -> bool:
        """Whether an answer may go there; without one, a command can't be told from a lost one.

        Otherwise who may only observe could have us write where we may, and he not: into buckets, and to instances.
        """
        return bool(reply) and not reply.startswith(("$", f"{PREFIX}."))

    def _stats(self, endpoint: Any) -> dict[str, Any]:
        told = self.presence
        if told is None:
            return {}
        return {name: getattr(told, name) for name in ("state", "generation", "in_flight", "requests", "rss")}

    def _complain(self, reason: str) -> None:
        if self._complained != reason:
            self._complained = reason
            logger.warning("the presence of %s can't be renewed: %s", self._identity.instance, reason)


def semantic_version(version: str) -> str:
    """A version as SemVer, which a service needs: its numbers; what else it has is left out."""
    found = _SEMVER.match(version)
    return ".".join(number or "0" for number in found.groups()) if found else "0.0.0"


def roles_up_to(role: Role) -> list[Role]:
    """The roles that it includes."""
    return list(ROLES[: ROLES.index(role) + 1])
