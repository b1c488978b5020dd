"""What stands between the peers of one app and its commands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

from ..errors import AccessDenied
from .audit import NO_ENTRY, Audit, Entry
from .commands import Command
from .limits import MAX_REFUSED_PEERS, REFUSAL_WINDOW, Limits
from .peer import Party, Peer
from .policy import Policy
from .redaction import Params


@dataclass
class _Window:
    """The refusals of one peer since a moment."""

    peer: Peer
    ends: float
    count: int = 0


class Guard:
    """Admits commands by the policy of one app, tells the audit log, and bounds what a peer that is refused can do.

    On the control thread, all of it.
    """

    def __init__(self, policy: Policy | None = None, limits: Limits | None = None, audit: Audit | None = None) -> None:
        self.policy = policy or Policy()
        self.limits = limits or Limits()
        self.audit = audit or Audit()
        # All are equally long, so they end in the order in which they stand here.
        self._windows: dict[Party, _Window] = {}

    def admit(self, peer: Peer, name: str, command: Command | None, params: Params) -> Entry:
        """The entry of the audit log, to be told the outcome. Raises AccessDenied if the peer may not.

        `command` is None for a name that there is not: what commands there are is told to those only who may observe.
        """
        try:
            self.policy.check(peer, "observe" if command is None else command.role)
        except AccessDenied as error:
            too_many = self._count(peer)
            if too_many is None:
                self.audit.refused(peer, error, name, command, params)
            raise too_many or error from None
        if command is None or command.role == "observe":
            return NO_ENTRY
        return self.audit.begin(peer, command, params)

    def turn_away(self, peer: Peer, reason: str) -> AccessDenied:
        """Log and count a peer whom a transport refuses before it can ask for anything; the error to tell it."""
        error = AccessDenied(reason)
        too_many = self._count(peer)
        if too_many is None:
            self.audit.turned_away(peer, error)
        return too_many or error

    def tick(self) -> None:
        """Called now and then: tell of the refusals that were counted only, once their time is over."""
        now = monotonic()
        while self._windows and next(iter(self._windows.values())).ends <= now:
            self._end(next(iter(self._windows)))

    def close(self) -> None:
        """Tell what has not been told."""
        for party in tuple(self._windows):
            self._end(party)

    def _count(self, peer: Peer) -> AccessDenied | None:
        """Note a refusal; the error if there have been too many, which are not logged one by one."""
        self.tick()
        window = self._windows.get(peer.party)
        if window is None:
            if len(self._windows) >= MAX_REFUSED_PEERS:
                self._end(next(iter(self._windows)))
            window = self._windows[peer.party] = _Window(peer, monotonic() + REFUSAL_WINDOW)
        window.count += 1
        if window.count <= self.limits.refusals:
            return None
        wait = max(1, math.ceil(window.ends - monotonic()))
        return AccessDenied(f"{peer} has been refused too often; wait {wait} s", {"retry_after": wait})

    def _end(self, party: Party) -> None:
        window = self._windows.pop(party)
        more = window.count - self.limits.refusals
        if more > 0:
            error = AccessDenied(f"{more} more refused in {REFUSAL_WINDOW:g} s, without records of their own")
            self.audit.turned_away(window.peer, error, more)
