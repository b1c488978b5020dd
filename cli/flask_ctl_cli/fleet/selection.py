"""The instances at NATS servers that --name, --label, --host and --instance select."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from flask_ctl import ControlClient, Fleet, NotRunning

from ..output import NothingSelected
from ..settings import Settings, settings

if TYPE_CHECKING:
    from flask_ctl.fleet.roster import FleetInstance, Roster

CONNECT_TIMEOUT = 5.0
"""Seconds without --timeout."""


class FleetTarget:
    """An instance that a command is for, as `many.Addressee`."""

    def __init__(self, fleet: Fleet, one: FleetInstance) -> None:
        self.one = one
        self.name = f"{one.app}/{one.instance}"
        self.pid = one.presence.pid
        self.socket = one.instance
        self._fleet = fleet

    def client(self, settings: Settings) -> ControlClient:
        """A client for it. Raises NotRunning for a lost one."""
        if self.one.lost:
            raise NotRunning(f"it is {lost(self.one)}; nothing was done", {"begun": False})
        options: dict[str, Any] = {} if settings.timeout is None else {"timeout": settings.timeout}
        return self._fleet.client(self.one, **options)

    def described(self) -> str:
        """A few words for a person."""
        return self.name

    def as_json(self) -> dict[str, Any]:
        presence = self.one.presence
        return {"app": presence.app, "instance": presence.instance, "host": presence.host, "pid": presence.pid}


@contextlib.contextmanager
def opened() -> Iterator[Fleet]:
    """The fleet at the servers of --nats. Raises ConfigurationError, AccessDenied, or ControlError without a server."""
    # At the end of a connection with TLS asyncio warns of what nats-py does.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    given = settings()
    if given.sockets:
        raise click.UsageError("--socket is for instances of one machine; select others by --name, --label or --host")
    timeout = CONNECT_TIMEOUT if given.timeout is None else given.timeout
    with Fleet(",".join(given.nats) or None, timeout=timeout) as fleet:
        yield fleet


def selected(fleet: Fleet, *, operate: bool = False) -> tuple[list[FleetInstance], Roster]:
    """The selected instances, and all; NothingSelected if there is none. `operate` needs a selection, or --all."""
    given = settings()
    narrow = selecting_options(given)
    if operate and not narrow and not given.selected_all:
        raise click.UsageError("select instances by --name, --label, --host or --instance, or all of them by --all")
    roster = fleet.roster()
    if not roster.complete:
        given.say("who is missing is not known: no instance has recorded its presence, which needs JetStream")
    found = [one for one in roster.instances if matches(given, one)]
    if not found and (narrow or operate):
        raise NothingSelected(f"no instance at the NATS server is selected by {narrow or '--all'}")
    return found, roster


def servers_of(found: Iterable[FleetInstance]) -> list[FleetInstance]:
    """One of each server: a process that serves several apps is an instance for each of them."""
    servers: dict[tuple[str, int, str], FleetInstance] = {}
    for one in found:
        presence = one.presence
        servers.setdefault((presence.host, presence.pid, presence.started_at), one)
    return list(servers.values())


def matches(given: Settings, one: FleetInstance) -> bool:
    """Whether the options select it."""
    patterns = [
        (given.selected_name, one.app),
        (given.host_pattern, one.presence.host),
        (given.instance_pattern, one.instance),
    ]
    labels = one.presence.labels
    return all(pattern is None or fnmatchcase(value, pattern) for pattern, value in patterns) and all(
        labels.get(name) == wanted for name, wanted in given.labels.items()
    )


def selecting_options(given: Settings) -> str:
    """The options that select, as they were given; "" for none."""
    patterns = [
        ("--name", given.selected_name),
        *(("--label", f"{name}={wanted}") for name, wanted in given.labels.items()),
        ("--host", given.host_pattern),
        ("--instance", given.instance_pattern),
    ]
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in patterns if value is not None)


def lost(one: FleetInstance) -> str:
    """That it is lost, and what can be done."""
    return f"lost, {last_seen(one)} (flask-ctl fleet forget takes it from the list)"


def last_seen(one: FleetInstance) -> str:
    """When it was heard of."""
    return f"last seen {one.age:.0f} s ago"
