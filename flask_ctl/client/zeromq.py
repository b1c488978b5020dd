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
from zmq.utils.monitor import parse_monitor_message

from ..errors import AccessDenied, ConfigurationError, ControlError, RemoteProtocolError, TimedOut, WrongScheme
from ..protocol.framing import FENCE, MAX_FRAME, ZEROMQ
from ..system.addresses import Address, resolve
from ..system.credentials import peer_credentials
from ..system.processes import ProcessHandle, open_peer
from ..system.sockets import duplicate_socket
from ..transports.zeromq.curve import check_curve, load_key_pair, load_public_key
from .connection import END_DELAY, Connection
from .trust import Trust
from .unix import connect_socket, ends_soon
from .zmtp import first_words, mechanism_of

REPEATABLE = frozenset({b'"ping"', b'"status"', b'"commands"'})
"""Questions that may be asked again when it is certain that the answer is lost."""

MAX_TRIES = 5
"""Connections that are made to get an answer which is owed."""

PATIENCE = 0.5
"""Seconds for a handshake, before it is looked whether ZeroMQ is spoken there at all."""

IPC_PATIENCE = 0.1
"""The same on this machine, where nothing is on its way for long."""

SOON = 0.02
"""Seconds in which most answers are there."""

RECONNECT_INTERVAL = 2**31 - 1
"""Milliseconds until libzmq would connect again."""

KEEPALIVE = 60
"""Seconds of silence after which the kernel looks whether the server is still there."""

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


# Plain numbers: libzmq's own are enums, which cost more than the calls.
_STATE, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)


