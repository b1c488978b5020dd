"""How messages reach the control thread.

A transport is a Listener: it is opened before the thread starts, so that a path that can't be used is an exception in
the caller, and from then on belongs to the reactor's thread. It hands every message to a Handler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..dispatch.dispatcher import Answer, Notify
from ..dispatch.peer import Peer
from ..dispatch.replies import Connection, ReplyTo
from .reactor import Reactor


class Handler(Protocol):
    """What answers messages: the dispatcher."""

    def handle(self, message: bytes, peer: Peer, notify: Notify, connection: Connection | None = None) -> Answer: ...

    def handle_plain(self, line: bytes, peer: Peer, connection: Connection | None = None) -> Answer: ...


class Listener(Protocol):
    """One address at which messages arrive."""

    connects_out: bool = False
    """Whether it is a client of another server itself, so that nobody connects to it."""

    @property
    def endpoint(self) -> str:
        """The address, as `status` shows it."""

    def check(self) -> None:
        """Raises InsecureConfiguration where `open` would; nothing is bound, and what is bound is left alone."""

    def open(self) -> None:
        """Bind. Raises ConfigurationError, with the remedy, where that is not possible."""

    def renew_access(self) -> None:
        """The guard's policy has changed: open the address to its users, and to no others. Connected clients stay.

        Raises ConfigurationError like `open`; the address stays ours.
        """

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        """Serve from the reactor's thread; after a failure of that thread, again."""

    def tick(self) -> None:
        """Called every other second: close overdue connections, restore a removed file."""

    def detach(self) -> None:
        """Drop every connection; the address stays ours."""

    def flush(self, timeout: float) -> None:
        """Wait until the clients have read what was written for them, `timeout` seconds at most."""

    def export_state(self) -> dict[str, Any] | None:
        """Leave the address and the caller of the reload to the next image; None if there is nothing to leave.

        The other clients get -32006 for what was not answered, and the end of their connection. Called when the reactor
        has ended; afterwards `close` gives up nothing.
        """

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        """On the reactor's thread: give the reply that the previous image owed to the caller of the reload, if any."""

    def close(self) -> None:
        """Detach and give up the address; more than once is fine."""

    def abandon(self) -> None:
        """In a forked child: close its copies of the descriptors, and touch nothing else."""
