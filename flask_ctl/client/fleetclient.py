"""A `ControlClient` of one instance over NATS, whose connection is a subject, and those of the answers."""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..dispatch.commands import Role
from ..errors import CONFLICT, AccessDenied, ConfigurationError, ControlError, NotRunning, TimedOut
from ..fleet.inbox import Kind, Letter, Request
from ..protocol.jsonrpc import Response, encode, parse_reply, request_object
from ..system.processes import ProcessHandle
from .client import ControlClient
from .connection import Connection
from .link import Link
from .methods import DEFAULT, Timeout
from .stop import Progress, StillThere

AGAIN = 0.5
"""Seconds before a command that still runs, or an instance that is busy or not there, is asked for again."""

PROBE = 5.0
"""Seconds after which a request without an answer is looked after: one with an id is sent again, as its answer may have
been lost; of another one, which would run again, its instance is asked whether it has it."""

ABSENCE = 3.0
"""Seconds for which an instance may be away, as between two images of a reload, before a question to it fails."""

MAX_REPLIES = 8
"""Subjects at which the answer to one command may still come, beside the first one."""

LOOK = 10.0
"""Seconds between two looks whether the instance of a stream has left."""

LEAVING = 0.1
"""Seconds between two looks whether an instance that ends has left."""

ROLES: dict[str, Role] = {
    **dict.fromkeys(("cancel", "commands", "events", "metrics", "ping", "requests", "status"), "observe"),
    **dict.fromkeys(("describe", "exceptions", "logs", "profile", "stacks"), "inspect"),
    **dict.fromkeys(("drain", "log_level", "reload", "reopen_logs", "resume", "stop", "workers"), "operate"),
}
"""Of commands that every server has; other ones are looked up."""


class Place(NamedTuple):
    """The names by which requests reach an instance, and the `roles` whose requests it accepts."""

    app: str
    instance: str
    roles: Sequence[str]
    has_left: Callable[[], bool | None]
    """Whether it has ended in order; None where nothing tells."""
    fence: int | None = None
    """Of the lease under which it is operated."""
    life: str | None = None
    """See `Presence`; None where nothing tells it."""


@dataclass
class _Sent:
    """A request without its answer."""

    request: Request
    method: str
    due: float
    """When it is asked for again, on the monotonic clock."""
    may_have_run: bool = False
    silent: bool = True
    """Whether nothing has come at the last of `replies`."""
    lost: bool = False
    """Whether it, or its answer, may have been lost with our connection."""
    absent_since: float | None = None
    replies: list[str] = field(default_factory=list)
    """Where the answer may still come: at the first one, unless something was lost."""


@dataclass
class _Stream:
    """What comes at a subject beyond the answer."""

    request: Request
    farewell: bytes
    """The request that ends it."""


