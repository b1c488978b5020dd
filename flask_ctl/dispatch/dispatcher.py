"""Bytes in, bytes out: decode, authorise, look up, bind, call, encode.

No socket, thread or clock is used here. An answer is bytes, None (a notification has none), or a Future of either for a
command that takes its time.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, Union

from ..errors import INVALID_REQUEST, CommandError, as_command_error
from ..protocol.framing import MAX_FRAME
from ..protocol.jsonrpc import (
    Request,
    decode,
    encode,
    error_object,
    is_id,
    parse_request,
    request_object,
    result_object,
)
from ..protocol.plain import parse_plain
from ..protocol.text import render_error, render_result
from ..system.native import new_future
from .audit import NO_ENTRY, Entry
from .commands import Command, CommandRegistry, invalid_parameter
from .guard import Guard
from .peer import Peer

Answer = Union[bytes, None, "Future[bytes | None]"]
Notify = Callable[[bytes], None]
ReplyTo = dict[str, Any]
"""How a reply is addressed: ``{"id": …}`` for JSON-RPC, ``{"plain": True}`` for text, ``{}`` for none."""
Submit = Callable[[Command, dict[str, Any]], "Future[Any]"]

MAX_BATCH = 128
"""Requests in one batch: each costs an answer, and a frame could hold half a million empty ones."""

PLAIN_META = frozenset({"_pid", "_timeout"})
"""What a plain command may say about its call."""

logger = logging.getLogger("flask_ctl")


class Keeper(Protocol):
    """A client's connection, which can be left to the next image of this process."""

    def keep(self, reply: ReplyTo) -> None:
        """Leave it to the next image, which owes the client this reply."""

    def current(self) -> bytes:
        """The message that is being handled."""

    def defer(self, message: bytes) -> None:
        """Leave it to the next image to answer a message that was `current`."""

    def send(self, message: bytes) -> None:
        """Send a message that is no answer, however slow the client is. Any thread may ask."""


class Reply(NamedTuple):
    """The answer that a call waits for, as something that another image of the process can give."""

    keeper: Keeper
    to: ReplyTo
    entry: Entry = NO_ENTRY

    def leave(self) -> None:
        """Have the next image give it."""
        self.entry.replaces = True
        self.keeper.keep(self.to)

    def defer(self, message: bytes) -> None:
        """Have the next image handle the whole call, which came as `message`."""
        self.entry.drop()
        self.keeper.defer(message)


class _Nobody:
    def keep(self, reply: ReplyTo) -> None:
        """There is nobody to reply to."""

    def current(self) -> bytes:
        """There is no message."""
        return b""

    def defer(self, message: bytes) -> None:
        """There is no message to defer."""

    def send(self, message: bytes) -> None:
        """There is nobody to tell."""


NOBODY = Reply(_Nobody(), {})
"""For a call that no client has made."""


class Call(NamedTuple):
    """What a built-in command may know of its call: who asked, and how to tell them how it goes."""

    peer: Peer
    progress: Callable[[Mapping[str, Any]], None] | None = None
    reply: Reply | None = None
    meta: Mapping[str, Any] = {}
    """Parameters that begin with an underscore: they are about the call, not for the command."""


class Dispatcher:
    """Answers messages with the commands of one registry.

    Built-in commands run where `handle` is called and may return a Future; the others are given to `submit`.
    `guard` says who may have which command run, before anything else is told of it, and is told how it went.
    """

    def __init__(self, registry: CommandRegistry, submit: Submit, guard: Guard) -> None:
        self.registry = registry
        self._submit = submit
        self._guard = guard

    def handle(self, message: bytes, peer: Peer, notify: Notify, keeper: Keeper | None = None) -> Answer:
        """The answer to a JSON-RPC message; progress notifications go to `notify`. Never raises."""
        try:
            value = decode(message)
        except CommandError as error:
            return encode(error_object(None, error))
        if isinstance(value, list):
            return self._batch(value, peer, notify)
        return self._single(value, peer, notify, keeper)

    def handle_plain(self, line: bytes, peer: Peer, keeper: Keeper | None = None) -> Answer:
        """The answer to a plain-text command, as text for a person. Never raises."""
        try:
            name, texts = parse_plain(line)
            entry = self._guard.admit(peer, name, self.registry.find(name), texts)
            command = self.registry.get(name)
            reply = None if keeper is None else Reply(keeper, {"plain": True}, entry)
            meta = {key: texts.pop(key) for key in PLAIN_META & texts.keys()}
            outcome = self._run(entry, command, lambda: command.bind_text(texts), Call(peer, None, reply, meta))
        except CommandError as error:
            return render_error(error).encode(errors="replace")
        answer: Answer = _then(outcome, lambda result: _as_text(name, result).encode(errors="replace"))
        return answer

    def _batch(self, values: list[Any], peer: Peer, notify: Notify) -> Answer:
        if not values or len(values) > MAX_BATCH:
            error = CommandError(f"a batch holds 1 to {MAX_BATCH} requests, not {len(values)}", code=INVALID_REQUEST)
            return encode(error_object(None, error))
        return _gather([self._single(value, peer, notify) for value in values])

    def _single(self, value: Any, peer: Peer, notify: Notify, keeper: Keeper | None = None) -> Answer:
        try:
            request = parse_request(value)
        except CommandError as error:
            id = value.get("id") if isinstance(value, dict) and is_id(value.get("id")) else None
            return encode(error_object(id, error))
        try:
            outcome = self._execute(request, peer, notify, keeper)
        except CommandError as error:
            outcome = error
        answer: Answer = _then(outcome, lambda result: _response(request, result))
        return answer

    def _execute(self, request: Request, peer: Peer, notify: Notify, keeper: Keeper | None) -> Any:
        params, meta = _without_meta(request.params)
        wants_progress = meta.get("_progress") is True
        entry = self._guard.admit(peer, request.method, self.registry.find(request.method), params)
        command = self.registry.get(request.method)
        progress = _progress_sender(request.id, notify) if wants_progress and not request.is_notification else None
        to = {} if request.is_notification else {"id": request.id}
        reply = None if keeper is None else Reply(keeper, to, entry)
        return self._run(entry, command, lambda: command.bind(params), Call(peer, progress, reply, meta))

    def _run(self, entry: Entry, command: Command, bind: Callable[[], dict[str, Any]], call: Call) -> Any:
        try:
            outcome = self._call(command, bind(), call)
        except CommandError as error:
            entry.done(error)
            raise
        return _then(outcome, entry.done)

    def _call(self, command: Command, arguments: dict[str, Any], call: Call) -> Any:
        if not command.builtin:
            _check_pid(call.meta.get("_pid"))
        try:
            outcome = command.function(call, **arguments) if command.builtin else self._submit(command, arguments)
        except Exception as error:
            raise _failure(command.name, error) from None
        return _settled(command.name, outcome) if isinstance(outcome, Future) else outcome