class _Failed(Exception):
    """A connection could not be made, or has ended; `absent` if nobody listens."""

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
        # ROUTER reserves those that begin with a zero; nobody can guess the rest.
        self._routing_id = b"c" + os.urandom(16)
        self._unanswered: dict[object, bytes] = {}
        self._fenced: list[object] = []
        self._server: ProcessHandle | None = None
        self._server_pid: int | None = None
        self._open = False
        self._sockets = 0
        self._tries = 0
        self._absent = False
        self._reached = False
        self._socket: zmq.Socket[bytes] | None = None
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
        self._close_socket()
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
        if ready and self._socket is not None and all(isinstance(item, int) for item in ready):
            # A process has ended. What it said last is still on its way through libzmq, before the connection's end.
            ready = self._poll(time.monotonic() + END_DELAY, zmq.POLLIN, [])
        return any(not isinstance(item, int) for item in ready)

    def _receive_soon(self, deadline: float | None) -> bool:
        """Whether the answer was quick: to wait for one socket costs half of what it costs to wait for all."""
        if self._socket is None or (deadline is not None and deadline - time.monotonic() < SOON):
            return False
        with contextlib.suppress(zmq.Again):
            self._take(self._socket.recv())
            return True
        return False

    def _fill(self) -> None:
        if not self._messages:
            self._take_all()
        if not self._messages:
            self._note_events()

    def _take_all(self) -> None:
        with contextlib.suppress(zmq.Again):
            while self._socket is not None:
                self._take(self._socket.recv(zmq.NOBLOCK))

    def _take_rest(self) -> None:
        """Take in what came between the last look and the end of the connection; the next one gets its own fence."""
        with contextlib.suppress(zmq.Again):
            while self._socket is not None:
                data = self._socket.recv(zmq.NOBLOCK)
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
                self.ended = True

    def _send(self, message: bytes, deadline: float | None) -> None:
        while self._socket is not None:
            try:
                self._socket.send(message, zmq.NOBLOCK)
            except zmq.Again:
                if not self._poll(deadline, zmq.POLLOUT, []):
                    raise TimedOut(f"{self.endpoint} does not read what it is sent") from None
                self._note_events()
            else:
                return

    def _poll(self, deadline: float | None, events: int, descriptors: list[int]) -> list[object]:
        """The sockets and descriptors at which something has happened before the deadline."""
        items: list[tuple[object, int]] = [(descriptor, zmq.POLLIN) for descriptor in descriptors]
        if self._socket is not None:
            items += [(self._socket, events), (self._monitor, zmq.POLLIN)]
        timeout = -1 if deadline is None else max(0, min(int((deadline - time.monotonic()) * 1000) + 1, 2**31 - 1))
        return [item for item, _ in zmq.zmq_poll(items, timeout)]  # type: ignore[arg-type]

    def _connect(self, deadline: float | None, timeout: float | None) -> None:
        """Raises what the errors of the base class tell."""
        if self._address.transport == "ipc":
            with connect_socket(self._address.path, timeout, self._trust) as probe:
                self._server, self._server_pid = open_peer(probe), peer_credentials(probe)[0]
        else:
            # libzmq does it in a thread of its own, and says nothing of a name that nobody knows.
            resolve(self._address)
        for _ in range(MAX_TRIES):
            self._open_socket()
            try:
                self._await_handshake(deadline)
            except _Failed as failure:
                self._close_socket()
                self._explain(failure, deadline)
            else:
                return
        raise self._unwilling()

    def _await_handshake(self, deadline: float | None) -> None:
        doubt = time.monotonic() + (IPC_PATIENCE if self._address.transport == "ipc" else PATIENCE)
        limit: float | None = doubt if deadline is None else min(doubt, deadline)
        while not self._open:
            if self._poll(limit, 0, []):
                self._look_at_events()
            elif limit == deadline and self._server_pid is not None:
                # It may still be asked to end, and be killed if it does not.
                return
            elif limit == deadline:
                raise self._silent()
            else:
                # To libzmq what is no greeting may be a very old one, or one that has not ended.
                self._explain(_Failed(), deadline)
                limit = deadline

    def _explain(self, failure: _Failed, deadline: float | None) -> None:
        """Raises the reason of a failure that another try does not mend."""
        if self._address.transport == "ipc":
            if failure.absent:
                # libzmq says the same of a server that does not accept at the moment; the kernel knows better.
                connect_socket(self._address.path, _left(deadline), self._trust).close()
            else:
                self._check_scheme(deadline)
            return
        wanted, ours = mechanism_of(self._address, deadline), "NULL" if self._keys is None else "CURVE"
        if wanted not in ("NULL", "CURVE"):
            raise RemoteProtocolError(f"{self.endpoint} wants {wanted}, which no flask-ctl speaks")
        if wanted != ours:
            raise AccessDenied(
                f"{self.endpoint} wants a key: give --client-key and --server-key"
                if wanted == "CURVE"
                else f"{self.endpoint} has no CURVE key, which would prove who it is; drop --server-key to believe it"
            )

    def _check_scheme(self, deadline: float | None) -> None:
        """Raises WrongScheme if a plain socket of ours is there, RemoteProtocolError if something else is."""
        limit = time.monotonic() + PATIENCE
        limit = limit if deadline is None else min(limit, deadline)
        try:
            with connect_socket(self._address.path, _left(limit), self._trust) as probe:
                said = first_words(probe, limit)
        except (TimedOut, OSError):
            # It does not even accept, so nobody knows; that is told when the time is over.
            return
        if said.startswith(b"{"):
            raise WrongScheme(self.endpoint, self._address.path, "a plain Unix socket")
        if said and not said.startswith(ZEROMQ):
            raise RemoteProtocolError(f"what listens at {self.endpoint} does not speak ZeroMQ")

    def _silent(self) -> TimedOut:
        if not self._reached:
            return TimedOut(
                f"{self.endpoint} can't be reached in that time; whether anything listens there is not known"
            )
        return TimedOut(f"{self.endpoint} accepts connections, but does not answer; it is still there")

    def _unwilling(self) -> ControlError:
        if self._keys is not None:
            return AccessDenied(
                f"{self.endpoint} does not have the key {self._trust.server_key}; it is another server, or its key"
                " has been changed: get its new .pub file from its owner"
            )
        return RemoteProtocolError(f"{self.endpoint} ends every connection")

    def _open_socket(self) -> None:
        self._open = False
        self._sockets += 1
        sock = self._context.socket(zmq.DEALER)
        sock.linger = 0
        sock.rcvtimeo = int(SOON * 1000)
        # Never by itself; but without an interval libzmq throws away what has not been read when a connection ends.
        sock.reconnect_ivl = RECONNECT_INTERVAL
        sock.handshake_ivl = 0
        sock.maxmsgsize = 2 * MAX_FRAME
        sock.routing_id = self._routing_id
        sock.ipv6 = ":" in self._address.host
        sock.tcp_keepalive, sock.tcp_keepalive_idle = 1, KEEPALIVE
        sock.tcp_keepalive_intvl, sock.tcp_keepalive_cnt = KEEPALIVE // 4, 4
        if self._keys is not None:
            sock.curve_publickey, sock.curve_secretkey, sock.curve_serverkey = self._keys
        self._socket = sock
        self._monitor = sock.get_monitor_socket(_EVENTS, addr=f"inproc://monitor-{self._sockets}")
        self._monitor.linger = 0
        try:
            sock.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise ConfigurationError(f"{self.endpoint} can't be connected to: {error.strerror}") from None

    def _close_socket(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.disable_monitor()
            sock.close(0)
            self._monitor.close(0)

    def _note_events(self) -> None:
        """Take in how the connection goes; make another where answers are owed."""
        while self._socket is not None:
            try:
                self._look_at_events()
                return
            except _Failed as failure:
                self._take_rest()
                self._close_socket()
                self._tries += 1
                self._absent = failure.absent
                if failure.absent or not self._unanswered or self._tries > MAX_TRIES:
                    self.ended = True
                else:
                    self._open_socket()

    def _look_at_events(self) -> None:
        """Raises _Failed at the end of the connection, AccessDenied if the server does not want us."""
        while int(self._monitor.get(_STATE)) & _POLLIN:
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            kind = event["event"]
            if kind == zmq.EVENT_CONNECTED:
                self._reached = True
                self._check_peer(event["value"])
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._begin()
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise self._refused()
            else:
                raise _Failed(absent=kind == zmq.EVENT_CLOSED)

    def _begin(self) -> None:
        self._open = True
        self._fenced = list(self._unanswered)
        if self._fenced:
            self._send(FENCE, time.monotonic())

    def _check_peer(self, descriptor: int) -> None:
        if self._address.transport != "ipc":
            return
        # A connection that has ended by now has nobody to be checked.
        with contextlib.suppress(OSError), duplicate_socket(descriptor) as sock:
            self._trust.check_peer(self.endpoint, peer_credentials(sock)[1])

    def _refused(self) -> AccessDenied:
        if self._keys is None:
            return AccessDenied(f"{self.endpoint} does not let you in; CTL_ALLOW of the app says who may come")
        return AccessDenied(
            f"{self.endpoint} does not know your key {self._keys[0].decode()}; have the .pub file of"
            f" {self._trust.client_key} put into its CTL_CURVE_CLIENTS"
        )


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.001, deadline - time.monotonic())


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