class FleetConnection(Connection):
    """Requests to one instance, commands of the role operate at most once: one that is sent again has the same id.

    A question has no id. It is sent again only if nobody has it, or if its answer may have been lost with a connection.
    `ended` when the instance has left NATS in order, or when messages of a stream may have been lost.
    """

    def __init__(self, link: Link, place: Place, role_of: Callable[[str], Role]) -> None:
        super().__init__()
        self.endpoint = place.instance
        self._link = link
        self._place = place
        self._role_of = role_of
        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._letter: Letter | None = None
        self._sent: dict[str, _Sent] = {}
        self._streams: dict[str, _Stream] = {}
        self._methods: Sequence[str] = ()
        self._has_left = False
        self._look_at = 0.0

    def peer_pid(self) -> int | None:
        return None

    def peer(self) -> ProcessHandle | None:
        return None

    def peer_has_ended(self) -> bool:
        return self._has_left

    def close(self) -> None:
        for reply, stream in self._streams.items():
            # The instance ends it after a while, anyway.
            with contextlib.suppress(ControlError):
                self._link.send(stream.request._replace(data=stream.farewell), self._letters.put, reply)
        for reply in (*self._sent, *self._streams):
            self._link.soon(self._link.inbox.forget, reply)
        self._sent.clear()
        self._streams.clear()
        self.ended = True

    def send(self, requests: Sequence[tuple[str, Mapping[str, Any]]], deadline: float | None) -> list[int]:
        self._methods = [method for method, _ in requests]
        return super().send(requests, deadline)

    def _transmit(self, messages: list[bytes], deadline: float | None) -> None:
        now = time.monotonic()
        for method, data in zip(self._methods, messages):
            role = self._role_of(method)
            if role not in self._place.roles:
                raise AccessDenied(
                    f"{self.endpoint} takes over NATS only requests of the roles {', '.join(self._place.roles)}, and"
                    f" {method} needs {role}: its server has no TLS or no authentication (CTL_FLEET_OPERATE)"
                )
            id = secrets.token_hex(16) if role == "operate" else None
            fence = self._place.fence if role == "operate" else None
            life = self._place.life if role == "operate" else None
            request = Request(role, self._place.app, self._place.instance, data, id, fence, life)
            self._publish(_Sent(request, method, now + PROBE))

    def _publish(self, sent: _Sent) -> None:
        if not sent.silent:
            # Nothing more comes there.
            self._forget(sent.replies.pop())
        sent.silent, sent.lost = True, False
        reply = self._link.send(sent.request, self._letters.put)
        sent.replies.append(reply)
        self._sent[reply] = sent
        for old in sent.replies[1:-MAX_REPLIES]:
            sent.replies.remove(old)
            self._forget(old)

    def _wait(self, deadline: float | None, watched: Sequence[ProcessHandle]) -> bool:
        while True:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            wake = min((sent.due for sent in self._sent.values()), default=now + PROBE)
            if not self._sent and now >= self._look_at:
                # Without a stream, what is waited for is the end that it has announced by the answer to a stop.
                has_left = self._place.has_left()
                if has_left or (has_left is None and not self._streams):
                    self.ended = self._has_left = True
                    return True
                self._look_at = now + (LOOK if self._streams else LEAVING)
            wake = wake if self._sent else self._look_at
            wake = wake if deadline is None else min(wake, deadline)
            try:
                self._letter = self._letters.get(timeout=max(0.0, wake - now))
            except queue.Empty:
                self._ask_again()
                if self.ended:
                    return True
                continue
            return True

    def _fill(self) -> None:
        letter, self._letter = self._letter, None
        if letter is None:
            return
        if letter.kind is Kind.ANSWER:
            self._take(letter)
            return
        sent = self._sent.get(letter.reply)
        if letter.kind is Kind.RECONNECTED:
            if letter.reply in self._streams:
                self.ended = True
            elif sent is not None:
                sent.may_have_run, sent.lost = sent.request.role == "operate", True
                sent.due = 0.0
        elif sent is not None and letter.kind is Kind.DENIED:
            self._settle(sent)
            raise AccessDenied(letter.message)
        elif sent is not None and letter.reply == sent.replies[-1]:
            self._note_absence(sent)

    def _take(self, letter: Letter) -> None:
        message = parse_reply(letter.data)
        sent = self._sent.get(letter.reply)
        if sent is not None and isinstance(message, Response):
            if (why := _not_now(message)) is not None:
                sent.may_have_run, sent.absent_since = sent.may_have_run or why == "running", None
                sent.due = time.monotonic() + AGAIN
                sent.silent = sent.silent and letter.reply != sent.replies[-1]
                return
            if sent.may_have_run and _is_another(message):
                self._settle(sent)
                raise ControlError(
                    f"{self.endpoint} is another process than it was when {sent.method} was sent; it may have run",
                    {"may_have_run": True},
                )
            if isinstance(message.result, dict) and "subscription" in message.result:
                params = {"subscription": message.result["subscription"]}
                stream = _Stream(sent.request, encode(request_object("cancel", params, id=0)))
                self._streams[letter.reply] = stream
                self._link.soon(self._link.inbox.keep, letter.reply, stream.farewell)
            self._settle(sent)
        elif letter.reply in self._streams and not isinstance(message, Response):
            params = message.params if isinstance(message.params, dict) else {}
            if "end" in params:
                self._streams.pop(letter.reply)
                self._link.soon(self._link.inbox.forget, letter.reply)
        elif sent is None:
            # The answer to the `cancel`, or of a request that was asked for again.
            return
        self._messages.append(message)

    def _note_absence(self, sent: _Sent) -> None:
        now = time.monotonic()
        sent.silent = False
        sent.absent_since = sent.absent_since or now
        if now - sent.absent_since < ABSENCE:
            sent.due = now + AGAIN
            return
        if sent.may_have_run:
            if self._place.has_left():
                self._settle(sent)
                raise ControlError(
                    f"{self.endpoint} has left NATS before it answered {sent.method}; the outcome is not known",
                    {"may_have_run": True},
                )
            # A reload may take its time.
            sent.due = now + PROBE
            return
        self._settle(sent)
        raise NotRunning(f"nobody answers for {self.endpoint} at the NATS server; nothing was done", {"begun": False})

    def _ask_again(self) -> None:
        now = time.monotonic()
        for sent in {id(sent): sent for sent in self._sent.values()}.values():
            if sent.due <= now:
                sent.due = now + PROBE
                if sent.silent:
                    # A reload may be at work, in which nobody answers for a while.
                    sent.may_have_run, sent.absent_since = sent.request.role == "operate", None
                if not self._link.connection.connected:
                    continue
                if sent.request.id is None and sent.silent and not sent.lost:
                    # An instance that has the request does not answer this; the server tells if there is no instance.
                    self._link.send(sent.request._replace(data=b""), self._letters.put, sent.replies[-1])
                else:
                    # At a subject of its own: at the first one it would be another request.
                    self._publish(sent)

    def _settle(self, sent: _Sent) -> None:
        """Nothing more is expected for it, but what a stream brings."""
        for reply in sent.replies:
            self._sent.pop(reply, None)
            if reply not in self._streams:
                self._forget(reply)

    def _forget(self, reply: str) -> None:
        self._sent.pop(reply, None)
        self._link.soon(self._link.inbox.forget, reply)