def reply_bytes(to: ReplyTo, method: str, result: Any) -> bytes:
    """The reply that a former image owed; empty for a notification."""
    if to.get("plain"):
        return render_result(method, result).encode()
    return encode(result_object(to["id"], result)) if "id" in to else b""


def _check_pid(pid: Any) -> None:
    """Raises CommandError -32602 where another process is meant; as text the pid comes from a plain command."""
    if pid is not None and str(pid) != str(os.getpid()):
        raise invalid_parameter("_pid", f"no worker has the pid {pid}; there is only this process, {os.getpid()}")


def _failure(name: str, error: BaseException) -> CommandError:
    """The error object for an exception in a command; its traceback goes to the log, never over the wire."""
    if isinstance(error, CommandError):
        return error
    logger.error("the command %s failed", name, exc_info=error)
    return as_command_error(error)


def _without_meta(params: Any) -> tuple[Any, dict[str, Any]]:
    """The parameters without those that begin with an underscore, and those."""
    if isinstance(params, list) or not any(name.startswith("_") for name in params):
        return params, {}
    meta = {name: params[name] for name in params if name.startswith("_")}
    return {name: params[name] for name in params if name not in meta}, meta


def _progress_sender(id: Any, notify: Notify) -> Callable[[Mapping[str, Any]], None]:
    def send(fields: Mapping[str, Any]) -> None:
        notify(encode(request_object("progress", {"id": id, **fields})))

    return send


def _response(request: Request, result: Any) -> bytes | None:
    """The response; for what can't be sent, because it is no JSON or too long, an error. None for a notification."""
    if request.is_notification:
        return None
    make = error_object if isinstance(result, CommandError) else result_object
    try:
        return _bounded(encode(make(request.id, result)), request.id)
    except (TypeError, ValueError) as error:
        return encode(error_object(request.id, _no_json(error)))


def _as_text(name: str, result: Any) -> str:
    if isinstance(result, CommandError):
        return render_error(result)
    try:
        return render_result(name, result)
    except (TypeError, ValueError, RecursionError) as error:
        return render_error(_no_json(error))


def _no_json(error: Exception) -> CommandError:
    return CommandError(f"the result is not JSON: {error}")


def _bounded(data: bytes, id: Any = None) -> bytes:
    if len(data) <= MAX_FRAME:
        return data
    return encode(error_object(id, CommandError(f"the result takes {len(data)} bytes; {MAX_FRAME} can be sent")))


def _settled(name: str, outcome: Future[Any]) -> Future[Any]:
    """A Future that always has a result: where the other failed, a CommandError."""
    settled: Future[Any] = new_future()

    def done(future: Future[Any]) -> None:
        try:
            result = future.result()
        except BaseException as error:
            result = _failure(name, error)
        settled.set_result(result)

    outcome.add_done_callback(done)
    return settled


def _then(value: Any, *steps: Callable[[Any], Any]) -> Any:
    """`steps` applied to a value now, or to a Future's result once it is there."""
    if not isinstance(value, Future):
        for step in steps:
            value = step(value)
        return value
    following: Future[Any] = new_future()
    value.add_done_callback(lambda future: following.set_result(_then(future.result(), *steps)))
    return following


def _gather(answers: list[Answer]) -> Answer:
    """The answer to a batch; a Future if one of its `answers` is."""
    futures = [answer for answer in answers if isinstance(answer, Future)]
    if not futures:
        return _joined(answers)
    gathered: Future[bytes | None] = new_future()
    # Futures are done in several threads; `next` of a count is one step, so that only one of them is the last.
    left = itertools.count(len(futures) - 1, -1)

    def done(_future: Future[bytes | None]) -> None:
        if next(left) == 0:
            gathered.set_result(_joined(answers))

    for future in futures:
        future.add_done_callback(done)
    return gathered


def _joined(answers: list[Answer]) -> bytes | None:
    """The responses of a batch as one array; None if there are none, one error if they are too long together."""
    values = [answer.result() if isinstance(answer, Future) else answer for answer in answers]
    responses = [value for value in values if value is not None]
    return _bounded(b"[" + b",".join(responses) + b"]") if responses else None
