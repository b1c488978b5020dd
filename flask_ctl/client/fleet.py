"""`Fleet`: the instances at NATS servers, for operators."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from ..errors import AccessDenied, ControlError
from ..fleet.archive import Archive, Document
from ..fleet.buckets import open_bucket
from ..fleet.faults import plain_faults
from ..fleet.leases import Holder, Lease, holders
from ..fleet.roster import FleetInstance, Roster, forget, read_one, read_roster
from ..fleet.settings import broker_from
from ..fleet.subjects import LEASES, ROLLOUTS
from .fleetclient import FleetClient, Place
from .gather import Answers, gather
from .link import Link
from .methods import DEFAULT, QUESTION_TIMEOUT, Timeout

PREFIX = "FLASK_CTL_FLEET"
"""Of the variables with the servers, and with what authenticates us there."""


class Fleet:
    """The instances of apps with CTL_FLEET at `servers`: URLs, parted by commas.

    Without `servers` those of FLASK_CTL_FLEET are meant. FLASK_CTL_FLEET_CREDENTIALS and so on have what authenticates
    us. The constructor connects, within `timeout` seconds; threads may share the object. `close` ends it.

    Raises ConfigurationError for wrong settings, or without nats-py, AccessDenied for credentials that are refused, and
    ControlError where no server can be reached.
    """

    def __init__(self, servers: str | None = None, *, timeout: float = QUESTION_TIMEOUT) -> None:
        def setting(name: str) -> str | None:
            return servers if name == PREFIX and servers else os.environ.get(name) or None

        broker = broker_from(setting, PREFIX)
        self.user = broker.user or _user()
        """Who we say we are."""
        self._link = Link(broker, self.user)
        self._link.open(timeout)
        self._archive: Archive | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a server now; one that was lost is looked for again and again."""
        return self._link.connection.connected

    def roster(self) -> Roster:
        """All instances that are there, or were lost, as far as the server lets us know. Raises ControlError."""
        return self._link.guarded(read_roster(self._link.connection))

    def forget(self, lost: FleetInstance) -> bool:
        """Take a lost instance from the roster; False if it was heard of meanwhile. Raises ControlError."""
        return self._link.guarded(forget(self._link.connection, lost))

    def ask(
        self, method: str, asked: Sequence[FleetInstance], roster: Roster, *, timeout: float = QUESTION_TIMEOUT
    ) -> Answers:
        """The results of a question of the role observe, by app and instance, or a ControlError instead of one."""
        return gather(self._link, method, {}, asked, roster.instances, timeout)

    def client(self, one: FleetInstance, *, timeout: Timeout = DEFAULT, fence: int | None = None) -> FleetClient:
        """A client of one instance. `fence` is that of a lease."""
        presence = one.presence

        def has_left() -> bool | None:
            try:
                now = self._link.guarded(read_one(self._link.connection, presence.app, presence.instance))
            except (LookupError, AccessDenied):
                return None
            except ControlError:
                return False
            # Where it was known by its answer alone, its start was not.
            return now is None or now.pid != presence.pid or presence.started_at not in ("", now.started_at)

        place = Place(presence.app, presence.instance, presence.roles, has_left, fence, presence.life or None)
        return FleetClient(self._link, place, timeout=timeout)

    def lease(self, apps: Sequence[str], rollout: str, since: str, lost: Callable[[str], Any]) -> FleetLease:
        """Take the lease on apps for a rollout; `lost` is called with the reason, on another thread, if it is lost.

        Raises ConfigurationError that names who has it.
        """
        holder = {"user": self.user, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
        bucket = self._bucket(LEASES)
        lease = Lease(bucket, apps, {**holder, "rollout": rollout})
        self._link.guarded(lease.take())
        return FleetLease(self._link, lease, lost)

    def lease_holders(self) -> list[Holder]:
        """Those who run rollouts now: ``user``, ``host``, ``pid``, ``since``, ``rollout``."""
        self._bucket(LEASES)
        return self._link.guarded(holders(self._link.connection.client))

    def rollout_ids(self) -> list[str]:
        """Of the records of rollouts, the oldest first."""
        return self._link.guarded(self._records().ids())

    def read_rollout(self, id: str) -> Document:
        """A record. Raises ConfigurationError if there is none."""
        return self._link.guarded(self._records().read(id))

    def write_rollout(self, id: str, document: Document) -> None:
        """Write a new record, or one that was read or written. Raises ControlError if somebody else has changed it."""
        self._link.guarded(self._records().write(id, document))

    def remove_rollout(self, id: str) -> None:
        """Take a record out."""
        self._link.guarded(self._records().remove(id))

    def remove_old_rollouts(self) -> None:
        """Leave the last 100."""
        self._link.guarded(self._records().remove_old())

    def close(self) -> None:
        """End the connection; more than once is fine."""
        self._link.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _bucket(self, name: str) -> Any:
        async def opened() -> Any:
            with plain_faults(f"the bucket {name} can't be opened"):
                return await open_bucket(self._link.connection, name)

        return self._link.guarded(opened())

    def _records(self) -> Archive:
        if self._archive is None:
            bucket = self._bucket(ROLLOUTS)
            self._archive = Archive(self._link.connection.client, bucket)
        return self._archive


class FleetLease:
    """A lease that is renewed until `close`."""

    def __init__(self, link: Link, lease: Lease, lost: Callable[[str], Any]) -> None:
        self._link = link
        self._lease = lease
        self._lost = lost
        self._keeping: Any = None
        link.soon(self._begin)

    def fence(self, app: str) -> int:
        """What goes with the commands to an app's instances."""
        return self._lease.fence(app)

    def close(self) -> None:
        """Give it up."""
        self._link.run(self._end())

    def _begin(self) -> None:
        import asyncio

        self._keeping = asyncio.ensure_future(self._lease.keep())
        self._keeping.add_done_callback(lambda task: None if task.cancelled() else self._lost(task.result()))

    async def _end(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        await self._lease.release()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        # Without an entry for the user id.
        return str(os.getuid()) if hasattr(os, "getuid") else "?"
