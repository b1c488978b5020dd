"""Why the handshake with a ZeroMQ server fails, each reason as an error of its own.

The events of libzmq's monitor do not tell. It reports one and the same for a server with CURVE, one with PLAIN, and
garbage (a mechanism mismatch); one for a wrong server key, an SSH server, and a reset (no detail); and none for an HTTP
server, which waits for the end of a line. So what listens there is asked over a connection of our own (`zmtp`).
"""

from __future__ import annotations

import time

from ..errors import AccessDenied, ControlError, RemoteProtocolError, TimedOut, WrongScheme
from ..protocol.framing import ZEROMQ
from ..system.addresses import Address
from .trust import Trust
from .unix import connect_socket
from .zmtp import first_words, mechanism_of

PATIENCE = 0.5
"""Seconds for a handshake over TCP, before the client looks whether ZeroMQ is spoken there at all."""

IPC_PATIENCE = 0.1
"""Seconds for a handshake on this machine, without a network in between."""


class Handshake:
    """The reasons for which a handshake at one address fails, for a client with or without a CURVE key."""

    def __init__(self, address: Address, trust: Trust, *, with_key: bool) -> None:
        self._address = address
        self._trust = trust
        self._with_key = with_key
        self.patience = IPC_PATIENCE if address.transport == "ipc" else PATIENCE

    def explain(self, deadline: float | None, *, absent: bool = False) -> None:
        """Raises the reason of a failure that another try does not mend; `absent` if libzmq could not connect."""
        if self._address.transport == "tcp":
            self._check_mechanism(deadline)
        elif absent:
            # libzmq says the same of a server whose backlog is full; connect(2) tells the two apart.
            connect_socket(self._address.path, _left(deadline), self._trust).close()
        else:
            self._check_scheme(deadline)

    def timed_out(self, *, reached: bool) -> TimedOut:
        """The error at the deadline; `reached` if libzmq has connected."""
        if not reached:
            return TimedOut(f"{self._address} can't be reached in that time; whether anything listens there is unknown")
        return TimedOut(f"{self._address} accepts connections, but does not answer; it is still there")

    def rejected(self) -> ControlError:
        """The error if the server has ended every connection during the handshake."""
        if self._with_key:
            return AccessDenied(
                f"{self._address} does not have the key {self._trust.server_key}; it is another server, or its key has"
                " been changed: get its new .pub file from its owner"
            )
        return RemoteProtocolError(f"{self._address} ends every connection")

    def _check_mechanism(self, deadline: float | None) -> None:
        wanted = mechanism_of(self._address, deadline)
        if wanted not in ("NULL", "CURVE"):
            raise RemoteProtocolError(f"{self._address} wants {wanted}, which flask-ctl does not support")
        if wanted == "CURVE" and not self._with_key:
            raise AccessDenied(f"{self._address} wants a key: give --client-key and --server-key")
        if wanted == "NULL" and self._with_key:
            raise AccessDenied(
                f"{self._address} has no CURVE key, which would prove who it is; drop --server-key to connect all the"
                " same"
            )

    def _check_scheme(self, deadline: float | None) -> None:
        """Raises WrongScheme for a plain socket of flask-ctl, RemoteProtocolError for another protocol."""
        limit = time.monotonic() + PATIENCE
        limit = limit if deadline is None else min(limit, deadline)
        try:
            with connect_socket(self._address.path, _left(limit), self._trust) as probe:
                said = first_words(probe, limit)
        except (TimedOut, OSError):
            # It does not even accept, so nothing is known of it; that is reported at the deadline.
            return
        if said.startswith(b"{"):
            raise WrongScheme(str(self._address), self._address.path, "a plain Unix socket")
        if said and not said.startswith(ZEROMQ):
            raise RemoteProtocolError(f"what listens at {self._address} does not speak ZeroMQ")


def access_denied(address: Address, trust: Trust, public_key: bytes | None) -> AccessDenied:
    """The error for a client that the server's ZAP handler rejects; without a key over ipc or plain TCP."""
    if public_key is None:
        return AccessDenied(f"{address} does not let you in; CTL_ALLOW of the app says who may connect")
    return AccessDenied(
        f"{address} does not know your key {public_key.decode()}; have the .pub file of {trust.client_key} put into its"
        " CTL_CURVE_CLIENTS"
    )


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.001, deadline - time.monotonic())
