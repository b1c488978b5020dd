"""The instances that --name, --dir, --all and --owner select, or several --socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from flask_ctl import AmbiguousTarget, ControlClient, NotRunning

from .settings import Settings

if TYPE_CHECKING:
    from flask_ctl import LiveInstance


class Target(NamedTuple):
    """What a command is for: an instance, or an address at which no instance has been found."""

    socket: str
    instance: LiveInstance | None = None
    name: str = ""
    pid: int | None = None

    def client(self, settings: Settings) -> ControlClient:
        """A client for it, as the other options want it."""
        options: dict[str, Any] = {} if settings.timeout is None else {"timeout": settings.timeout}
        options |= {"client_key": settings.client_key, "server_key": settings.server_key}
        if settings.owner is not None:
            options["owner"] = settings.owner
        return ControlClient(self.socket, **options) if self.instance is None else self.instance.client(**options)

    def as_json(self) -> dict[str, Any]:
        """What tells it from others."""
        return {"name": self.name or None, "pid": self.pid, "socket": self.socket}

    def described(self) -> str:
        """A few words for a person."""
        return f"{self.name} (pid {self.pid})" if self.instance is not None else self.socket


def targets(settings: Settings, *, whole_server: bool = False) -> list[Target]:
    """The selected ones, in the order of their names; with several --socket in the order of these.

    An instance with several addresses is one target, and with `whole_server` one with several apps, too. Raises
    NotRunning for an empty selection.
    """
    if settings.selects:
        if settings.sockets:
            raise click.UsageError("--socket names instances itself: it can't be combined with --name, --dir or --all")
        found = [_target(instance) for instance in selected(settings)]
    else:
        found = list(_at(settings))
    return _merged(found) if whole_server else found


def matching(settings: Settings, timeout: float | None, *, everyone: bool = False) -> list[LiveInstance]:
    """The instances that --name, --dir, --all and --owner select, by default all."""
    from flask_ctl import live_instances

    return live_instances(
        timeout, name=settings.selected_name, directory=settings.selected_dir, owner=settings.owner, everyone=everyone
    )


def selected(settings: Settings, *, everyone: bool = False) -> list[LiveInstance]:
    """As `matching`. Raises NotRunning for an empty selection."""
    found = matching(settings, settings.timeout, everyone=everyone)
    if settings.selects and not found:
        raise NotRunning(f"no running instance is selected by {_options(settings)}", {"tried": []})
    return found


def the_only(settings: Settings) -> Target:
    """The selected one, for a command that is for one instance. Raises NotRunning, AmbiguousTarget if several are."""
    found = targets(settings)
    if len(found) > 1:
        listed = "\n".join(f"  {target.socket}  {target.described()}" for target in found)
        raise AmbiguousTarget(
            f"this is for one instance, and {len(found)} are selected:\n{listed}",
            {"sockets": [target.socket for target in found]},
        )
    return found[0]


def _target(instance: LiveInstance) -> Target:
    return Target(instance.socket, instance, instance.name, instance.pid)


def _at(settings: Settings) -> Iterable[Target]:
    from flask_ctl import instances_at

    found = instances_at(settings.sockets, settings.timeout, owner=settings.owner)
    seen: list[LiveInstance] = []
    for socket in dict.fromkeys(settings.sockets):
        instance = next((one for one in found if one.listens_at(socket)), None)
        if instance is None:
            yield Target(socket)
        elif instance not in seen:
            seen.append(instance)
            yield _target(instance)


def _merged(found: list[Target]) -> list[Target]:
    """One for each server, with the names of all of its selected apps."""
    servers: dict[Any, list[Target]] = {}
    for target in found:
        servers.setdefault(target.pid or target.socket, []).append(target)
    return [apps[0]._replace(name=", ".join(target.name for target in apps)) for apps in servers.values()]


def _options(settings: Settings) -> str:
    words = [] if settings.selected_name is None else [f"--name {settings.selected_name!r}"]
    words += [] if settings.selected_dir is None else [f"--dir {settings.selected_dir!r}"]
    words += ["--all"] if settings.selected_all else []
    words += [] if settings.owner is None else [f"--owner {settings.owner}"]
    return " ".join(words)
