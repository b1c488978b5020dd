"""JSON-RPC 2.0: the examples of its specification, and the values and codec beneath."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl import CommandError, RemoteProtocolError
from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.dispatcher import Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.peer import this_process
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.replies import Call
from flask_ctl.protocol.jsonrpc import (
    ABSENT,
    MAX_ID,
    Request,
    Response,
    decode,
    encode,
    error_object,
    is_id,
    parse_reply,
    parse_request,
    request_object,
    result_object,
)

properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def specification_dispatcher() -> Dispatcher:
    """A dispatcher with the commands that the specification's examples call."""

    def subtract(call: Call, minuend: int, subtrahend: int) -> int:
        return minuend - subtrahend

    # The examples pass any number of values to `sum` and `update`. Commands have named parameters by design, so these
    # have as many as the examples give them.
    def sum(call: Call, a: int, b: int, c: int) -> int:
        return a + b + c

    def update(call: Call, a: int, b: int, c: int, d: int, e: int) -> None:
        pass

    def notify_hello(call: Call, n: int) -> None:
        pass

    def get_data(call: Call) -> list[Any]:
        return ["hello", 5]

    functions: list[Callable[..., Any]] = [subtract, sum, update, notify_hello, get_data]
    registry = CommandRegistry(command_from(function, builtin=True) for function in functions)
    return Dispatcher(registry, lambda command, arguments: pytest.fail("no command is submitted"), Guard(Policy()))


def result(id: Any, value: Any) -> dict[str, Any]:
    return {"id": id, "result": value}


def failure(id: Any, code: int) -> dict[str, Any]:
    return {"id": id, "code": code}


def essence(response: Any) -> Any:
    """What the specification fixes of a response: messages are a server's own."""
    if isinstance(response, list):
        return [essence(item) for item in response]
    assert response.pop("jsonrpc") == "2.0"
    return failure(response["id"], response["error"]["code"]) if "error" in response else response


SPECIFICATION = {
    "positional parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        result(1, 19),
    ),
    "positional parameters the other way round": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        result(2, -19),
    ),
    "named parameters": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        result(3, 19),
    ),
    "named parameters in another order": (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        result(4, 19),
    ),
    "notification": (
        '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}',
        None,
    ),
    "notification of a method that does not exist": (
        '{"jsonrpc": "2.0", "method": "foobar"}',
        None,
    ),
    "non-existent method": (
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        failure("1", -32601),
    ),
    "invalid JSON": (
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        failure(None, -32700),
    ),
    "invalid Request": (
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        failure(None, -32600),
    ),
    "batch, invalid JSON": (
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method"]',
        failure(None, -32700),
    ),
    "empty array": (
        "[]",
        failure(None, -32600),
    ),
    "invalid batch, but not empty": (
        "[1]",
        [failure(None, -32600)],
    ),
    "invalid batch": (
        "[1,2,3]",
        [failure(None, -32600), failure(None, -32600), failure(None, -32600)],
    ),
    "batch": (
        """[
            {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
            {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
            {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
            {"foo": "boo"},
            {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
            {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        [
            result("1", 7),
            result("2", 19),
            failure(None, -32600),
            failure("5", -32601),
            result("9", ["hello", 5]),
        ],
    ),
    "batch, all notifications": (
        """[
            {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
            {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
        ]""",
        None,
    ),
}
"""Section 7 of https://www.jsonrpc.org/specification: each example's message, and what has to come back."""


@pytest.mark.parametrize(("message", "expected"), SPECIFICATION.values(), ids=SPECIFICATION)
def test_the_examples_of_the_specification_are_answered_as_printed(message: str, expected: Any) -> None:
    answer = specification_dispatcher().handle(message.encode(), this_process(), lambda data: None)
    assert answer is None or isinstance(answer, bytes)
    assert (None if answer is None else essence(json.loads(answer))) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"ping", id="a word"),
        pytest.param(b"{", id="an open object"),
        pytest.param(b"{} {}", id="two values"),
        pytest.param(b'{"a": 1,}', id="a trailing comma"),
        pytest.param(b"{'a': 1}", id="single quotes"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"[Infinity]", id="Infinity"),
        pytest.param(b"-Infinity", id="-Infinity"),
        pytest.param(b"1e999", id="a float that no double holds"),
        pytest.param(b'{"id": -1e999}', id="a negative one, inside"),
        pytest.param(b"9" * 10_000, id="ten thousand digits"),
        pytest.param(b"[" * 200_000, id="deep nesting"),
        pytest.param(b'{"a":' * 200_000, id="deep nesting of objects"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param(b'"\xff"', id="no UTF-8"),
        pytest.param(b'"\xed\xa0\x80"', id="a surrogate as UTF-8"),
        pytest.param(b'"\n"', id="a newline in a string"),
    ],
)
def test_what_is_not_json_is_a_parse_error(text: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        decode(text)
    assert caught.value.code == -32700
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(b'{"a": 1, "a": 2}', {"a": 2}, id="the last of two equal keys counts"),
        pytest.param(b'"\\ud800"', "\ud800", id="a lone surrogate, escaped"),
        pytest.param(b'"\\ud83d\\ude00"', "\U0001f600", id="a surrogate pair"),
        pytest.param(b"1.0", 1.0, id="a float without a fraction stays a float"),
        pytest.param(b"1e308", 1e308, id="the largest power of ten"),
        pytest.param(b"1e-999", 0.0, id="a float too small to tell from zero"),
        pytest.param(b"18446744073709551616", 2**64, id="an integer of 65 bits"),
        pytest.param(b" \t\r\n[ ] ", [], id="white space"),
    ],
)
def test_odd_but_legal_json_is_read(text: bytes, value: Any) -> None:
    assert decode(text) == value
    assert type(decode(text)) is type(value)


