"""What stands between the peers of one app and its commands."""

from __future__ import annotations

from .access import Peer, Policy
from .commands import Command


class Guard:
    """Admits commands by the policy of one app."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def admit(self, peer: Peer, command: Command | None) -> None:
        """Raises AccessDenied if the peer may not have the command run; None for one that there is not.

        What commands there are is told to those only who may observe.
        """
        self.policy.check(peer, "observe" if command is None else command.role)
