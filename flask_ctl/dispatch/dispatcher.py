"""Bytes in, bytes out: decode, authorise, look up, bind, call, encode.

No socket, thread or clock is used here. An answer is bytes, a LongResult, None (a notification has none), or a Future
of one of these for a command that takes its time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Union

from ..errors import CONFLICT, INVALID_REQUEST, NOT_SUPPORTED, CommandError, as_command_error
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
from .audit import Entry
from .commands import Command, CommandRegistry, Role, invalid_parameter
from .futures import gather, settled, then
from .guard import Guard
from .peer import Peer
from .replies import Call, Connection, Reply
from .streams import MAX_RESULT, MAX_STREAMS, LongResult, Stream

Answer = Union[bytes, LongResult, None, "Future[bytes | LongResult | None]"]
Notify = Callable[[bytes], None]
Submit = Callable[[Command, dict[str, Any]], "Future[Any]"]

MAX_BATCH = 128
"""Requests in one batch: each costs an answer, and a frame could hold half a million empty ones."""

PLAIN_META = frozenset({"_pid", "_timeout"})
"""What a plain command may say about its call."""

logger = logging.getLogger("flask_ctl")


class Subscribed(dict[str, Any]):
    """The result of a call that streams."""


class Dispatcher:
    """Answers JSON-RPC messages and plain-text lines with the commands of one registry.

    Built-in commands run where `handle` is called and may return a Future; the others are given to `submit`.
    `guard` authorizes each call before the command is looked up, and gets its outcome for the audit log.
    """

    def __init__(self, registry: CommandRegistry, submit: Submit, guard: Guard) -> None:
        self.registry = registry
        self._submit = submit
        self._guard = guard
        self._streams: dict[Stream, tuple[Peer, Role | None]] = {}

    def handle(self, message: bytes, peer: Peer, notify: Notify, connection: Connection | None = None) -> Answer:
        """The encoded response to a JSON-RPC request or batch, or a Future of it; None if there is nothing to answer.

        Progress notifications go to `notify`. Never raises.
        """
        try:
            value = decode(message)
        except CommandError as error:
            return encode(error_object(None, error))
        if isinstance(value, list):
            return self._batch(value, peer, notify)
        return self._single(value, peer, notify, connection)

    def handle_plain(self, line: bytes, peer: Peer, connection: Connection | None = None) -> Answer:
        """The answer to a plain-text command, as text for a person. Never raises."""
        try:
            name, texts = parse_plain(line)
            entry = self._guard.authorize(peer, name, self.registry.find(name), texts)
            command = self.registry.get(name)
            reply = None if connection is None else Reply(connection, {"plain": True}, entry)
            meta = {key: texts.pop(key) for key in PLAIN_META & texts.keys()}
            outcome = self._run(entry, command, command.bind_text, texts, Call(peer, None, reply, meta))
        except CommandError as error:
            return render_error(error).encode(errors="replace")
        answer: Answer = _then(outcome, lambda result: _plain_answer(name, result))
        return answer

    def end_revoked_streams(self) -> None:
        """End the streams of peers to which another policy gives a lower role than they had."""
        for stream, (peer, role) in tuple(self._streams.items()):
            if role is not None and not self._guard.policy.permits(peer, role):
                stream.end("permission denied: the app's new code gives this caller a lower role")

    def _batch(self, values: list[Any], peer: Peer, notify: Notify) -> Answer:
        if not values or len(values) > MAX_BATCH:
            error = CommandError(f"a batch holds 1 to {MAX_BATCH} requests, not {len(values)}", code=INVALID_REQUEST)
            return encode(error_object(None, error))
        answers = [self._single(value, peer, notify) for value in values]
        futures = [answer for answer in answers if isinstance(answer, Future)]
        return then(gather(futures), lambda _: _joined(answers)) if futures else _joined(answers)

    def _single(self, value: Any, peer: Peer, notify: Notify, connection: Connection | None = None) -> Answer:
        try:
            request = parse_request(value)
        except CommandError as error:
            id = value.get("id") if isinstance(value, dict) and is_id(value.get("id")) else None
            return encode(error_object(id, error))
        try:
            outcome = self._execute(request, peer, notify, connection)
        except CommandError as error:
            outcome = error
        # Without a connection it is in a batch, which is answered in one piece.
        limit = MAX_RESULT if connection is not None and _chunks(request.params) else MAX_FRAME
        answer: Answer = _then(outcome, lambda result: _response(request, result, limit))
        return answer

    def _execute(self, request: Request, peer: Peer, notify: Notify, connection: Connection | None) -> Any:
        params, meta = _without_meta(request.params)
        wants_progress = meta.get("_progress") is True
        entry = self._guard.authorize(peer, request.method, self.registry.find(request.method), params)
        command = self.registry.get(request.method)
        progress = _progress_sender(request.id, notify) if wants_progress and not request.is_notification else None
        to = {} if request.is_notification else {"id": request.id}
        reply = None if connection is None else Reply(connection, to, entry)
        return self._run(entry, command, command.bind, params, Call(peer, progress, reply, meta))

    def _subscribe(self, stream: Stream, call: Call) -> Subscribed:
        """The result of the call; from now on the connection has the stream."""
        if call.reply is None:
            raise CommandError("a stream can't be part of a batch", code=NOT_SUPPORTED)
        role = self._guard.policy.role_of(call.peer)
        limit = MAX_STREAMS if role == "operate" else MAX_STREAMS // 2
        if len(self._streams) >= limit:
            raise CommandError(f"{limit} streams are open, the most at once; end one", code=CONFLICT)
        self._streams[stream] = call.peer, role
        stream.on_close = self._streams.pop
        number = call.reply.connection.subscribe(stream, plain=call.reply.to.get("plain", False))
        return Subscribed({"subscription": number, **stream.head})

    def _begun(self, result: Any, call: Call) -> Any:
        """The result of a command that has taken its time; it may be a stream."""
        try:
            return self._subscribe(result, call) if isinstance(result, Stream) else result
        except CommandError as error:
            result.close()
            return error

    def _run(
        self, entry: Entry, command: Command, bind: Callable[[Any], dict[str, Any]], params: Any, call: Call
    ) -> Any:
        try:
            outcome = self._call(command, bind(params), call)
            if isinstance(outcome, Future):
                outcome = then(outcome, lambda result: self._begun(result, call))
            elif isinstance(outcome, Stream):
                outcome = self._subscribe(outcome, call)
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
        if not isinstance(outcome, Future):
            return outcome
        return settled(outcome, lambda error: _failure(command.name, error))


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
    """The command's own parameters, and the parameters of the call, which begin with an underscore."""
    if not params or isinstance(params, list):
        return params, {}
    meta = {name: params[name] for name in params if name.startswith("_")}
    return {name: params[name] for name in params if name not in meta}, meta


