"""Finding the instance of the current directory among the sockets in the default directories."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from .addresses import default_directories, default_sockets
from .conversations import converse
from .errors import AmbiguousTarget, ControlError, NotRunning
from .protocol.jsonrpc import Response

PROBE_TIMEOUT = 1.0
"""Seconds for each socket to answer; one that takes longer is alive, but can't say whose it is."""


class Found(NamedTuple):
    """A live instance: its socket, and its status if it gave one."""

    socket: str
    status: dict[str, Any] | None

    def belongs_to(self, directory: str) -> bool:
        """Whether it runs in `directory` or below it, or its code lies there."""
        if self.status is None:
            return False
        places = (self.status.get("cwd"), self.status.get("root_path"))
        return any(isinstance(place, str) and _is_below(place, directory) for place in places)

    def describe(self) -> str:
        if self.status is None:
            return f"{self.socket}  (does not answer)"
        return f"{self.socket}  {self.status.get('app')}, pid {self.status.get('pid')}, in {self.status.get('cwd')}"


def live_instances(timeout: float | None = None) -> list[Found]:
    """The instances at the default sockets that are alive."""
    limit = PROBE_TIMEOUT if timeout is None else min(timeout, PROBE_TIMEOUT)
    found = [_probe(socket, limit) for socket in default_sockets()]
    return [instance for instance in found if instance is not None]


def find_instance(directory: str | None = None, timeout: float | None = None) -> str:
    """The socket of the one live instance that belongs to `directory`, by default the current one.

    Raises NotRunning if nothing is alive at all; AmbiguousTarget, with the list, if it isn't clear which one is meant.
    """
    directory = directory or _current_directory()
    live = live_instances(timeout)
    if not live:
        tried = default_sockets() or [os.path.join(place, "*.sock") for place in default_directories()]
        raise NotRunning(f"nothing is running; tried {', '.join(tried)}", {"tried": tried})
    here = [instance for instance in live if instance.belongs_to(directory)]
    if len(here) == 1 and all(instance.status is not None for instance in live):
        return here[0].socket
    listed = "\n".join(f"  {instance.describe()}" for instance in live)
    problem = (
        f"{len(here)} instances run in {directory}"
        if len(here) > 1
        else f"no running instance is known to belong to {directory}"
    )
    raise AmbiguousTarget(
        f"{problem}; say which one by --socket:\n{listed}", {"sockets": [instance.socket for instance in live]}
    )


def _probe(socket: str, timeout: float) -> Found | None:
    deadline = time.monotonic() + timeout
    try:
        conversation = converse(socket, timeout)
    except NotRunning:
        return None
    except ControlError:
        return Found(socket, None)
    try:
        conversation.send([("status", {})], deadline)
        answer = conversation.receive(deadline)
    except ControlError:
        return Found(socket, None)
    finally:
        conversation.close()
    if answer is None and conversation.ended:
        return None
    status = answer.result if isinstance(answer, Response) else None
    return Found(socket, status if isinstance(status, dict) else None)


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise AmbiguousTarget("the current directory is gone; say which instance is meant by --socket") from None


def _is_below(place: str, directory: str) -> bool:
    place, directory = os.path.realpath(place), os.path.realpath(directory)
    return place == directory or place.startswith(directory.rstrip(os.sep) + os.sep)
