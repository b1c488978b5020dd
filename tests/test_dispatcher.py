"""Bytes in, bytes out: what a dispatcher answers, when, and what it never does."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl import CommandError
from flask_ctl.dispatch.commands import Command, CommandRegistry, command_from
from flask_ctl.dispatch.dispatcher import MAX_BATCH, Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.peer import Peer
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.replies import Call
from flask_ctl.protocol.framing import MAX_FRAME

properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PEER = Peer(pid=42, uid=54321, gid=54321)
ALLOW = Guard(Policy({"operate": frozenset([("uid", PEER.uid)])}))
DENY = Guard(Policy())


class BadText(Exception):
    """An exception that can't even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Bench:
    """A dispatcher, what its peer was notified of, and what was submitted to its pool and waits there."""

    def __init__(self, *functions: Callable[..., Any], custom: bool = False, guard: Guard = ALLOW) -> None:
        self.notified: list[dict[str, Any]] = []
        self.submitted: list[tuple[str, dict[str, Any], Future[Any]]] = []
        registry = CommandRegistry(command_from(function, builtin=not custom) for function in functions)
        self.dispatcher = Dispatcher(registry, self.submit, guard)

    def submit(self, command: Command, arguments: dict[str, Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.submitted.append((command.name, arguments, future))
        return future

    def handle(self, message: Any) -> Any:
        """The answer, still as bytes or as a Future."""
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.dispatcher.handle(text, PEER, lambda data: self.notified.append(json.loads(data)))

    def ask(self, message: Any) -> Any:
        """The JSON of an answer that is there at once."""
        return read(self.handle(message))

    def call(self, method: str, params: Any = None, **members: Any) -> Any:
        """The response to one request."""
        return self.ask(request(method, params, **{"id": 1, **members}))

    def plain(self, line: str) -> str:
        """The text for a plain command that is answered at once."""
        answer = self.dispatcher.handle_plain(line.encode(), PEER)
        assert isinstance(answer, bytes)
        return answer.decode()


def request(method: str, params: Any = None, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params}), **members}


def now(answer: Any) -> Any:
    """The bytes of an answer that is there, by now."""
    if isinstance(answer, Future):
        assert answer.done()
        return answer.result()
    return answer


def read(answer: Any) -> Any:
    """The JSON of an answer that is there, by now."""
    data = now(answer)
    if data is None:
        return None
    assert b"\n" not in data
    return json.loads(data)


def echo(call: Call, text: str = "echo") -> str:
    return text


def ask(text: str = "") -> str:
    raise AssertionError("a custom command runs on the pool, not here")


# Answers at once, and in time


def test_a_built_in_command_that_returns_is_answered_at_once() -> None:
    assert Bench(echo).call("echo", {"text": "a"}) == {"jsonrpc": "2.0", "id": 1, "result": "a"}


def test_a_built_in_command_that_returns_a_future_is_answered_when_it_is_done() -> None:
    future: Future[str] = Future()

    def slow(call: Call) -> Future[str]:
        return future

    answer = Bench(slow).handle(request("slow", id=1))
    assert not answer.done()
    future.set_result("done")
    assert read(answer) == {"jsonrpc": "2.0", "id": 1, "result": "done"}


def test_a_future_that_is_done_already_is_answered() -> None:
    future: Future[str] = Future()
    future.set_result("done")

    def slow(call: Call) -> Future[str]:
        return future

    assert Bench(slow).call("slow")["result"] == "done"


def test_a_custom_command_is_submitted_with_its_checked_arguments_and_answered_in_time() -> None:
    bench = Bench(ask, custom=True)
    answer = bench.handle(request("ask", ["a"], id="x"))
    [(name, arguments, future)] = bench.submitted
    assert (name, arguments) == ("ask", {"text": "a"})
    assert not answer.done()
    future.set_result({"a": 1})
    assert read(answer) == {"jsonrpc": "2.0", "id": "x", "result": {"a": 1}}


