"""Where the instances of a rollout are: on this machine and, by ssh, on others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import click

from ..many import ask_each
from ..selection import Target, targets
from ..settings import settings
from .files import FileArchive
from .member import QUESTION_TIMEOUT, Client, Member, identity
from .record import Archive


class Place(ABC):
    """The instances that the options of the running command select, and the records of rollouts of them."""

    archive: Archive

    @abstractmethod
    def members(self) -> list[Member]:
        """The selected ones, as they are now. Raises NotRunning if there is none, UsageError without a selection."""

    @abstractmethod
    def client(self, member: Member) -> Client:
        """A client of it, also in a thread without a click context. Raises ControlError if it can't be asked."""

    def has_ended(self, member: Member) -> bool:
        """Whether one that does not run where it was, as its client says, has certainly ended."""
        return True

    def operator(self) -> dict[str, Any]:
        """More about who runs the rollout."""
        return {}


class LocalPlace(Place):
    """Instances of this machine, and those of --on."""

    def __init__(self) -> None:
        self.archive = FileArchive()
        self._settings = settings()
        self._chosen: dict[str, Target] = {}

    def members(self) -> list[Member]:
        given = self._settings
        if not given.selects_many and given.on is None:
            raise click.UsageError(
                "--rolling is for several instances: select them by --name, --dir, --all or --socket"
            )
        if given.on is not None:
            from ..remote.instances import members_on

            return members_on(given)
        self._chosen = {target.socket: target for target in targets(given, whole_server=True)}
        return _frozen(list(self._chosen.values()))

    def client(self, member: Member) -> Client:
        if member.host is not None:
            from ..remote.client import RemoteClient
            from ..remote.ssh import Host

            return RemoteClient(Host(member.host, member.program), member.socket)
        target = self._chosen.get(member.socket) or Target(member.socket, None, member.name, member.pid)
        return target.client(self._settings)


def _frozen(chosen: Sequence[Target]) -> list[Member]:
    """The members of a rollout of these; those that have not answered at once are asked again."""
    statuses = {target.socket: target.instance.status for target in chosen if target.instance is not None}
    silent = [target for target in chosen if statuses.get(target.socket) is None]
    problems = {}
    for target, answer in zip(silent, ask_each(lambda client: client.status(timeout=QUESTION_TIMEOUT), silent)):
        statuses[target.socket] = answer.result
        problems[target.socket] = "" if answer.error is None else answer.error.message
    return [_member(target, statuses[target.socket], problems.get(target.socket, "")) for target in chosen]


def _member(target: Target, status: dict[str, Any] | None, problem: str) -> Member:
    if status is None:
        return Member(target.name, target.socket, target.pid, None, None, problem=problem)
    return Member(target.name, target.socket, *identity(status))
