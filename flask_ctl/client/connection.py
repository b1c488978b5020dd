"""A client's end of one control connection: requests out, replies in, each before its deadline."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ControlError, LocalProtocolError, RemoteProtocolError, ServerReloaded
from ..protocol.framing import MAX_FRAME
from ..protocol.jsonrpc import Request, Response, encode, parse_reply, request_object
from ..system.processes import ProcessHandle

MAX_TRIES = 5
"""The most times that one request is sent, and that a connection is made for an answer which is owed."""

END_DELAY = 1.0
"""Seconds for a process whose connection has ended to end itself: the kernel closes its descriptors first."""


class Connection(abc.ABC):
    """Numbered requests to one server, and the messages it sends. Each transport has a subclass.

    `ended` tells whether the server has closed the connection; what it sent before can still be received. `undelivered`
    tells whether it had done so before the last request, which it then has not seen. `lost` tells whether the server,
    reached again, does not know a request, which the image before it may have run. `path` is the path of the server's
    socket, None for a server without one on this machine.
    """

    endpoint: str
    path: str | None = None
    ended = False
    undelivered = False
    lost = False

    def __init__(self) -> None:
        self._messages: deque[Response | Request] = deque()
        self._last_id = 0

    @abc.abstractmethod
    def peer_pid(self) -> int | None:
        """The pid of the listening process, from the kernel; None if the kernel does not name it."""

    @abc.abstractmethod
    def peer(self) -> ProcessHandle | None:
        """A handle on the server's process, for the caller to close; None if it is this process or unknown."""

    @abc.abstractmethod
    def peer_has_ended(self) -> bool:
        """Whether the server's process is known to have ended, or ends within END_DELAY."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the connection; more than once is fine."""

    def send(self, requests: Sequence[tuple[str, Mapping[str, Any]]], deadline: float | None) -> list[int]:
        """Send several methods with their parameters at once; returns the ids of the requests.

        Raises LocalProtocolError or TimedOut if they can't be sent.
        """
        ids = list(range(self._last_id + 1, self._last_id + 1 + len(requests)))
        self._last_id += len(requests)
        self._transmit([_message(method, params, id) for id, (method, params) in zip(ids, requests)], deadline)
        return ids

    def receive(self, deadline: float | None, watched: Sequence[ProcessHandle] = ()) -> Response | Request | None:
        """The next message; None at the end of the stream, at the deadline, or when a watched process has ended.

        Raises RemoteProtocolError for anything but a message.
        """
        while not self._messages:
            if not self._wait(deadline, watched):
                return None
            self._fill()
            if self.ended and not self._messages:
                return None
        return self._messages.popleft()

    def unanswered(self, method: str) -> ControlError:
        """The error for a request that got no answer before the connection ended, while the server lives."""
        if not self.lost:
            return RemoteProtocolError(f"{self.endpoint} closed the connection without an answer to {method}")
        return ServerReloaded(
            f"the connection to {self.endpoint} ended before {method} was answered, which may have run"
        )

    def _note(self, data: bytes) -> None:
        """Queue one message of the server. Raises RemoteProtocolError for anything else."""
        self._messages.append(parse_reply(data))

    @abc.abstractmethod
    def _transmit(self, messages: list[bytes], deadline: float | None) -> None:
        """Send messages, one after another."""

    @abc.abstractmethod
    def _wait(self, deadline: float | None, watched: Sequence[ProcessHandle]) -> bool:
        """Whether there is something to receive; False at the deadline, or when a watched process has ended first."""

    @abc.abstractmethod
    def _fill(self) -> None:
        """Queue the messages that have arrived."""


def _message(method: str, params: Mapping[str, Any], id: int) -> bytes:
    try:
        data = encode(request_object(method, params, id))
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"the parameters of {method} can't be sent: {error}") from None
    if len(data) > MAX_FRAME:
        raise LocalProtocolError(f"the parameters of {method} are longer than {MAX_FRAME} bytes")
    return data
