"""The operator's end: requests to instances, and what comes back at subjects of its own. On the connection's loop."""

from __future__ import annotations

import asyncio
import collections
import enum
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..dispatch.commands import Role
from ..dispatch.streams import MAX_RESULT
from .connection import Connection
from .subjects import FENCE, ID, INSTANCE, KEEP, LIFE, PART, USER, subject_of

KEEP_INTERVAL = 15.0
"""Seconds between two words that a stream is still wanted; its instance waits for three times as long."""

NO_RESPONDERS = "503"
"""The status of the message that stands for a subject at which nobody listens (ADR-4)."""


class Kind(enum.Enum):
    """What has come."""

    ANSWER = "a message of an instance"
    ABSENT = "nobody takes requests at the subject"
    DENIED = "the server does not permit the request, or the answers"
    RECONNECTED = "the connection was lost: what came meanwhile is lost, too"


class Letter(NamedTuple):
    """What has come for a request; `reply` is where."""

    kind: Kind
    reply: str
    data: bytes = b""
    instance: str = ""
    """As the answer says it."""
    message: str = ""


Receive = Callable[[Letter], Any]


class Request(NamedTuple):
    """A request for `send`. `instance` may be ALL; `id`, `fence` and `life` are for commands of the role operate."""

    role: Role
    app: str
    instance: str
    data: bytes
    id: str | None = None
    fence: int | None = None
    life: str | None = None


class Inbox:
    """Sends requests with a reply subject each, and hands on what comes there, until `forget`."""

    def __init__(self, connection: Connection, user: str) -> None:
        self._connection = connection
        self._user = user
        self._receivers: dict[str, tuple[Request, Receive]] = {}
        self._parts: dict[tuple[str, str], list[bytes]] = {}
        self._kept: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self._prefix = ""
        self._keeper: asyncio.Future[None] | None = None
        self.denials: collections.deque[Callable[[str, str], Any]] = collections.deque()
        """Called with the subject and the server's message when permission is denied; for waits without a request."""

    async def open(self) -> None:
        """Receive from now on."""
        self._prefix = self._connection.client.new_inbox()
        self._connection.on_denied = self._note_denied
        await self._connection.client.subscribe(f"{self._prefix}.*", cb=self._take)
        self._keeper = asyncio.ensure_future(self._keep_all())

    async def close(self) -> None:
        """Receive nothing more, and want nothing more of what was kept."""
        if self._keeper is not None:
            self._keeper.cancel()
        for reply, farewell in tuple(self._kept.items()):
            await self._publish(self._receivers[reply][0], farewell, reply, {USER: self._user})

    async def send(self, request: Request, receive: Receive, reply: str | None = None) -> str:
        """Send a request; returns the subject of the answers. With `reply` it belongs to an earlier one."""
        if reply is None:
            reply = f"{self._prefix}.{next(self._numbers)}"
            self._receivers[reply] = request, receive
        headers = {USER: self._user}
        if request.id is not None:
            headers[ID] = request.id
        if request.fence is not None:
            headers[FENCE] = str(request.fence)
        if request.life:
            headers[LIFE] = request.life
        await self._publish(request, request.data, reply, headers)
        return reply

    def keep(self, reply: str, farewell: bytes) -> None:
        """Say again and again that what comes there is wanted; at the end, that it is not."""
        if reply in self._receivers:
            self._kept[reply] = farewell

    def forget(self, reply: str) -> None:
        """What still comes there is dropped."""
        self._receivers.pop(reply, None)
        self._kept.pop(reply, None)
        for key in [key for key in self._parts if key[0] == reply]:
            del self._parts[key]

    def note_reconnected(self) -> None:
        """The connection is there again."""
        for reply, (_, receive) in tuple(self._receivers.items()):
            receive(Letter(Kind.RECONNECTED, reply))

    async def _publish(self, request: Request, data: bytes, reply: str, headers: Mapping[str, str]) -> None:
        subject = subject_of(request.role, request.app, request.instance)
        await self._connection.client.publish(subject, data, reply=reply, headers=dict(headers))

    async def _take(self, message: Any) -> None:
        receiver = self._receivers.get(message.subject)
        if receiver is None:
            return
        headers = message.headers or {}
        if headers.get("Status") == NO_RESPONDERS:
            receiver[1](Letter(Kind.ABSENT, message.subject))
            return
        instance = headers.get(INSTANCE, "")
        data = self._whole(message.subject, instance, headers.get(PART), message.data)
        if data is not None:
            receiver[1](Letter(Kind.ANSWER, message.subject, data, instance))

    def _whole(self, reply: str, instance: str, part: str | None, data: bytes) -> bytes | None:
        """A message, or the one that ends with this part; None while parts are missing."""
        if part is None:
            return data
        number, _, count = part.partition("/")
        parts = self._parts.setdefault((reply, instance), [])
        if number == "1":
            parts.clear()
        # Where one was lost, the rest is of no use.
        if not number.isdecimal() or int(number) != len(parts) + 1 or sum(map(len, parts)) + len(data) > MAX_RESULT:
            parts.clear()
            return None
        parts.append(data)
        if number != count:
            return None
        return b"".join(self._parts.pop((reply, instance)))

    def _note_denied(self, subject: str, message: str) -> None:
        # The client tells it in lower case.
        denied = subject.lower()
        for reply, (request, receive) in tuple(self._receivers.items()):
            own = subject_of(request.role, request.app, request.instance)
            if denied in (own.lower(), f"{self._prefix}.*".lower()):
                receive(Letter(Kind.DENIED, reply, message=message))
        for note in tuple(self.denials):
            note(denied, message)

    async def _keep_all(self) -> None:
        while True:
            await asyncio.sleep(KEEP_INTERVAL)
            for reply in tuple(self._kept):
                if (found := self._receivers.get(reply)) is not None:
                    await self._publish(found[0], b"", reply, {KEEP: "1"})
