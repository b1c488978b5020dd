"""Rollouts over NATS: the instances, the records in a bucket, and the lease that lets one operator work at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flask_ctl import ControlError, Fleet, NotRunning

from ..rollout.member import Client, Member, identity
from ..rollout.place import Place
from ..rollout.record import Archive, Document, Record
from .selection import lost, selected, servers_of

if TYPE_CHECKING:
    from flask_ctl.fleet.roster import FleetInstance


class FleetRecord(Record):
    """A record under a lease. Raises ConfigurationError that names the operator who has the lease on one of its apps.

    Once the lease is lost nothing is written any more: the record may be another operator's.
    """

    def __init__(self, fleet: Fleet, document: Document, members: Sequence[Member]) -> None:
        super().__init__(document, members)
        self._fleet = fleet
        apps = sorted({target["name"] for target in document["targets"]})
        self.lease = fleet.lease(apps, document["id"], document["began"], self._note_lost)
        self._closed = False

    def remove(self) -> None:
        self._fleet.remove_rollout(self.document["id"])

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.lease.close()

    def _write(self) -> None:
        if self.lost:
            raise ControlError(f"the record is not written any more: {self.lost}")
        self._fleet.write_rollout(self.document["id"], self.document)

    def _note_lost(self, reason: str) -> None:
        self.lost = reason
        self.on_lost(reason)


class FleetArchive(Archive):
    """The records in the bucket of the NATS servers."""

    where = "the bucket of rollouts"
    program = "flask-ctl fleet rollout"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.record: FleetRecord | None = None
        """The one that is open."""

    def ids(self) -> list[str]:
        return self._fleet.rollout_ids()

    def running(self, ids: Iterable[str]) -> set[str]:
        held = {holder.get("rollout") for holder in self._fleet.lease_holders()}
        return {id for id in ids if id in held}

    def open(self, document: Document, members: Sequence[Member] = ()) -> Record:
        self.record = FleetRecord(self._fleet, document, members)
        return self.record

    def check_free(self, members: Sequence[Member], but: str = "") -> None:
        """The lease says it."""

    def _read(self, id: str) -> Document:
        return self._fleet.read_rollout(id)

    def _remove_old(self) -> None:
        self._fleet.remove_old_rollouts()


class FleetPlace(Place):
    """Instances at NATS servers. Commands go under the lease of the record that is open in the archive."""

    def __init__(self, fleet: Fleet, timeout: float) -> None:
        self.archive: FleetArchive = FleetArchive(fleet)
        self._fleet = fleet
        self._timeout = timeout
        self._known: dict[tuple[str, str], FleetInstance] | None = None

    def members(self) -> list[Member]:
        found, roster = selected(self._fleet, operate=True)
        found = servers_of(found)
        asked = [one for one in found if not one.lost]
        answers = self._fleet.ask("status", asked, roster, timeout=self._timeout)
        self._known = {one.key: one for one in found}
        return [_member(one, answers.get(one.key)) for one in found]

    def client(self, member: Member) -> Client:
        one = self._instance(member)
        if one is None:
            raise NotRunning(f"{member.socket} has left NATS")
        if one.lost:
            raise ControlError(f"{member.socket} is {lost(one)}", {"begun": False})
        record = self.archive.record
        return self._fleet.client(one, fence=None if record is None else record.lease.fence(one.app))

    def has_ended(self, member: Member) -> bool:
        return self._instance(member) is None

    def operator(self) -> dict[str, Any]:
        return {"user": self._fleet.user}

    def _instance(self, member: Member) -> FleetInstance | None:
        if self._known is None:
            # Of a rollout that is resumed.
            self._known = {one.key: one for one in self._fleet.roster().instances}
        return self._known.get((member.name, member.socket))


def _member(one: FleetInstance, answer: Any) -> Member:
    presence = one.presence
    if answer is None:
        answer = ControlError(f"it is {lost(one)}")
    if isinstance(answer, ControlError):
        return Member(
            one.app, one.instance, presence.pid, None, None, host=presence.host, problem=answer.message
        )  # fmt: skip
    return Member(one.app, one.instance, *identity(answer), host=presence.host)
