"""NATS as a transport: requests that the fleet's thread takes in are answered on the control thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..dispatch.commands import Role
from ..dispatch.guard import Guard
from ..dispatch.peer import Peer, this_process
from ..dispatch.replies import ReplyTo
from ..dispatch.streams import LongResult
from ..errors import CONFLICT, CommandError
from ..protocol.jsonrpc import decode, encode, error_object, is_id, request_object
from ..system.handover import inherited
from ..system.native import threading
from ..transports.base import Handler
from ..transports.reactor import Reactor
from ..transports.session import Session
from .agent import Deliver, Identity, Incoming
from .connection import check_broker
from .memory import MAX_ID, CommandMemory
from .presence import INTERVAL, Presence
from .settings import FleetSettings
from .thread import LAST_WORDS, FleetThread

MAX_SESSIONS = 256
"""Callers that wait for an answer, or have a stream; more are told to come later."""

MAX_WAITING = 8
"""Requests at one reply subject that wait for those before them."""

MAX_HANDED = 1024
"""Requests on their way from the fleet's thread to the control thread."""

KEEP_TIME = 45.0
"""Seconds for which a stream goes on without a word of its caller, who may have died: NATS does not tell."""

HIGH_WATER = 256 * 1024
"""Bytes of answers that wait for the server, above which streams wait."""

CROWDED = "too many callers at once; ask again later"
BUSY = {"busy": True, "begun": False}
"""Of a refusal: nothing was looked at, and the same message can be sent again."""

_STATUS = encode(request_object("status", id=0))
_ERROR_SIZE = 64 * 1024
"""Bytes of an answer that may be an error."""

logger = logging.getLogger("flask_ctl")

Key = tuple[str, Role]
"""Where the answers of a caller go, and what it may do: one that may do less can't speak in its place."""


class FleetSession(Session):
    """One request of an operator, and what belongs to it: its progress, or a stream that it has asked for."""

    def __init__(
        self, key: Key, peer: Peer, reactor: Reactor, handler: Handler, listener: FleetListener, id: str | None
    ) -> None:
        super().__init__(peer, reactor, handler, max_pending=8)
        self._key = key
        self._listener = listener
        self._id = id
        self._request = b""
        self._heard = time.monotonic()

    def take(self, data: bytes) -> bool:
        """A request; or nothing, which says that the caller is still there. False if too many wait already."""
        self._heard = time.monotonic()
        if data and len(self._waiting) >= MAX_WAITING:
            return False
        if data:
            self._request = self._request or data
            self._waiting.append(data)
            self._proceed()
        return True

    def tick(self, now: float) -> None:
        """End the streams of a caller that says nothing any more."""
        if self._subscriptions and now - self._heard > KEEP_TIME:
            self._subscriptions.end_all("its caller has not been heard of")
        self._subscriptions.tick()
        self._settle()

    def resume(self) -> None:
        """There is room again for answers."""
        self._proceed()

    def close(self) -> None:
        """The listener ends."""
        self._waiting.clear()
        self._subscriptions.close()

    def export_state(self) -> dict[str, Any] | None:
        """Of the caller of the reload: what the next image needs to answer it; None for another one."""
        return None if self._owed is None else {"subject": self._key[0], "reply": self._owed, "id": self._id}

    def _give(self, message: bytes, answer: bytes | LongResult | None) -> None:
        if self._id is not None and isinstance(answer, LongResult):
            self._listener.memory.finish(self._id, _not_kept(answer))
        super()._give(message, answer)

    def _write_answer(self, message: bytes, answer: bytes) -> None:
        if self._id is not None and message == self._request:
            self._listener.memory.finish(self._id, answer)
        self._listener.send(self._key[0], answer)

    def _write_text(self, line: str) -> None:
        """There are no plain commands over NATS."""

    def _write_progress(self, message: bytes) -> None:
        self._listener.send(self._key[0], message)

    def _is_full(self) -> bool:
        return self._listener.is_full()

    def _settle(self) -> None:
        self._subscriptions.resume()
        if not (self._pending or self._waiting or self._subscriptions or self._owed is not None):
            self._listener.forget(self._key)


