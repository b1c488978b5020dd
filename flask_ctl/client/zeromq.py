"""Connections over ZeroMQ: a DEALER socket, one JSON-RPC message per frame.

A socket connects once, and libzmq's monitor tells how that goes. When the connection ends with questions unanswered, as
at a reload of the server, another is made with the same routing id, by which the server knows whose answers they are.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

import zmq

from ..errors import ConfigurationError, RemoteProtocolError, TimedOut
from ..protocol.framing import FENCE
from ..system.addresses import Address, resolve
from ..system.credentials import peer_credentials
from ..system.processes import ProcessHandle, open_peer
from ..system.sockets import duplicate_socket
from ..transports.zeromq.curve import check_curve, load_key_pair, load_public_key
from .connection import END_DELAY, MAX_TRIES, Connection
from .dealer import Dealer
from .handshake import Handshake, access_denied
from .trust import Trust
from .unix import connect_socket, ends_soon

REPEATABLE = frozenset({b'"ping"', b'"status"', b'"commands"'})
"""Requests without side effects, which are sent again once their answers are known to be lost."""

SOON = 0.02
"""Seconds within which most answers arrive."""


class _Failed(Exception):
    """A connection could not be made, or has ended; `absent` if nothing listens."""

    def __init__(self, *, absent: bool = False) -> None:
        super().__init__()
        self.absent = absent


class ZmqConnection(Connection):
    """A connection with the ROUTER at an ``ipc`` or ``tcp`` address."""

    def __init__(self, address: Address, timeout: float | None, trust: Trust) -> None:
        super().__init__()
        self.endpoint = str(address)
        self.path = address.path or None
        self._address = address
        self._trust = trust
        self._keys = _load_keys(trust) if address.transport == "tcp" else None
        # ROUTER reserves ids that begin with a zero byte. Random, so that no other peer can guess it.
        self._routing_id = b"c" + os.urandom(16)
        self._unanswered: dict[object, bytes] = {}
        self._fenced: list[object] = []
        self._server: ProcessHandle | None = None
        self._server_pid: int | None = None
        self._open = False
        self._tries = 0
        self._absent = False
        self._reached = False
        self._dealer: Dealer | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._connect(None if timeout is None else time.monotonic() + timeout, timeout)
        except BaseException:
            self.close()
            raise

    def peer_pid(self) -> int | None:
        return self._server_pid

    def peer(self) -> ProcessHandle | None:
        if self._server is None or self._server.pid == os.getpid():
            return None
        return self._server.duplicate()

    def peer_has_ended(self) -> bool:
        if self._address.transport == "tcp":
            return self._absent
        if self._server is None or self._server.pid == os.getpid():
            return False
        return ends_soon(self._server.duplicate())

    def close(self) -> None:
        self._close_dealer()
        self._context.term()
        if self._server is not None:
            self._server.close()
        self._server = None

    def _transmit(self, messages: list[bytes], deadline: float | None) -> None:
        self._note_events()
        self.undelivered = self.ended
        first = self._last_id - len(messages) + 1
        self._unanswered.update(enumerate(messages, first))
        for message in messages:
            self._send(message, deadline)

    def _note(self, data: bytes) -> None:
        try:
            super()._note(data)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self.endpoint} does not speak this protocol: {error.message}") from None
        self._tries = 0
        self._unanswered.pop(getattr(self._messages[-1], "id", None), None)

    def _wait(self, deadline: float | None, watched: Sequence[ProcessHandle]) -> bool:
        if not watched and self._receive_soon(deadline):
            return True
        descriptors = [handle.fileno() for handle in watched]
        ready = self._poll(deadline, zmq.POLLIN, descriptors)
        if ready and self._dealer is not None and all(isinstance(item, int) for item in ready):
            # A process has ended. Its last message may still be in libzmq, before the end of the connection.
            ready = self._poll(time.monotonic() + END_DELAY, zmq.POLLIN, [])
        return any(not isinstance(item, int) for item in ready)

    def _receive_soon(self, deadline: float | None) -> bool:
        """Whether the answer came within SOON: waiting for one socket costs half as much as waiting for all."""
        if self._dealer is None or (deadline is not None and deadline - time.monotonic() < SOON):
            return False
        with contextlib.suppress(zmq.Again):
            self._take(self._dealer.socket.recv())
            return True
        return False

    def _fill(self) -> None:
        if not self._messages:
            with contextlib.suppress(zmq.Again):
                while self._dealer is not None:
                    self._take(self._dealer.socket.recv(zmq.NOBLOCK))
        if not self._messages:
            self._note_events()

    def _take_rest(self) -> None:
        """Take in what came between the last look and the end of the connection; the next one gets its own fence."""
        with contextlib.suppress(zmq.Again):
            while self._dealer is not None:
                data = self._dealer.socket.recv(zmq.NOBLOCK)
                if data != FENCE:
                    self._note(data)

    def _take(self, data: bytes) -> None:
        if data != FENCE:
            self._note(data)
            return
        lost = {id: self._unanswered.pop(id) for id in self._fenced if id in self._unanswered}
        for id, message in lost.items():
            if any(b'"method":' + method in message for method in REPEATABLE):
                self._unanswered[id] = message
                self._send(message, time.monotonic())
            else:
                self.ended = self.lost = True

    def _send(self, message: bytes, deadline: float | None) -> None:
        while self._dealer is not None:
            try:
                self._dealer.socket.send(message, zmq.NOBLOCK)
            except zmq.Again:
                if not self._poll(deadline, zmq.POLLOUT, []):
                    raise TimedOut(f"{self.endpoint} does not read what it is sent") from None
                self._note_events()
            else:
                return

    def _poll(self, deadline: float | None, events: int, descriptors: list[int]) -> list[object]:
        """The sockets and descriptors that are ready before the deadline."""
        items: list[tuple[object, int]] = [(descriptor, zmq.POLLIN) for descriptor in descriptors]
        if self._dealer is not None:
            items += [(self._dealer.socket, events), (self._dealer.monitor, zmq.POLLIN)]
        timeout = -1 if deadline is None else max(0, min(int((deadline - time.monotonic()) * 1000) + 1, 2**31 - 1))
        return [item for item, _ in zmq.zmq_poll(items, timeout)]  # type: ignore[arg-type]

    def _connect(self, deadline: float | None, timeout: float | None) -> None:
        """Raises like `connect`."""
        if self._address.transport == "ipc":
            with connect_socket(self._address.path, timeout, self._trust) as probe:
                self._server, self._server_pid = open_peer(probe), peer_credentials(probe)[0]
        else:
            # libzmq resolves names in a thread of its own, and does not report an unknown host.
            resolve(self._address)
        handshake = Handshake(self._address, self._trust, with_key=self._keys is not None)
        for _ in range(MAX_TRIES):
            self._open_dealer()
            try:
                self._await_handshake(handshake, deadline)
            except _Failed as failure:
                self._close_dealer()
                handshake.explain(deadline, absent=failure.absent)
            else:
                return
        raise handshake.rejected()

    def _await_handshake(self, handshake: Handshake, deadline: float | None) -> None:
        doubt = time.monotonic() + handshake.patience
        limit: float | None = doubt if deadline is None else min(doubt, deadline)
        while not self._open:
            if self._poll(limit, 0, []):
                self._look_at_events()
            elif limit == deadline and self._server_pid is not None:
                # A process that the kernel names can still be asked to end, and be killed if it does not.
                return
            elif limit == deadline:
                raise handshake.timed_out(reached=self._reached)
            else:
                # libzmq waits without limit for the rest of what looks like an old or unfinished greeting.
                handshake.explain(deadline)
                limit = deadline

    def _open_dealer(self) -> None:
        self._open = False
        self._dealer = Dealer(self._context, self._address, self._routing_id, self._keys, timeout=SOON)

    def _close_dealer(self) -> None:
        dealer, self._dealer = self._dealer, None
        if dealer is not None:
            dealer.close()

    def _note_events(self) -> None:
        """Take in the connection's events; connect again if it has ended and answers are owed."""
        while self._dealer is not None:
            try:
                self._look_at_events()
                return
            except _Failed as failure:
                self._take_rest()
                self._close_dealer()
                self._tries += 1
                self._absent = failure.absent
                if failure.absent or not self._unanswered or self._tries > MAX_TRIES:
                    self.ended = True
                else:
                    self._open_dealer()

    def _look_at_events(self) -> None:
        """Raises _Failed at the end of the connection, AccessDenied if the server rejects the client."""
        assert self._dealer is not None
        for event, value in self._dealer.events():
            if event == zmq.EVENT_CONNECTED:
                self._reached = True
                if self._address.transport == "ipc":
                    # A connection that has ended by now has no peer to check.
                    with contextlib.suppress(OSError), duplicate_socket(value) as sock:
                        self._trust.check_peer(self.endpoint, peer_credentials(sock)[1])
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._open = True
                self._fenced = list(self._unanswered)
                if self._fenced:
                    self._send(FENCE, time.monotonic())
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise access_denied(self._address, self._trust, None if self._keys is None else self._keys[0])
            else:
                raise _Failed(absent=event == zmq.EVENT_CLOSED)


def _load_keys(trust: Trust) -> tuple[bytes, bytes, bytes] | None:
    """Our public and secret key, and the server's public one; None without keys."""
    if trust.client_key is None and trust.server_key is None:
        return None
    if trust.client_key is None or trust.server_key is None:
        missing = (
            "--client-key (FLASK_CTL_CLIENT_KEY)" if trust.client_key is None else "--server-key (FLASK_CTL_SERVER_KEY)"
        )
        raise ConfigurationError(f"a key alone is not enough; give {missing}, too")
    check_curve()
    return (*load_key_pair(trust.client_key), load_public_key(trust.server_key))
