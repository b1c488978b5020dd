"""The records of rollouts in their bucket. On the connection's loop."""

from __future__ import annotations

import json
import zlib
from typing import Any

from ..errors import ConfigurationError, RemoteProtocolError
from .buckets import READ_TIMEOUT, read_entries, taken
from .faults import plain_faults
from .subjects import ROLLOUTS

MAX_RECORDS = 100
"""The oldest are removed."""

MAX_ATTEMPTS = 16
"""Of what was tried to be written, so many are known while no answer comes."""

Document = dict[str, Any]


class Archive:
    """The records by their ids, each a JSON document, packed by zlib: it has to fit one message."""

    def __init__(self, client: Any, bucket: Any) -> None:
        self._client = client
        self._bucket = bucket
        self._revisions: dict[str, int] = {}
        self._attempts: dict[str, list[bytes]] = {}

    async def ids(self) -> list[str]:
        """The oldest first."""
        with plain_faults("the records of rollouts can't be read"):
            return sorted(entry.key for entry in await read_entries(self._client, ROLLOUTS, values=False))

    async def read(self, id: str) -> Document:
        """Raises ConfigurationError if there is no such record, or it is another thing."""
        from nats.js import errors

        with plain_faults(f"the record {id} can't be read"):
            try:
                entry = await self._bucket.get(id)
            except errors.KeyNotFoundError:
                raise ConfigurationError(f"there is no record of a rollout {id}") from None
        self._revisions[id] = entry.revision
        try:
            document: Document = json.loads(zlib.decompress(entry.value))
        except (ValueError, zlib.error):
            raise RemoteProtocolError(f"the record {id} is no record of a rollout") from None
        return document

    async def write(self, id: str, document: Document) -> None:
        """Write what was read or written before. Raises ControlError if it can't, or somebody else has written it."""
        from nats.js import errors

        value = zlib.compress(json.dumps(document, separators=(",", ":")).encode())
        with plain_faults(f"the record {id} can't be written"):
            try:
                revision = await self._update(id, value)
            except errors.KeyWrongLastSequenceError:
                if not await self._is_ours(id):
                    raise
                revision = await self._update(id, value)
        self._revisions[id] = revision

    async def _update(self, id: str, value: bytes) -> int:
        attempts = self._attempts.setdefault(id, [])
        attempts.append(value)
        del attempts[:-MAX_ATTEMPTS]
        revision: int = await taken(lambda: self._bucket.update(id, value, last=self._revisions.get(id, 0)))
        del self._attempts[id]
        return revision

    async def _is_ours(self, id: str) -> bool:
        """Whether what is there is what we have tried to write before, of which the answer was lost."""
        entry = await self._bucket.get(id)
        ours = entry.value in self._attempts[id][:-1]
        if ours:
            self._revisions[id] = entry.revision
        return ours

    async def remove(self, id: str) -> None:
        """Take it out."""
        stream = self._client.jetstream(timeout=READ_TIMEOUT)
        with plain_faults(f"the record {id} can't be removed"):
            # A purge of the key would leave a message for each, for ever.
            await stream.purge_stream(f"KV_{ROLLOUTS}", subject=f"$KV.{ROLLOUTS}.{id}")
        self._revisions.pop(id, None)

    async def remove_old(self) -> None:
        """Leave the last MAX_RECORDS."""
        for id in (await self.ids())[:-MAX_RECORDS]:
            await self.remove(id)
