"""The items of a stream, over reloads and hubs: the client connects again, and says where it had been."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from ..errors import ControlError, NotRunning, RemoteProtocolError, ServerReloaded, TimedOut
from ..protocol.jsonrpc import Request, Response, decode
from .connection import Connection

RETURN_TIMEOUT = 120.0
"""Seconds for the next image, or another hub, to begin the stream again."""

FIRST_PAUSE, MAX_PAUSE = 0.02, 5.0
"""Seconds before the stream is begun again: at first, and at the most while nothing comes."""

SILENCE = 60.0
"""Seconds without any message, not even an empty one, after which the server is taken to hang."""


class Follower:
    """Iterates over a stream, which has to begin within `timeout` seconds (None: no limit).

    `connect` makes a connection within so many seconds, `result` reads a response.
    """

    def __init__(
        self,
        connect: Callable[[float | None], Connection],
        result: Callable[[Response], Any],
        method: str,
        params: Mapping[str, Any],
        timeout: float | None,
    ) -> None:
        self._connect = connect
        self._result = result
        self._method = method
        self._params = dict(params)
        self._timeout = timeout
        self._epoch: str | None = None
        self._seq = 0
        self._time: str | None = None
        self._generation: int | None = None

    def messages(self) -> Iterator[dict[str, Any]]:
        """Each item with its ``seq``, and what `ControlClient.follow` tells beside them."""
        timeout, pause = self._timeout, FIRST_PAUSE
        while True:
            seen = self._seq
            try:
                connection = self._connect(timeout)
            except NotRunning:
                if self._epoch is None:
                    raise
                yield {"end": "the server has ended"}
                return
            try:
                end = yield from self._follow(connection, timeout)
            finally:
                connection.close()
            if end is not None:
                yield {"end": end}
                return
            timeout = RETURN_TIMEOUT
            # A server that closes each connection at once is not to be asked without a rest.
            pause = FIRST_PAUSE if self._seq != seen else min(2 * pause, MAX_PAUSE)
            time.sleep(pause)

    def _follow(self, connection: Connection, timeout: float | None) -> Generator[dict[str, Any], None, str | None]:
        """Yields messages; returns the reason of the end, None where the stream has to be begun again."""
        head = self._begin(connection, timeout)
        if head is None:
            return None
        number = head.get("subscription")
        self._epoch, self._seq = head.get("epoch", ""), head.get("seq", 0)
        yield from self._note_generation(head)
        while True:
            message = connection.receive(time.monotonic() + SILENCE)
            if message is None:
                if connection.ended:
                    return None
                raise TimedOut(f"{connection.endpoint} has sent nothing for {SILENCE:g} s; it is still there")
            params = stream_params(message, number)
            if params is None:
                continue
            if "end" in params:
                return None if params["end"] == "reload" else str(params["end"])
            self._seq = params.get("seq", self._seq)
            if "item" in params:
                item = params["item"]
                yield from self._note_generation(item)
                self._time = item.get("time", self._time)
                yield {"seq": self._seq, **item}
            elif not params.keys().isdisjoint(("dropped", "gap", "about", "unanswered")):
                yield {name: value for name, value in params.items() if name != "subscription"}

    def _begin(self, connection: Connection, timeout: float | None) -> dict[str, Any] | None:
        params = self._params
        if self._epoch is not None:
            # An item of the next epoch is new if it is later.
            params = {**params, "after": self._seq, "epoch": self._epoch, "since": self._time or params.get("since")}
        params = {name: value for name, value in params.items() if value is not None}
        deadline = None if timeout is None else time.monotonic() + timeout
        (id,) = connection.send([(self._method, params)], deadline)
        while (message := connection.receive(deadline)) is not None:
            if isinstance(message, Response) and message.id in (id, None):
                try:
                    head = self._result(message)
                except ServerReloaded:
                    # Just when the server was about to be replaced.
                    if self._epoch is None:
                        raise
                    return None
                if not isinstance(head, dict) or "subscription" not in head:
                    raise RemoteProtocolError(f"the answer to {self._method} is no stream")
                return head
        if connection.ended and self._epoch is not None:
            return None
        if connection.ended:
            raise ControlError(f"{connection.endpoint} closed the connection without an answer to {self._method}")
        raise TimedOut(f"{connection.endpoint} did not answer {self._method} within {timeout:g} s; it is still there")

    def _note_generation(self, source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        generation = source.get("generation")
        if isinstance(generation, int) and (self._generation is None or generation > self._generation):
            known, self._generation = self._generation, generation
            if known is not None:
                yield {"generation": generation}


def joined(connection: Connection, head: Mapping[str, Any], deadline: float | None) -> Any:
    """The long result that `head` announces. Raises TimedOut, or RemoteProtocolError if the connection ends before."""
    pieces: list[str] = []
    while (message := connection.receive(deadline)) is not None:
        params = stream_params(message, head.get("subscription"))
        if params is not None and "end" in params:
            return decode("".join(pieces).encode())
        if params is not None:
            pieces.append(params.get("chunk", ""))
    if connection.ended:
        raise RemoteProtocolError(f"{connection.endpoint} closed the connection in the middle of a long result")
    raise TimedOut(f"{connection.endpoint} has not sent the whole of a long result in time; it is still there")


def stream_params(message: Request | Response, number: Any) -> dict[str, Any] | None:
    """The parameters of a notification about the stream with that number; None for another message."""
    if isinstance(message, Response) or not isinstance(message.params, dict):
        return None
    return message.params if message.params.get("subscription") == number else None