class FleetListener:
    """The requests to one app over NATS, from `open` to `close`. A server that is not there is no error."""

    connects_out = True

    def __init__(
        self,
        settings: FleetSettings,
        identity: Identity,
        guard: Guard,
        make_thread: Callable[[FleetSettings, Identity, Deliver], FleetThread] = FleetThread,
    ) -> None:
        self.memory = CommandMemory()
        self._settings = settings
        self._identity = identity
        self._guard = guard
        self._thread = make_thread(settings, identity, self._deliver)
        self._thread.on_sent = self._sent
        self._sessions: dict[Key, FleetSession] = {}
        self._reactor: Reactor | None = None
        self._handler: Handler | None = None
        self._lock = threading.Lock()
        self._handed = 0
        self._owed: dict[str, Any] | None = None
        self._next_look = 0.0
        self._looking = False

    @property
    def endpoint(self) -> str:
        return f"NATS for {self._identity.app} {self._identity.instance}"

    def describe(self) -> dict[str, Any]:
        """For `status`: where, as what, with which roles; and why not, if it is not connected."""
        problem = self._thread.problem
        return {
            "servers": self._settings.broker.shown(),
            "instance": self._identity.instance,
            "account": self._thread.account,
            "roles": [] if problem else list(self._thread.roles),
            "problem": problem,
        }

    def check(self) -> None:
        """Nothing is bound."""

    def open(self) -> None:
        """Raises ConfigurationError without nats-py, or for files that can't be read."""
        check_broker(self._settings.broker)
        left = inherited.take_control(self.endpoint)
        if left is not None:
            self.memory.restore_state(left["memory"])
            self._owed = left["caller"]
        self._thread.start()

    def renew_access(self) -> None:
        """Who may do what is said by the servers' permissions."""

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        self._handler = handler
        self._reactor = reactor
        reactor.call_soon(self.tick)

    def tick(self) -> None:
        now = time.monotonic()
        for session in tuple(self._sessions.values()):
            session.tick(now)
        if now >= self._next_look and not self._looking:
            self._look()

    def detach(self) -> None:
        for session in tuple(self._sessions.values()):
            session.close()
        self._sessions.clear()
        self._reactor = None
        self._looking = False

    def flush(self, timeout: float) -> None:
        self._thread.flush(timeout)

    def export_state(self) -> dict[str, Any] | None:
        for session in tuple(self._sessions.values()):
            session.reject_unanswered()
        callers = [state for session in self._sessions.values() if (state := session.export_state()) is not None]
        self._thread.flush(LAST_WORDS)
        self._thread.close(leave=True)
        caller = callers[0] if callers else None
        kept = {"address": self.endpoint, "file": None, "socket": -1, "lock": -1}
        return {**kept, "caller": caller, "memory": self.memory.export_state()}

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        owed, self._owed = self._owed, None
        if owed is not None and (answer := reply(owed["reply"])):
            if owed["id"] is not None:
                self.memory.finish(owed["id"], answer)
            self.send(owed["subject"], answer)
            self._next_look = 0.0

    def close(self) -> None:
        self.detach()
        self._thread.close()

    def abandon(self) -> None:
        self._thread.abandon()

    def send(self, subject: str, answer: bytes) -> None:
        """Publish an answer, or something else for a caller."""
        self._thread.respond(subject, answer, _error_in(answer))

    def is_full(self) -> bool:
        """Whether so much waits for the server that no more is to be written."""
        return self._thread.unsent > HIGH_WATER

    def forget(self, key: Key) -> None:
        """Nothing more comes for this caller."""
        if self._sessions.pop(key, None) is not None and key[1] == "operate":
            # What it has changed is worth telling.
            self._next_look = 0.0

    def _sent(self) -> None:
        """On the fleet's thread."""
        reactor = self._reactor
        if self._sessions and reactor is not None:
            # Some may have waited for that.
            reactor.call_soon(self._resume)

    def _resume(self) -> None:
        for session in tuple(self._sessions.values()):
            session.resume()

    def _deliver(self, incoming: Incoming) -> None:
        """On the fleet's thread."""
        reactor = self._reactor
        with self._lock:
            room = self._handed < MAX_HANDED and reactor is not None
            self._handed += room
        if room and reactor is not None:
            reactor.call_soon(self._take, incoming)
        elif incoming.data:
            self._refuse(incoming, "too many requests at once; ask again later", BUSY)

    def _take(self, incoming: Incoming) -> None:
        with self._lock:
            self._handed -= 1
        if self._reactor is None or self._handler is None:
            return
        key = incoming.reply, incoming.role
        session = self._sessions.get(key)
        if session is not None:
            if not session.take(incoming.data):
                self._refuse(incoming, CROWDED, BUSY)
        elif not incoming.data:
            # Its caller may wait for an answer that was lost.
            self._refuse(incoming, "nothing is known of this request", {"unknown": True})
        elif self._may_begin(incoming):
            peer = Peer(role=incoming.role, account=self._thread.account, user=incoming.user)
            id = incoming.id if incoming.role == "operate" else None
            self._sessions[key] = session = FleetSession(key, peer, self._reactor, self._handler, self, id)
            session.take(incoming.data)

    def _may_begin(self, incoming: Incoming) -> bool:
        """Whether it is to be handled; if not, its sender has been told why."""
        has_room = len(self._sessions) < MAX_SESSIONS
        if incoming.role != "operate":
            if not has_room:
                self._refuse(incoming, CROWDED, BUSY)
            return has_room
        if incoming.life not in (None, self.memory.life):
            why = f"{self._identity.instance} is another process than it was, which does not know what was sent before"
            self._refuse(incoming, f"{why}; nothing was done", {"life": self.memory.life, "begun": False})
            return False
        if incoming.id is not None and len(incoming.id) > MAX_ID:
            self._refuse(incoming, f"an id has {MAX_ID} characters at most")
            return False
        seen = None if incoming.id is None else self.memory.find(incoming.id)
        if seen is not None:
            if seen.answer is not None:
                self.send(incoming.reply, _for_request(seen.answer, incoming.data))
            elif seen.done:
                self._refuse(incoming, "this command has run; its answer is not known any more", {"ran": True})
            else:
                self._refuse(incoming, "this command still runs", {"running": True})
            return False
        if not has_room:
            self._refuse(incoming, CROWDED, BUSY)
            return False
        if incoming.fence is not None and not self.memory.passes(incoming.fence):
            why = "another operator has taken the lease of the rollout since, or the bucket of leases was made anew"
            self._refuse(incoming, f"{why}; nothing was done", {"fence": self.memory.fence, "begun": False})
            return False
        if incoming.id is not None and not self.memory.begin(incoming.id):
            self._refuse(incoming, "too many commands run at once; nothing was done", {"begun": False})
            return False
        return True

    def _refuse(self, incoming: Incoming, message: str, data: dict[str, Any] | None = None) -> None:
        error = CommandError(message, code=CONFLICT, data=data)
        self._thread.respond(incoming.reply, encode(error_object(_id_of(incoming.data), error)), (CONFLICT, message))

    def _look(self) -> None:
        """Ask for the status, and renew the presence."""
        self._next_look = time.monotonic() + INTERVAL
        if self._reactor is None or self._handler is None:
            return
        reactor = self._reactor
        answer = self._handler.handle(_STATUS, this_process(), lambda message: None)
        if isinstance(answer, Future):
            self._looking = True
            answer.add_done_callback(lambda future: reactor.call_soon(self._looked, future.result()))
        else:
            self._looked(answer)

    def _looked(self, answer: bytes | LongResult | None) -> None:
        self._looking = False
        status = decode(answer).get("result") if isinstance(answer, bytes) else None
        if status is None:
            logger.debug("the status for NATS is missing")
            return
        if status["state"] not in ("running", "draining"):
            # It changes soon.
            self._next_look = 0.0
        identity = self._identity
        self._thread.tell(
            Presence(
                identity.app,
                identity.instance,
                identity.host,
                identity.pid,
                status["generation"],
                status["state"],
                status["started_at"],
                identity.version,
                labels=identity.labels,
                in_flight=status["requests"]["in_flight"],
                requests=status["requests"]["total"],
                rss=status["process"].get("rss"),
                life=self.memory.life,
            )
        )


def _not_kept(answer: LongResult) -> bytes:
    """What is remembered in the place of a long result."""
    message = "this command has run; its result is too long to be kept"
    return encode(error_object(answer.id, CommandError(message, code=CONFLICT, data={"ran": True})))


def _for_request(answer: bytes, request: bytes) -> bytes:
    """A remembered answer with the id of another request for the same command."""
    return encode({**decode(answer), "id": _id_of(request)}) if answer else answer


def _id_of(request: bytes) -> Any:
    try:
        value = decode(request)
    except CommandError:
        return None
    return value.get("id") if isinstance(value, dict) and is_id(value.get("id")) else None


def _error_in(answer: bytes) -> tuple[int, str] | None:
    """The code and the message of an answer that is an error."""
    if len(answer) > _ERROR_SIZE or b'"error":' not in answer:
        return None
    value = decode(answer)
    error = value.get("error") if isinstance(value, dict) else None
    return None if error is None else (error["code"], error["message"])