@properties
@given(JSON)
def test_whatever_is_encoded_is_one_line_of_ascii_and_decodes_to_the_same(value: Any) -> None:
    line = encode(value)
    assert line.isascii()
    assert b"\n" not in line
    assert decode(line) == value


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {"a": -math.inf}, {1}, b"bytes", Request], ids=lambda value: repr(value)[:20]
)
def test_what_json_can_not_hold_is_not_encoded(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(value)


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ({"method": "ping", "id": 1}, Request("ping", {}, 1)),
        ({"method": "ping", "id": "one"}, Request("ping", {}, "one")),
        ({"method": "ping", "id": 1.5}, Request("ping", {}, 1.5)),
        ({"method": "ping", "id": None}, Request("ping", {}, None)),
        ({"method": "ping"}, Request("ping", {}, ABSENT)),
        ({"method": "ping", "params": [1], "id": 1}, Request("ping", [1], 1)),
        ({"method": "ping", "params": {"a": 1}, "id": 1}, Request("ping", {"a": 1}, 1)),
        ({"method": "ping", "id": 1, "more": "is ignored"}, Request("ping", {}, 1)),
        ({"method": "", "id": 1}, Request("", {}, 1)),
    ],
    ids=str,
)
def test_a_request_is_read(value: dict[str, Any], request_: Request) -> None:
    parsed = parse_request({"jsonrpc": "2.0", **value})
    assert parsed == request_
    assert parsed.is_notification == ("id" not in value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(1, id="a number"),
        pytest.param(None, id="null"),
        pytest.param([], id="an array"),
        pytest.param({}, id="an empty object"),
        pytest.param({"method": "ping"}, id="no version"),
        pytest.param({"jsonrpc": "1.0", "method": "ping"}, id="another version"),
        pytest.param({"jsonrpc": 2.0, "method": "ping"}, id="a version that is a number"),
        pytest.param({"jsonrpc": "2.0"}, id="no method"),
        pytest.param({"jsonrpc": "2.0", "method": None}, id="a method that is null"),
        pytest.param({"jsonrpc": "2.0", "method": "ping", "params": "a"}, id="params that are a string"),
        pytest.param({"jsonrpc": "2.0", "method": "ping", "params": None}, id="params that are null"),
        pytest.param({"jsonrpc": "2.0", "method": "ping", "id": True}, id="an id that is a boolean"),
        pytest.param({"jsonrpc": "2.0", "method": "ping", "id": [1]}, id="an id that is an array"),
        pytest.param({"jsonrpc": "2.0", "method": "ping", "id": {}}, id="an id that is an object"),
        pytest.param({"jsonrpc": "2.0", "method": "ping", "id": "x" * (MAX_ID + 1)}, id="an id that is too long"),
    ],
)
def test_what_is_no_request_is_an_invalid_request(value: Any) -> None:
    with pytest.raises(CommandError) as caught:
        parse_request(value)
    assert caught.value.code == -32600


@pytest.mark.parametrize("value", ["", "x" * MAX_ID, 0, -1, 1.5, 2**64, None], ids=lambda value: repr(value)[:20])
def test_strings_numbers_and_null_can_be_an_id(value: float | str | None) -> None:
    assert is_id(value)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (request_object("ping"), {"jsonrpc": "2.0", "method": "ping"}),
        (request_object("ping", {}, 1), {"jsonrpc": "2.0", "method": "ping", "id": 1}),
        (request_object("ping", {"a": 1}, None), {"jsonrpc": "2.0", "method": "ping", "params": {"a": 1}, "id": None}),
        (result_object(1, None), {"jsonrpc": "2.0", "id": 1, "result": None}),
        (
            error_object(None, CommandError("no", code=-32001)),
            {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "no"}},
        ),
        (
            error_object("x", CommandError("no", {"why": 1})),
            {"jsonrpc": "2.0", "id": "x", "error": {"code": -32603, "message": "no", "data": {"why": 1}}},
        ),
    ],
    ids=["notification", "request", "request with null id", "result", "error", "error with data"],
)
def test_objects_have_the_members_of_the_specification_and_no_others(
    made: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert made == expected


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":null}', Response(1, None)),
        (b'{"jsonrpc":"2.0","id":"a","result":[1]}', Response("a", [1])),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}', Response(1, error=(-1, "no", None))),
        (
            b'{"jsonrpc":"2.0","error":{"code":-1,"message":"no","data":2}}',
            Response(None, error=(-1, "no", 2)),
        ),
        (b'{"jsonrpc":"2.0","id":1,"error":{}}', Response(1, error=(-32603, "no message", None))),
        (b'{"jsonrpc":"2.0","method":"progress","params":{"id":1}}', Request("progress", {"id": 1}, ABSENT)),
    ],
    ids=["null", "list", "error", "error without id", "error without members", "notification"],
)
def test_what_a_server_sends_is_read(text: bytes, reply: Request | Response) -> None:
    assert parse_reply(text) == reply


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 400 Bad Request",
        b"\xff\xfe",
        b"1e999",
        b"[]",
        b"{}",
        b'{"jsonrpc":"1.0","id":1,"result":1}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":[],"result":1}',
        b'{"jsonrpc":"2.0","id":1,"error":"no"}',
        b'{"jsonrpc":"2.0","id":1,"error":null}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"E1","message":"no"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":null}}',
        b'{"jsonrpc":"2.0","method":1}',
        b'{"jsonrpc":"2.0","method":"progress","params":1}',
    ],
    ids=repr,
)
def test_what_is_no_reply_is_the_other_side_s_fault(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_reply(text)


@properties
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_reply_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(parse_reply(data), (Request, Response))


def test_the_absent_id_says_what_it_is() -> None:
    assert repr(ABSENT) == "ABSENT"