def _not_now(message: Response) -> str | None:
    """Why the answer comes later: it is ``running``, the instance is ``busy``, or the answer is lost: ``unknown``."""
    if message.error is None or message.error[0] != CONFLICT or not isinstance(message.error[2], dict):
        return None
    data = message.error[2]
    return next((why for why in ("running", "busy", "unknown") if data.get(why) is True), None)


def _is_another(message: Response) -> bool:
    """Whether the answer comes from a process that does not know what was sent to the one of that name before."""
    data = None if message.error is None else message.error[2]
    return isinstance(data, dict) and "life" in data


class FleetClient(ControlClient):
    """Controls an instance over NATS. A stop or a reload is done at most once, also where it had to be sent again."""

    def __init__(self, link: Link, place: Place, *, timeout: Timeout = DEFAULT) -> None:
        super().__init__(None, timeout=timeout)
        self._link = link
        self._place = place
        self._roles: dict[str, Role] = dict(ROLES)

    def stop(
        self,
        mode: str = "graceful",
        *,
        grace: float | None = None,
        delay: float = 0.0,
        wait: bool = True,
        kill_after: float | None = None,
        policy: bool = False,
        for_good: bool = False,
        timeout: Timeout = DEFAULT,
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        if kill_after is not None or for_good:
            raise ConfigurationError("processes are killed, and supervisors told, only on the server's machine")
        try:
            result = super().stop(
                mode, grace=grace, delay=delay, wait=wait, timeout=timeout, on_progress=on_progress
            )  # fmt: skip
        except TimedOut as error:
            if isinstance(error, StillThere):
                kill = "flask-ctl stop --kill-after, on its machine, ends it"
                why = f"{self._place.instance} has answered the stop, but has not left NATS: {error.reason}; {kill}"
            else:
                why = f"the stop of {self._place.instance} was not answered in time; the outcome is not known"
            raise ControlError(why, {**(error.data or {}), "may_have_run": True}) from None
        # That it has left NATS says nothing more.
        return {**result, "proof": "answer"} if result.get("proof") == "connection" else result

    def follow(self, name: str, /, **params: Any) -> Iterator[dict[str, Any]]:
        begun = False
        try:
            for message in super().follow(name, **params):
                begun = True
                yield message
        except NotRunning:
            if not begun:
                raise
            yield {"end": "the server has ended"}

    def restart(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        raise ConfigurationError("a restart is watched on the server's machine: flask-ctl restart")

    def _connected(self, timeout: float | None) -> Connection:
        if self._connection is None or self._connection.ended:
            self.close()
            self._connection = self._another_connection(timeout)
        return self._connection

    def _another_connection(self, timeout: float | None) -> Connection:
        return FleetConnection(self._link, self._place, self._role_of)

    def _confirm_address(self) -> None:
        """It was given."""

    def _require_protocol(self, timeout: Timeout) -> None:
        try:
            super()._require_protocol(timeout)
        except TimedOut as error:
            raise ControlError(f"{error.message}; nothing was done", {"begun": False}) from None

    def _no_answer(self, connection: Connection, method: str, timeout: float | None) -> Exception:
        if connection.ended:
            return super()._no_answer(connection, method, timeout)
        silence = f"{connection.endpoint} has not answered {method} within {timeout:g} s"
        if self._role_of(method) == "operate":
            return ControlError(f"{silence}; the outcome is not known", {"may_have_run": True})
        return TimedOut(silence, {"can_be_killed": False})

    def _role_of(self, method: str) -> Role:
        """Raises ControlError if the instance does not tell."""
        if method not in self._roles:
            self._roles.update((name, told["role"]) for name, told in self.commands().items())
        return self._roles.get(method, "operate")