def test_a_command_whose_parameters_do_not_fit_is_not_called() -> None:
    bench = Bench(ask, custom=True)
    response = bench.call("ask", {"text": 1})
    assert response["error"]["code"] == -32602
    assert response["error"]["data"] == {"parameter": "text"}
    assert bench.submitted == []


def test_a_built_in_command_is_told_who_calls() -> None:
    def who(call: Call) -> Any:
        return call.peer.describe()

    assert Bench(who).call("who")["result"] == {"uid": 54321, "gid": 54321, "pid": 42}


@pytest.mark.parametrize("id", ["", "\ud800", 0, -1, 1.5, None, 2**70, "x" * 1024], ids=lambda value: ascii(value)[:9])
def test_the_id_comes_back_as_it_was(id: float | str | None) -> None:
    assert Bench(echo).call("echo", id=id) == {"jsonrpc": "2.0", "id": id, "result": "echo"}


@pytest.mark.parametrize(
    "id",
    [b"1e999", b"-1e999", b"NaN", b"[1]", b"true", b'"' + "é".encode() * 400_000 + b'"'],
    ids=lambda value: value[:9].decode(),
)
def test_an_id_that_can_not_be_sent_back_is_answered_with_null(id: bytes) -> None:
    response = Bench(echo).ask(b'{"jsonrpc":"2.0","method":"echo","id":' + id + b"}")
    assert response["id"] is None
    assert response["error"]["code"] in (-32600, -32700)


def test_an_invalid_request_whose_id_can_be_read_is_answered_with_it() -> None:
    response = Bench(echo).ask({"jsonrpc": "1.0", "method": "echo", "id": 7})
    assert (response["id"], response["error"]["code"]) == (7, -32600)


# Batches


def test_a_batch_is_answered_when_its_last_command_is_done_in_the_order_of_its_requests() -> None:
    bench = Bench(ask, custom=True)
    batch = [request("ask", id=1), request("nothing", id=2), request("ask"), request("ask", id=3)]
    answer = bench.handle(batch)
    for _, _, future in reversed(bench.submitted):
        assert not answer.done()
        future.set_result("done")
    assert [(item["id"], "result" in item) for item in read(answer)] == [(1, True), (2, False), (3, True)]


def test_a_batch_of_notifications_that_take_their_time_has_no_answer() -> None:
    bench = Bench(ask, custom=True)
    answer = bench.handle([request("ask"), request("ask")])
    for _, _, future in bench.submitted:
        future.set_result("done")
    assert answer.done()
    assert answer.result() is None


