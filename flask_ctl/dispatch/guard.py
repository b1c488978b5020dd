"""Authorization: which peers of an app may run which commands, and how often they may be refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

from ..errors import AccessDenied
from .audit import NO_ENTRY, Audit, Entry
from .commands import Command
from .limits import MAX_REFUSED_PEERS, REFUSAL_WINDOW, Limits
from .peer import Peer, Principal
from .policy import Policy
from .redaction import Params


@dataclass
class RefusalWindow:
    """The refusals of one principal until `ends`, on the monotonic clock."""

    peer: Peer
    ends: float
    count: int = 0


class Guard:
    """Authorizes commands by the policy of one app, writes the audit log, and limits refused peers.

    Belongs to the control thread.
    """

    def __init__(self, policy: Policy | None = None, limits: Limits | None = None, audit: Audit | None = None) -> None:
        self.policy = policy or Policy()
        self.limits = limits or Limits()
        self.audit = audit or Audit()
        # All are equally long, so they end in the order in which they stand here.
        self._windows: dict[Principal, RefusalWindow] = {}

    def authorize(self, peer: Peer, name: str, command: Command | None, params: Params) -> Entry:
        """The entry of the audit log, which is to get the outcome. Raises AccessDenied if the peer may not.

        `command` is None for an unknown name: only observers and operators may learn the names of the commands.
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

    def reject(self, peer: Peer, reason: str) -> AccessDenied:
        """Log and count a connection that a transport refuses; the error for the peer."""
        error = AccessDenied(reason)
        too_many = self._count(peer)
        if too_many is None:
            self.audit.rejected(peer, error)
        return too_many or error

    def tick(self) -> None:
        """Called now and then: log the refusals that were only counted, once their window is over."""
        now = monotonic()
        while self._windows and next(iter(self._windows.values())).ends <= now:
            self._end(next(iter(self._windows)))

    def close(self) -> None:
        """Log the refusals that were only counted."""
        for principal in tuple(self._windows):
            self._end(principal)

    def _count(self, peer: Peer) -> AccessDenied | None:
        """Note a refusal; the error if there have been too many, which are not logged one by one."""
        self.tick()
        window = self._windows.get(peer.principal)
        if window is None:
            if len(self._windows) >= MAX_REFUSED_PEERS:
                self._end(next(iter(self._windows)))
            window = self._windows[peer.principal] = RefusalWindow(peer, monotonic() + REFUSAL_WINDOW)
        window.count += 1
        if window.count <= self.limits.refusals:
            return None
        wait = max(1, math.ceil(window.ends - monotonic()))
        return AccessDenied(f"{peer} has been refused too often; wait {wait} s", {"retry_after": wait})

    def _end(self, principal: Principal) -> None:
        window = self._windows.pop(principal)
        more = window.count - self.limits.refusals
        if more > 0:
            error = AccessDenied(f"{more} more refused in {REFUSAL_WINDOW:g} s, without records of their own")
            self.audit.rejected(window.peer, error, more)
