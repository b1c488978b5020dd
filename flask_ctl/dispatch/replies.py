"""What a command may know of its call, and how the next image of the process answers after a reload."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from ..errors import CommandError, ServerReloaded
from ..protocol.jsonrpc import Request, decode, encode, error_object, parse_request, result_object
from ..protocol.plain import parse_plain
from ..protocol.text import render_error, render_result
from .audit import NO_ENTRY, Entry
from .commands import invalid_parameter
from .peer import Peer
from .streams import Stream

ReplyTo = dict[str, Any]
"""How a reply is addressed: ``{"id": …}`` for JSON-RPC, ``{"plain": True}`` for text, ``{}`` for none."""


class Connection(Protocol):
    """The connection over which a message came."""

    def keep(self, reply: ReplyTo) -> None:
        """Leave the connection to the next image of this process, which owes the client this reply."""

    def subscribe(self, stream: Stream, *, plain: bool = False) -> int:
        """Send the client what comes of a stream, until its end; the number of the stream."""

    def cancel(self, subscription: int) -> bool:
        """End the client's stream with that number; whether there was one."""

    def send(self, message: bytes) -> None:
        """Send a message that is no answer, however slow the client is. Any thread may call it."""


class Reply(NamedTuple):
    """The answer to a reload, which the next image of the process gives."""

    connection: Connection
    to: ReplyTo
    entry: Entry = NO_ENTRY

    def keep(self) -> None:
        """Have the next image give it, and log the outcome."""
        self.entry.replaces = True
        self.connection.keep(self.to)


class Call(NamedTuple):
    """What a built-in command may know of its call: the peer, and where progress goes.

    `reply` is None where another image can't answer: in a batch.
    """

    peer: Peer
    progress: Callable[[Mapping[str, Any]], None] | None = None
    reply: Reply | None = None
    meta: Mapping[str, Any] = {}
    """Parameters that begin with an underscore: they are about the call, not for the command."""

    @property
    def timeout(self) -> float:
        """Seconds that the caller waits for the answer. Raises CommandError -32602 if that is no number."""
        value = self.meta.get("_timeout")
        try:
            # As text it comes from a plain command.
            return math.inf if value is None else float(value)
        except (TypeError, ValueError):
            raise invalid_parameter("_timeout", "must be a number of seconds") from None


def reply_bytes(to: ReplyTo, method: str, result: Any) -> bytes:
    """The reply that the previous image owed; empty for a notification."""
    if to.get("plain"):
        return render_result(method, result).encode()
    return encode(result_object(to["id"], result)) if "id" in to else b""


def reloaded_answer(message: bytes, owed: ReplyTo | None = None) -> bytes | None:
    """The answer to a JSON-RPC message that a reload cuts off: -32006 for each request in it.

    None for half a message, for notifications, and for the request to which the next image owes the reply, `owed`.
    """
    try:
        value = decode(message)
        requests = [parse_request(each) for each in (value if isinstance(value, list) else [value])]
    except CommandError:
        return None
    errors = [_reloaded(request) for request in requests if not request.is_notification and {"id": request.id} != owed]
    return encode(errors if isinstance(value, list) else errors[0]) if errors else None


def _reloaded(request: Request) -> dict[str, Any]:
    return error_object(request.id, ServerReloaded.before(request.method))


def reloaded_text(line: bytes) -> bytes:
    """The answer to a plain command that a reload cuts off."""
    try:
        name, _ = parse_plain(line)
    except CommandError as error:
        return render_error(error).encode(errors="replace")
    return render_error(ServerReloaded.before(name)).encode(errors="replace")