def test_a_batch_whose_commands_end_in_many_threads_at_once_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two last ones would set the answer twice, which concurrent.futures logs."""
    for _ in range(20):
        bench = Bench(ask, custom=True)
        answer = bench.handle([request("ask", id=id) for id in range(MAX_BATCH)])
        barrier = threading.Barrier(8)

        def work(futures: list[Future[Any]], barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for future in futures:
                future.set_result("done")

        futures = [future for _, _, future in bench.submitted]
        threads = [threading.Thread(target=work, args=(futures[i::8],)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read(answer)) == MAX_BATCH
    assert caplog.records == []


def test_one_result_of_a_batch_that_can_not_be_sent_leaves_the_others_alone() -> None:
    def bad(call: Call) -> Any:
        return {1, 2}

    good, failed = Bench(echo, bad).ask([request("echo", id=1), request("bad", id=2)])
    assert good == {"jsonrpc": "2.0", "id": 1, "result": "echo"}
    assert (failed["id"], failed["error"]["code"]) == (2, -32603)


@pytest.mark.parametrize("count", [1, MAX_BATCH])
def test_a_batch_up_to_the_limit_is_answered(count: int) -> None:
    assert len(Bench(echo).ask([request("echo", id=id) for id in range(count)])) == count


@pytest.mark.parametrize("batch", [[], [{}] * (MAX_BATCH + 1), [1] * 500_000], ids=len)
def test_a_batch_that_is_empty_or_too_long_is_one_invalid_request(batch: list[Any]) -> None:
    response = Bench(echo).ask(batch)
    assert (response["id"], response["error"]["code"]) == (None, -32600)
    assert str(MAX_BATCH) in response["error"]["message"]


def test_a_batch_in_a_batch_is_an_invalid_request() -> None:
    [response] = Bench(echo).ask([[request("echo", id=1)]])
    assert (response["id"], response["error"]["code"]) == (None, -32600)


# Progress


def unload(call: Call) -> bool:
    """Tells whether its caller wants to know how it goes, and tells them."""
    if call.progress is not None:
        call.progress({"in_flight": 3})
    return call.progress is not None


def test_progress_is_sent_to_those_who_ask_for_it_with_the_id_of_their_request() -> None:
    bench = Bench(unload)
    assert bench.call("unload", {"_progress": True}, id="x")["result"] is True
    assert bench.notified == [{"jsonrpc": "2.0", "method": "progress", "params": {"id": "x", "in_flight": 3}}]


@pytest.mark.parametrize(
    "params",
    [None, {}, [], {"_progress": False}, {"_progress": 1}, {"_progress": "true"}, {"_progress": None}, {"_more": 1}],
    ids=str,
)
def test_progress_is_not_sent_to_those_who_do_not_ask(params: Any) -> None:
    bench = Bench(unload)
    assert bench.call("unload", params)["result"] is False
    assert bench.notified == []


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
def test_progress_is_never_sent_for_a_notification(batch: bool) -> None:
    bench = Bench(unload)
    message = request("unload", {"_progress": True})
    assert bench.handle([message] if batch else message) is None
    assert bench.notified == []


def test_progress_of_a_plain_command_has_nowhere_to_go() -> None:
    assert Bench(unload).plain("unload") == "false\n"


def test_parameters_that_begin_with_an_underscore_are_not_the_command_s() -> None:
    assert Bench(echo).call("echo", {"text": "a", "_later": [1]})["result"] == "a"


# Who may


@pytest.mark.parametrize("method", ["echo", "nothing"])
def test_a_peer_that_may_not_is_denied_and_learns_nothing(method: str) -> None:
    response = Bench(echo, guard=DENY).call(method, {"text": 1})
    assert response["error"]["code"] == -32003
    assert response["error"]["message"].startswith("uid 54321 may not use this server")


def test_a_peer_that_may_not_calls_nothing_by_a_notification_either() -> None:
    bench = Bench(ask, custom=True, guard=DENY)
    assert bench.handle(request("ask")) is None
    assert bench.submitted == []


def test_a_peer_that_may_not_is_denied_for_each_request_of_a_batch() -> None:
    responses = Bench(echo, guard=DENY).ask([request("echo", id=1), request("echo", id=2)])
    assert [response["error"]["code"] for response in responses] == [-32003, -32003]


def test_a_peer_that_may_not_is_denied_in_plain_text() -> None:
    assert Bench(echo, guard=DENY).plain("echo").startswith("error: uid 54321 may not use this server; ")


# Commands that fail


FAILURES: dict[str, tuple[BaseException, str, str]] = {
    "an exception": (ValueError("no such key"), "ValueError: no such key", "ValueError"),
    "an exception without a text": (KeyError(), "KeyError", "KeyError"),
    "an exception whose text fails": (BadText(), "BadText: its text can't be had", "BadText"),
    "a recursion": (RecursionError("too deep"), "RecursionError: too deep", "RecursionError"),
}


@pytest.mark.parametrize(("error", "message", "kind"), FAILURES.values(), ids=FAILURES)
def test_a_built_in_command_that_raises_is_an_internal_error_and_logged(
    caplog: pytest.LogCaptureFixture, error: Exception, message: str, kind: str
) -> None:
    def fail(call: Call) -> None:
        raise error

    response = Bench(fail).call("fail")
    assert response["error"] == {"code": -32603, "message": message, "data": {"type": kind}}
    assert_logged(caplog, "the command fail failed", error)


EXITS: dict[str, tuple[BaseException, str, str]] = {
    "SystemExit": (SystemExit(3), "SystemExit: 3", "SystemExit"),
    "KeyboardInterrupt": (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
}


@pytest.mark.parametrize(("error", "message", "kind"), [*FAILURES.values(), *EXITS.values()], ids=[*FAILURES, *EXITS])
def test_a_submitted_command_that_raises_is_an_internal_error_and_logged(
    caplog: pytest.LogCaptureFixture, error: BaseException, message: str, kind: str
) -> None:
    bench = Bench(ask, custom=True)
    answer = bench.handle(request("ask", id=1))
    bench.submitted[0][2].set_exception(error)
    assert read(answer)["error"] == {"code": -32603, "message": message, "data": {"type": kind}}
    assert_logged(caplog, "the command ask failed", error)


def assert_logged(caplog: pytest.LogCaptureFixture, message: str, error: BaseException) -> None:
    """One record with the traceback, and none of concurrent.futures about a callback."""
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("flask_ctl", logging.ERROR, message)
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_an_exception_with_a_lone_surrogate_is_sent_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flask_ctl")

    def fail(call: Call) -> None:
        raise OSError("\udcff")

    assert Bench(fail).call("fail")["error"]["message"] == "OSError: \udcff"


def test_no_traceback_goes_over_the_wire() -> None:
    def fail(call: Call) -> None:
        secret = "a local variable"
        raise ValueError("no") from KeyError(secret)

    answer = Bench(fail).handle(request("fail", id=1))
    assert b"Traceback" not in answer
    assert b"test_dispatcher" not in answer
    assert b"secret" not in answer


def test_a_command_that_was_cancelled_is_an_error_and_not_a_silence(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(ask, custom=True)
    answer = bench.handle(request("ask", id=1))
    assert bench.submitted[0][2].cancel()
    assert read(answer)["error"]["data"] == {"type": "CancelledError"}
    assert [record.name for record in caplog.records] == ["flask_ctl"]


def test_a_notification_that_fails_is_logged_and_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(ask, custom=True)
    answer = bench.handle(request("ask"))
    bench.submitted[0][2].set_exception(error := ValueError("no"))
    assert answer.done()
    assert answer.result() is None
    assert_logged(caplog, "the command ask failed", error)


@pytest.mark.parametrize("submitted", [False, True], ids=["built-in", "submitted"])
def test_a_command_error_is_the_answer_itself_and_not_logged(caplog: pytest.LogCaptureFixture, submitted: bool) -> None:
    error = CommandError("busy", {"retry": 5}, code=-32002)
    future: Future[Any] = Future()
    future.set_exception(error)

    def fail(call: Call) -> Any:
        if submitted:
            return future
        raise error

    assert Bench(fail).call("fail")["error"] == {"code": -32002, "message": "busy", "data": {"retry": 5}}
    assert caplog.records == []


def test_a_pool_that_takes_no_more_is_an_error() -> None:
    def refuse(command: Command, arguments: dict[str, Any]) -> Future[Any]:
        raise CommandError("too many", code=-32002)

    dispatcher = Dispatcher(CommandRegistry([command_from(ask)]), refuse, ALLOW)
    answer = dispatcher.handle(json.dumps(request("ask", id=1)).encode(), PEER, lambda data: None)
    assert read(answer)["error"]["code"] == -32002


# Results that can't be sent


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


UNSENDABLE: dict[str, Callable[[], Any]] = {
    "a set": lambda: {1},
    "bytes": lambda: b"bytes",
    "an object inside": lambda: {"a": [object()]},
    "NaN": lambda: float("nan"),
    "infinity": lambda: [float("inf")],
    "a key that is a tuple": lambda: {(1, 2): 3},
    "a list in itself": cycle,
    "too deep": lambda: nested(100_000),
    "ten thousand digits": lambda: 10**10_000,
    "too long": lambda: "x" * MAX_FRAME,
    "too long once it is ASCII": lambda: "é" * (MAX_FRAME // 4),
    "an error with data that is no JSON": lambda: CommandError("no", {1}),
}


@pytest.mark.parametrize("make", UNSENDABLE.values(), ids=UNSENDABLE)
def test_a_result_that_can_not_be_sent_is_an_error_with_the_id(make: Callable[[], Any]) -> None:
    bench = Bench(ask, custom=True)
    answer = bench.handle(request("ask", id=1))
    value, future = make(), bench.submitted[0][2]
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    response = read(answer)
    assert (response["id"], response["error"]["code"]) == (1, -32603)
    assert "the result" in response["error"]["message"]


def test_a_result_that_fills_a_frame_to_the_last_byte_is_sent() -> None:
    room = MAX_FRAME - len(json.dumps({"jsonrpc": "2.0", "id": 1, "result": ""}, separators=(",", ":")))

    def big(call: Call, size: int) -> str:
        return "x" * size

    bench = Bench(big)
    assert len(bench.handle(request("big", [room], id=1))) == MAX_FRAME
    assert f"{MAX_FRAME} can be sent" in bench.call("big", [room + 1])["error"]["message"]


def test_results_of_a_batch_that_are_too_long_together_are_one_error() -> None:
    def big(call: Call) -> str:
        return "x" * (MAX_FRAME // 2)

    response = Bench(big).ask([request("big", id=1), request("big", id=2)])
    assert (response["id"], response["error"]["code"]) == (None, -32603)


def test_no_answer_to_a_message_is_longer_than_a_frame_however_long_its_names_are() -> None:
    bench = Bench(echo)
    long = "é" * (MAX_FRAME // 3)
    for message in (request(long, id=1), request("echo", {long: 1}, id=1), request("echo", id=long)):
        answer = bench.handle(json.dumps(message, ensure_ascii=False).encode())
        assert len(answer) < 10_000


# Plain text


def test_a_plain_command_is_answered_in_text_with_its_parameters_read_by_their_types() -> None:
    def add(call: Call, a: int, b: float = 0.5) -> float:
        return a + b

    assert Bench(add).plain("add a=1 b=2") == "3.0\n"


def test_a_plain_command_that_takes_its_time_is_answered_in_time() -> None:
    bench = Bench(ask, custom=True)
    answer = bench.dispatcher.handle_plain(b"ask text='a b'", PEER)
    assert isinstance(answer, Future)
    assert not answer.done()
    bench.submitted[0][2].set_result({"ä": 1})
    assert now(answer) == '{\n  "ä": 1\n}\n'.encode()


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("", "error: an empty command"),
        ("nothing", "error: there is no command 'nothing'; there are: echo, fail"),
        ("echo x", "error: 'x' is not of the form key=value"),
        ("echo x=1", "error: x: echo has no such parameter"),
        ("echo 'a", "error: can't read the command"),
        ("echo _progress=true", "error: _progress: echo has no such parameter"),
        ("fail", "error: ValueError: no"),
    ],
)
def test_a_plain_command_that_fails_is_one_line_that_begins_with_error(line: str, start: str) -> None:
    def fail(call: Call) -> None:
        raise ValueError("no")

    text = Bench(echo, fail).plain(line)
    assert text.startswith(start)
    assert text.endswith("\n")
    assert text.count("\n") == 1


@pytest.mark.parametrize("value", [{1}, cycle(), {(1, 2): 3}, nested(100_000)], ids=["set", "cycle", "key", "depth"])
def test_a_plain_command_whose_result_is_no_json_is_an_error(value: Any) -> None:
    bench = Bench(ask, custom=True)
    answer = bench.dispatcher.handle_plain(b"ask", PEER)
    bench.submitted[0][2].set_result(value)
    assert now(answer).startswith(b"error: the result is not JSON")


def test_a_plain_command_that_raises_in_the_pool_is_an_error() -> None:
    bench = Bench(ask, custom=True)
    answer = bench.dispatcher.handle_plain(b"ask", PEER)
    bench.submitted[0][2].set_exception(ValueError("no"))
    assert now(answer) == b"error: ValueError: no\n"


def test_a_result_with_a_lone_surrogate_is_plain_text_all_the_same() -> None:
    def odd(call: Call) -> str:
        return "a\udcffb"

    assert Bench(odd).plain("odd") == "a?b\n"


# For any bytes


def surprise(call: Call, n: int = 0, names: list[str] | None = None, ratio: float = 0.0) -> Any:
    """Answers, raises, or gives what can't be sent."""
    if n % 3 == 1:
        raise ValueError("no")
    return {1} if n % 3 == 2 else [n, names, ratio]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
