"""A ZeroMQ DEALER socket for one connection, with the events that libzmq's monitor reports."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..errors import ConfigurationError
from ..protocol.framing import MAX_FRAME
from ..system.addresses import Address

RECONNECT_INTERVAL = 2**31 - 1
"""Milliseconds until libzmq would connect again."""

KEEPALIVE = 60
"""Seconds of silence after which the kernel probes whether the server is still there."""

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

_numbers = itertools.count()


class Dealer:
    """A DEALER socket that connects once, with CURVE if there are keys: our public and secret one, and the server's.

    A blocking `recv` waits at most `timeout` seconds. Raises ConfigurationError for an address that libzmq rejects.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        routing_id: bytes,
        keys: tuple[bytes, bytes, bytes] | None,
        timeout: float,
    ) -> None:
        sock = self.socket = context.socket(zmq.DEALER)
        sock.linger = 0
        sock.rcvtimeo = int(timeout * 1000)
        # Never by itself; but without an interval libzmq discards what has not been read when a connection ends.
        sock.reconnect_ivl = RECONNECT_INTERVAL
        sock.handshake_ivl = 0
        sock.maxmsgsize = 2 * MAX_FRAME
        sock.routing_id = routing_id
        sock.ipv6 = ":" in address.host
        sock.tcp_keepalive, sock.tcp_keepalive_idle = 1, KEEPALIVE
        sock.tcp_keepalive_intvl, sock.tcp_keepalive_cnt = KEEPALIVE // 4, 4
        if keys is not None:
            sock.curve_publickey, sock.curve_secretkey, sock.curve_serverkey = keys
        self.monitor = sock.get_monitor_socket(_EVENTS, addr=f"inproc://monitor-{next(_numbers)}")
        self.monitor.linger = 0
        try:
            sock.connect(str(address))
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"{address} can't be connected to: {error.strerror}") from None

    def events(self) -> Iterator[tuple[int, int]]:
        """The events since the last call, each with its value (zmq_socket_monitor(3))."""
        while not self.socket.closed and int(self.monitor.get(_STATE)) & _POLLIN:
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            yield event["event"], event["value"]

    def close(self) -> None:
        self.socket.disable_monitor()
        self.socket.close(0)
        self.monitor.close(0)
