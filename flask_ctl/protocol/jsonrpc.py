"""JSON-RPC 2.0 values and their codec (https://www.jsonrpc.org/specification)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Union

from ..errors import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR, CommandError, RemoteProtocolError

Id = Union[str, int, float, None]
Params = Union[list[Any], dict[str, Any]]


MAX_ID = 1024
"""Characters in an id: every answer and progress notification repeats it."""


class Absent:
    """Stands for the missing id of a notification. `null` is a valid, if discouraged, id."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


class Request(NamedTuple):
    """A call; a notification if `id` is ABSENT."""

    method: str
    params: Params
    id: Id | Absent

    @property
    def is_notification(self) -> bool:
        return self.id is ABSENT


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is more than a double can hold")
    return value


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
# Checking for circular references takes a third of the time; without it they fail at the recursion limit.
_encode_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


def decode(data: bytes) -> Any:
    """The JSON value in `data`. Raises CommandError with code -32700 for bytes that are not UTF-8 or not JSON."""
    try:
        return _decoder.decode(data.decode())
    except UnicodeDecodeError as error:
        raise CommandError(f"not UTF-8: {error.reason} at byte {error.start}", code=PARSE_ERROR) from None
    except RecursionError:
        raise CommandError("not JSON: nested too deeply", code=PARSE_ERROR) from None
    except ValueError as error:
        raise CommandError(f"not JSON: {error}", code=PARSE_ERROR) from None


def encode(value: Any) -> bytes:
    """`value` as compact ASCII JSON. Raises ValueError or TypeError for what JSON can't hold."""
    try:
        return _encode_compact(value).encode("ascii")
    except RecursionError:
        raise ValueError("circular, or nested too deeply") from None


def _invalid(message: str) -> CommandError:
    return CommandError(message, code=INVALID_REQUEST)


def parse_request(value: Any) -> Request:
    """The request in a decoded JSON value. Raises CommandError with code -32600 for anything else."""
    if not isinstance(value, dict):
        raise _invalid("a request is a JSON object")
    if value.get("jsonrpc") != "2.0":
        raise _invalid('"jsonrpc" must be "2.0"')
    method, params, id = value.get("method"), value.get("params", {}), value.get("id", ABSENT)
    if not isinstance(method, str):
        raise _invalid('"method" must be a string')
    if not isinstance(params, (list, dict)):
        raise _invalid('"params" must be an array or an object')
    if id is not ABSENT and not is_id(id):
        raise _invalid(f'"id" must be a string of at most {MAX_ID} characters, a number or null')
    return Request(method, params, id)


def is_id(value: Any) -> bool:
    """Whether `value` can be the id of a request."""
    if isinstance(value, str):
        return len(value) <= MAX_ID
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def request_object(method: str, params: Mapping[str, Any] | None = None, id: Id | Absent = ABSENT) -> dict[str, Any]:
    """A request, or without `id` a notification, as a JSON object."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params:
        message["params"] = params
    if not isinstance(id, Absent):
        message["id"] = id
    return message


def result_object(id: Any, result: Any) -> dict[str, Any]:
    """The response to a call that succeeded."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def error_object(id: Any, error: CommandError) -> dict[str, Any]:
    """The response to a call that failed; `id` is None where the request's could not be read."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "id": id, "error": body}


class Response(NamedTuple):
    """The answer to one request: a result, or an error's code, message and data."""

    id: Id
    result: Any = None
    error: tuple[int, str, Any] | None = None


def parse_reply(data: bytes) -> Response | Request:
    """What a server sent: a response, or a notification. Raises RemoteProtocolError for anything else."""
    try:
        value = decode(data)
    except CommandError as error:
        raise RemoteProtocolError(f"the answer is {error.message}") from None
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise RemoteProtocolError("the answer is not JSON-RPC 2.0")
    if "method" in value:
        return _parse_notification(value)
    if not is_id(value.get("id")):
        raise RemoteProtocolError('the answer\'s "id" is neither a string, a number nor null')
    if "error" in value:
        return Response(value.get("id"), error=_parse_error(value["error"]))
    if "result" not in value:
        raise RemoteProtocolError("the answer holds neither a result nor an error")
    return Response(value.get("id"), value["result"])


def _parse_notification(value: dict[str, Any]) -> Request:
    try:
        return parse_request(value)
    except CommandError as error:
        raise RemoteProtocolError(f"bad notification: {error.message}") from None


def _parse_error(error: Any) -> tuple[int, str, Any]:
    if not isinstance(error, dict):
        raise RemoteProtocolError("the answer's error is not an object")
    code, message = error.get("code", INTERNAL_ERROR), error.get("message", "no message")
    if not isinstance(code, int) or not isinstance(message, str):
        raise RemoteProtocolError("the answer's error lacks an integer code and a message")
    return code, message, error.get("data")