METHODS = st.sampled_from(["echo", "surprise", "ask", "later", "nothing"]) | st.text()
PARAMS = st.fixed_dictionaries(
    {}, optional={"text": SCALARS, "n": SCALARS, "names": VALUES, "ratio": SCALARS, "_progress": SCALARS}
)
NOTIFICATIONS = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": METHODS}, optional={"params": PARAMS | st.lists(SCALARS, max_size=3)}
)
ANYTHING = st.fixed_dictionaries(
    {},
    optional={"jsonrpc": st.just("2.0") | VALUES, "method": METHODS | VALUES, "params": PARAMS | VALUES, "id": VALUES},
)
MESSAGES = (ANYTHING | VALUES | st.lists(ANYTHING | NOTIFICATIONS | VALUES, max_size=5)).map(
    lambda value: json.dumps(value).encode()
)


def later(call: Call) -> Future[str]:
    future: Future[str] = Future()
    future.set_result("later")
    return future


def bench_for_anything() -> Bench:
    """Built-in commands of every kind, and a pool that is done at once."""
    bench = Bench(echo, surprise, later)
    bench.dispatcher.registry.add(command_from(ask))

    def submit(command: Command, arguments: dict[str, Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(OSError("no")) if arguments else future.set_result("asked")
        return future

    bench.dispatcher._submit = submit
    return bench


def refuse_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def is_json(text: bytes) -> bool:
    """Whether it is JSON: `dumps` writes NaN and Infinity too, which are not."""
    try:
        json.loads(text, parse_constant=refuse_constants)
    except ValueError:
        return False
    return True


@properties
@given(st.binary() | MESSAGES | MESSAGES.flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n])))
def test_any_bytes_are_answered_by_nothing_or_one_json_document(message: bytes) -> None:
    answer = now(bench_for_anything().handle(message))
    if answer is None:
        return
    document = json.loads(answer, parse_constant=refuse_constants)
    for response in document if isinstance(document, list) else [document]:
        assert response["jsonrpc"] == "2.0"
        assert set(response) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})


