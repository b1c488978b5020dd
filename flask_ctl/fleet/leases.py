"""Leases on apps: who may run a rollout of them now. No mutual exclusion, but its revision is one for the instances.

A lease is an entry in a bucket that the server forgets after LEASE_TIME, unless it is renewed. Its first revision goes
with each command as the fence: an instance that has seen a higher one refuses the command (`CommandMemory.passes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..errors import ConfigurationError
from .buckets import LEASE_TIME, read_entries, taken
from .faults import plain_faults
from .subjects import LEASES, token

RENEWAL = LEASE_TIME / 3
"""Seconds between two renewals."""

RETRY = 1.0
"""Seconds before a renewal that has failed is tried again."""

CERTAIN = LEASE_TIME - 5.0
"""Seconds after the last renewal for which the lease is certainly still ours, whatever the clocks do."""

Holder = dict[str, Any]
"""``user``, ``host``, ``pid``, ``since`` and ``rollout``: who has a lease, and for what."""


class Lease:
    """The lease on some apps, in a bucket, for `holder`. On the connection's loop."""

    def __init__(
        self, bucket: Any, apps: Iterable[str], holder: Holder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # All take them in the same order, so that no two wait for each other.
        self._keys = sorted({token(app) for app in apps})
        self._bucket = bucket
        # By which ours is told from one of the same rollout that another operator has resumed.
        self._value = json.dumps({**holder, "nonce": secrets.token_hex(8)}).encode()
        self._clock = clock
        self._revisions: dict[str, int] = {}
        self._fences: dict[str, int] = {}
        self._renewed = 0.0

    def fence(self, app: str) -> int:
        """What goes with the commands to an app's instances."""
        return self._fences[token(app)]

    async def take(self) -> None:
        """Take it. Raises ConfigurationError that names who has it, ControlError if the server can't tell."""
        from nats.js import errors

        self._renewed = self._clock()
        try:
            with plain_faults("the lease of the rollout can't be taken"):
                for key in self._keys:
                    try:
                        fence = await taken(partial(self._bucket.create, key, self._value))
                        self._revisions[key] = self._fences[key] = fence
                    except errors.KeyWrongLastSequenceError:
                        raise ConfigurationError(_held(key, await self._holder(key))) from None
        except BaseException:
            await self.release()
            raise

    async def keep(self) -> str:
        """Renew it again and again; returns when it is lost, with the reason: after CERTAIN at the latest."""
        while True:
            left = self._left()
            await asyncio.sleep(min(max(RENEWAL - (CERTAIN - left), RETRY), left))
            if (lost := await self.renew()) is not None:
                return lost

    async def renew(self) -> str | None:
        """Renew it; the reason if it is lost. A server that does not answer is asked again as long as there is time."""
        from nats import errors

        began = self._clock()
        try:
            lost = await asyncio.wait_for(self._renew_each(), self._left())
        except (errors.Error, asyncio.TimeoutError) as error:
            if self._left() > 0:
                return None
            return f"the lease could not be renewed for {CERTAIN:g} s: {str(error) or type(error).__name__}"
        if lost is None:
            self._renewed = began
        return lost

    async def release(self) -> None:
        """Give it up, as far as it is ours."""
        from nats import errors

        for key, revision in self._revisions.items():
            # What is not released expires.
            with contextlib.suppress(errors.Error, asyncio.TimeoutError):
                await self._bucket.delete(key, last=revision)
        self._revisions.clear()

    async def _renew_each(self) -> str | None:
        from nats.js.errors import KeyWrongLastSequenceError

        for key in self._keys:
            try:
                self._revisions[key] = await self._bucket.update(key, self._value, last=self._revisions[key])
            except KeyWrongLastSequenceError:
                if not await self._is_ours(key):
                    return f"the lease on {key} has passed to another operator, or has expired"
        return None

    def _left(self) -> float:
        """Seconds for which it is certainly ours."""
        return max(0.0, self._renewed + CERTAIN - self._clock())

    async def _is_ours(self, key: str) -> bool:
        """Whether an earlier renewal was done, although its answer was lost."""
        from nats.js.errors import KeyNotFoundError

        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError:
            return False
        if entry.value != self._value:
            return False
        self._revisions[key] = entry.revision
        return True

    async def _holder(self, key: str) -> Holder:
        from nats.js.errors import KeyNotFoundError

        try:
            return read_holder((await self._bucket.get(key)).value)
        except KeyNotFoundError:
            return {}


async def holders(client: Any) -> list[Holder]:
    """Those who have a lease now."""
    with plain_faults("the leases can't be read"):
        return [read_holder(entry.value) for entry in await read_entries(client, LEASES)]


def read_holder(value: bytes) -> Holder:
    """What a lease says of its holder; empty for something else."""
    try:
        holder = json.loads(value)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _held(key: str, holder: Holder) -> str:
    told = {name: holder.get(name, "?") for name in ("rollout", "user", "host", "pid", "since")}
    return (
        "the rollout {rollout} of {user} on {host} (pid {pid}, since {since}) is at work on {key}; flask-ctl fleet"
        " rollout status {rollout} shows how far it is; if that process was killed, the lease is free {seconds:g} s"
        " later: then go on by flask-ctl fleet rollout resume {rollout}"
    ).format(key=key, seconds=LEASE_TIME, **told)