def _progress_sender(id: Any, notify: Notify) -> Callable[[Mapping[str, Any]], None]:
    def send(fields: Mapping[str, Any]) -> None:
        notify(encode(request_object("progress", {"id": id, **fields})))

    return send


def _chunks(params: Any) -> bool:
    """Whether the caller takes a result that is too long for one message in several."""
    return isinstance(params, dict) and params.get("_chunks") is True


def asks_for_chunks(message: bytes) -> bool:
    """Whether a message is a request by which the caller takes a long result."""
    if b"_chunks" not in message and b"\\u" not in message:
        return False
    try:
        value = decode(message)
    except CommandError:
        return False
    return isinstance(value, dict) and _chunks(value.get("params"))


def _response(request: Request, result: Any, limit: int) -> bytes | LongResult | None:
    """The encoded response, or an error if the result is no JSON or longer than `limit`. None for a notification."""
    if request.is_notification:
        return None
    make = error_object if isinstance(result, CommandError) else result_object
    try:
        data = encode(make(request.id, result))
        if MAX_FRAME < len(data) <= limit and not isinstance(result, CommandError):
            return LongResult(request.id, encode(result).decode())  # type: ignore[arg-type]
        return _bounded(data, request.id)
    except (TypeError, ValueError) as error:
        return encode(error_object(request.id, _no_json(error)))


def _plain_answer(name: str, result: Any) -> bytes | None:
    """The result as text; None for that of a stream, whose text follows."""
    return None if isinstance(result, Subscribed) else _as_text(name, result).encode(errors="replace")


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
    message = f"the result takes {len(data)} bytes; {MAX_FRAME} can be sent at once: call with _chunks"
    return encode(error_object(id, CommandError(message)))


def _then(value: Any, step: Callable[[Any], Any]) -> Any:
    """`step` applied to a value now, or to a Future's result once it is there."""
    return then(value, step) if isinstance(value, Future) else step(value)


def _joined(answers: list[Answer]) -> bytes | None:
    """The responses of a batch as one array; None if there are none, one error if they are too long together."""
    values = [answer.result() if isinstance(answer, Future) else answer for answer in answers]
    responses = [value for value in values if isinstance(value, bytes)]
    return _bounded(b"[" + b",".join(responses) + b"]") if responses else None