@properties
@given(st.lists(NOTIFICATIONS | ANYTHING, min_size=1, max_size=6))
def test_as_many_responses_come_as_there_are_messages_that_are_no_notification(batch: list[Any]) -> None:
    """A batch is answered as its messages are one by one; a notification is not, whether it takes its time or not."""
    bench = bench_for_anything()
    texts = [json.dumps(value).encode() for value in batch]
    answers = [bench.handle(text) for text in texts]
    responses = [answer for answer in map(read, answers) if answer is not None]
    together = read(bench.handle(b"[" + b",".join(texts) + b"]"))
    if all(map(is_json, texts)):
        assert (together or []) == responses
    else:
        assert together["error"]["code"] == -32700


@properties
@given(NOTIFICATIONS)
def test_a_notification_is_never_answered(notification: Any) -> None:
    bench = bench_for_anything()
    text = json.dumps(notification).encode()
    if is_json(text):
        assert read(bench.handle(text)) is None
        assert read(bench.handle(b"[" + text + b"]")) is None
        assert bench.notified == []


@properties
@given(
    st.binary()
    | st.builds(
        lambda name, pairs: " ".join([name, *(f"{key}={value}" for key, value in pairs.items())]).encode(),
        st.sampled_from(["echo", "surprise", "ask", "later", "no"]),
        st.dictionaries(
            st.sampled_from(["text", "n", "names", "ratio", "x"]),
            st.integers().map(str) | st.text(st.characters(codec="utf-8")),
        ),
    )
)
def test_any_line_of_plain_text_is_answered_with_text(line: bytes) -> None:
    answer = now(bench_for_anything().dispatcher.handle_plain(line, PEER))
    assert isinstance(answer, bytes)
    assert answer.decode().endswith("\n") or answer == b""
