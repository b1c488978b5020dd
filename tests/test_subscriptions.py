"""Streams, one contract for every transport: items come as they are made, and a slow reader delays nobody."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from harness import TIMEOUT, until
from wires import RING, STREAMS, WIRES, request
from wires import Peer as Wired

from flask_ctl import CommandError
from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.dispatcher import Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.peer import Peer, this_process
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.replies import Call
from flask_ctl.dispatch.streams import MAX_STREAMS, PIECE, Pulled, Stream
from flask_ctl.inspection.ring import INBOX, Ring, RingStream
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.system.handover import Handover
from flask_ctl.transports.subscriptions import Subscriptions


@pytest.fixture(params=WIRES)
def peer(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Iterator[Wired]:
    peer = Wired(WIRES[request.param](short_path, free_port))
    yield peer
    peer.close()


@pytest.fixture(params=STREAMS)
def line(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Iterator[Wired]:
    """A peer over a byte stream."""
    peer = Wired(STREAMS[request.param](short_path, free_port))
    yield peer
    peer.close()


def told(talk: Any) -> dict[str, Any]:
    """The parameters of the next notification about a stream."""
    message: dict[str, Any] = talk.receive()
    assert message["method"] == "stream"
    params: dict[str, Any] = message["params"]
    return params


def test_what_is_there_comes_with_its_numbers_and_then_the_end(peer: Wired) -> None:
    for n in (7, 8):
        peer.ring.append(n)
    with peer.raw() as talk:
        talk.send(request("numbers", "a"))
        head = talk.receive()
        assert head["result"] == {"subscription": 1, "seq": 0, "epoch": "one", "generation": 1}
        assert told(talk) == {"subscription": 1, "seq": 1, "item": {"time": "now", "n": 7}}
        assert told(talk) == {"subscription": 1, "seq": 2, "item": {"time": "now", "n": 8}}
        assert told(talk) == {"subscription": 1, "end": "complete"}


def test_a_follower_gets_what_comes_later_and_other_answers_between(peer: Wired) -> None:
    with peer.raw() as talk:
        talk.send(request("numbers", 1, follow=True))
        assert talk.receive()["result"]["seq"] == 0
        for n in range(3):
            peer.ring.append(n)
            assert told(talk) == {"subscription": 1, "seq": n + 1, "item": {"time": "now", "n": n}}
            talk.send(request("echo", n, text="x"))
            assert talk.receive()["result"] == "x"


def test_a_client_goes_on_behind_the_last_number_that_it_has_seen(peer: Wired) -> None:
    for n in range(5):
        peer.ring.append(n)
    with peer.raw() as talk:
        talk.send(request("numbers", 1, after=3))
        assert talk.receive()["result"]["seq"] == 3
        assert [told(talk).get("seq") for _ in range(3)] == [4, 5, None]


def test_a_stream_can_be_ended_by_its_client(peer: Wired) -> None:
    with peer.raw() as talk:
        talk.send(request("numbers", 1, follow=True), request("numbers", 2, follow=True))
        assert [talk.receive()["result"]["subscription"] for _ in range(2)] == [1, 2]
        talk.send(request("end_stream", 3, subscription=1))
        assert told(talk) == {"subscription": 1, "end": "cancelled"}
        assert talk.receive() == {"jsonrpc": "2.0", "id": 3, "result": True}
        peer.ring.append(5)
        assert told(talk) == {"subscription": 2, "seq": 1, "item": {"time": "now", "n": 5}}
        talk.send(request("end_stream", 4, subscription=1))
        assert talk.receive()["result"] is False


def test_who_reads_too_slowly_is_told_how_much_it_has_missed(peer: Wired) -> None:
    """Whatever the kernel and libzmq hold for it, the ring overtakes it in the end."""
    with peer.raw() as talk:
        talk.send(request("numbers", 1, follow=True))
        assert "result" in talk.receive()
        count = 0

        def overtaken() -> bool:
            nonlocal count
            for _ in range(RING // 2):
                peer.ring.append("x" * 1000)
                count += 1
            return peer.answers() and count >= 20 * RING

        until(overtaken, "more than any buffer holds")
        seen, lost = 0, 0
        while seen < count:
            message = told(talk)
            if "dropped" in message:
                assert message["from"] == seen + 1
                assert message["to"] - message["from"] + 1 == message["dropped"]
                lost += message["dropped"]
                seen = message["to"]
            elif "item" in message:
                assert message["seq"] == seen + 1
                seen = message["seq"]
        assert lost > 0


def test_a_follower_that_does_not_read_delays_nobody(peer: Wired) -> None:
    with peer.raw() as talk:
        talk.send(request("numbers", 1, follow=True))
        assert "result" in talk.receive()
        for _ in range(20 * RING):
            peer.ring.append("x" * 1000)
        assert peer.answers()


def test_only_so_many_streams_at_once(peer: Wired) -> None:
    with peer.raw() as talk:
        for n in range(MAX_STREAMS):
            talk.send(request("numbers", n, follow=True))
            assert "result" in talk.receive()
        talk.send(request("numbers", "more"))
        assert talk.receive()["error"]["message"] == f"{MAX_STREAMS} streams are open, the most at once; end one"
        talk.send(request("end_stream", "end", subscription=1))
        assert told(talk)["end"] == "cancelled"
        assert talk.receive()["result"] is True
        talk.send(request("numbers", "again"))
        assert talk.receive()["result"]["subscription"] == MAX_STREAMS + 1


def test_the_place_of_a_client_that_has_gone_is_free(peer: Wired) -> None:
    for _ in range(2):
        with peer.raw() as talk:
            for n in range(MAX_STREAMS):

                def begun(n: int = n, talk: Any = talk) -> bool:
                    talk.send(request("numbers", n, follow=True))
                    # ZeroMQ has its end noticed when something is sent.
                    peer.ring.append(n)
                    answer = talk.receive()
                    while "method" in answer:
                        answer = talk.receive()
                    return "result" in answer

                until(begun, "a free place")


def test_a_stream_can_not_be_part_of_a_batch(peer: Wired) -> None:
    with peer.raw() as talk:
        talk.send(b"[" + request("numbers") + b"]")
        (answer,) = talk.receive()
        assert answer["error"]["message"] == "a stream can't be part of a batch"


def test_a_reload_ends_streams_with_that_reason(peer: Wired) -> None:
    with peer.raw() as talk:
        talk.send(request("numbers", 1, follow=True))
        assert "result" in talk.receive()
        peer.server.end_thread()
        Handover({"controls": peer.server.export_state()}).close_rest()
        assert told(talk) == {"subscription": 1, "end": "reload"}


def test_the_python_client_gives_items_and_says_why_there_are_no_more(peer: Wired) -> None:
    for n in range(3):
        peer.ring.append(n)
    with peer.client() as client:
        assert list(client.follow("numbers")) == [
            {"seq": 1, "time": "now", "n": 0},
            {"seq": 2, "time": "now", "n": 1},
            {"seq": 3, "time": "now", "n": 2},
            {"end": "complete"},
        ]
        followed = client.follow("numbers", follow=True, after=2)
        assert next(followed) == {"seq": 3, "time": "now", "n": 2}
        peer.ring.append(3)
        assert next(followed) == {"seq": 4, "time": "now", "n": 3}
        followed.close()  # type: ignore[attr-defined]
        with pytest.raises(CommandError, match="no such parameter"):
            next(client.follow("numbers", unknown=1))


@pytest.mark.parametrize("size", [MAX_FRAME, 3 * PIECE, 20 * MAX_FRAME])
def test_a_result_over_the_limit_comes_in_pieces_if_the_caller_takes_them(peer: Wired, size: int) -> None:
    with peer.client() as client:
        assert client.call("big", size=size, _chunks=True) == "x" * size
        assert client.call("echo", text="and on") == "and on"


def test_long_results_that_are_asked_for_at_once_come_one_after_the_other(peer: Wired) -> None:
    sizes = [MAX_FRAME + n for n in range(3)]
    with peer.raw() as talk:
        talk.send(*[request("big", n, size=size, _chunks=True) for n, size in enumerate(sizes)])
        for n, size in enumerate(sizes):
            head = talk.receive()
            assert (head["id"], head["result"]["subscription"]) == (n, n + 1)
            pieces = [told(talk) for _ in range(head["result"]["chunks"])]
            assert "".join(piece["chunk"] for piece in pieces) == f'"{size * "x"}"'
            assert told(talk) == {"subscription": n + 1, "end": "complete"}
        talk.send(request("echo", "last", text="x"))
        assert talk.receive()["id"] == "last"


def test_another_client_is_answered_beside_a_long_result(peer: Wired) -> None:
    with peer.client() as client, peer.client() as other:
        assert client.call("big", size=2 * MAX_FRAME, _chunks=True) == "x" * 2 * MAX_FRAME
        assert other.call("echo", text="meanwhile") == "meanwhile"


def test_a_plain_command_gets_lines_until_the_end(line: Wired) -> None:
    for n in range(3):
        line.ring.append(n)
    with line.raw() as talk:
        talk.sock.sendall(b"numbers\n")
        data = b""
        while piece := talk.sock.recv(4096):
            data += piece
    assert data == b"".join(b'{"time": "now", "n": %d}\n' % n for n in range(3))


def test_a_plain_follower_may_close_its_sending_side(line: Wired) -> None:
    with line.raw() as talk:
        talk.sock.sendall(b"numbers follow=yes")
        talk.sock.shutdown(1)
        for n in range(3):
            line.ring.append(n)
            assert talk.sock.recv(4096) == b'{"time": "now", "n": %d}\n' % n


# The ring


def drained(stream: Stream) -> list[Any]:
    """What a stream gives until it has no more at the moment."""
    messages: list[Any] = []
    while True:
        pulled = stream.pull()
        assert not isinstance(pulled, Future)
        messages += pulled.messages
        if not pulled.more:
            return messages


def test_a_ring_keeps_the_newest_items() -> None:
    ring = Ring(3)
    for n in range(5):
        ring.append(n)
    assert ring.after(0) == [(3, 2), (4, 3), (5, 4)]
    assert ring.after(4) == [(5, 4)]
    assert ring.after(5) == []


def test_items_of_another_shelf_do_not_push_out_what_is_to_stay() -> None:
    ring = Ring(2, 2, shelf=lambda n: int(n < 100))
    for n in (100, 1, 2, 3, 101):
        ring.append(n)
    assert ring.after(0) == [(1, 100), (3, 2), (4, 3), (5, 101)]
    assert (ring.oldest(0), ring.oldest(1)) == (100, 2)


def test_what_is_lost_before_anybody_looks_has_its_numbers() -> None:
    ring = Ring(3)
    for n in range(INBOX + 10):
        ring.append(n)
    assert ring.after(0) == [(INBOX + 8, INBOX + 7), (INBOX + 9, INBOX + 8), (INBOX + 10, INBOX + 9)]


def test_the_next_image_goes_on_with_items_and_numbers() -> None:
    ring, following = Ring(3), Ring(3)
    for n in range(5):
        ring.append(n)
    following.restore_state(ring.export_state(1000))
    following.append(5)
    assert following.after(3) == [(4, 3), (5, 4), (6, 5)]


def test_only_so_many_bytes_go_to_the_next_image_the_newest_first() -> None:
    ring = Ring(10)
    for _ in range(10):
        ring.append("x" * 100)
    assert [number for number, _ in ring.export_state(350)["items"]] == [8, 9, 10]


BEGINNINGS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "all": ({}, [3, 4, 5]),
    "all, from a number on that has left": ({"after": 0}, [("dropped", 1, 2), 3, 4, 5]),
    "the last line": ({"lines": 1}, [5]),
    "the last two kept ones": ({"lines": 2, "keep": lambda n: n % 2}, [3, 5]),
    "no line": ({"lines": 0}, []),
    "more than there are": ({"lines": 9}, [3, 4, 5]),
    "behind a number": ({"after": 4}, [5]),
    "behind a number that has left": ({"after": 1}, [("dropped", 2, 2), 3, 4, 5]),
    "behind the last": ({"after": 5}, []),
    "behind a number of the future": ({"after": 99}, []),
    "none is kept": ({"keep": lambda n: False}, []),
}


@pytest.mark.parametrize(("options", "expected"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_stream_begins_where_its_reader_wants(options: dict[str, Any], expected: list[Any]) -> None:
    ring = Ring(3)
    for n in range(1, 6):
        ring.append(n)
    messages = drained(RingStream(ring, lambda n: {"n": n}, **options))
    got = [
        message["item"]["n"] if "item" in message else ("dropped", message["from"], message["to"])
        for message in messages
    ]
    assert got == expected


def test_a_pull_gives_no_more_than_a_piece() -> None:
    ring = Ring(1000)
    for _ in range(1000):
        ring.append("x" * 1000)
    pulled = RingStream(ring, lambda text: {"text": text}).pull()
    assert pulled.more
    assert PIECE / 1000 * 0.9 < len(pulled.messages) < PIECE / 1000 + 2


# When a client's streams are pulled


class FakeReactor:
    """Makes calls when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def call_soon(self, function: Any, *arguments: Any) -> None:
        self.calls.append(lambda: function(*arguments))

    def call_later(self, seconds: float, function: Any, *arguments: Any) -> None:
        """The test calls `pull` itself."""

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class FakeStream(Stream):
    """Gives what the test puts into `next`."""

    def __init__(self) -> None:
        self.head = {"seq": 0}
        self.next: list[Any] = []
        self.closed = 0
        self.on_close = lambda _: setattr(self, "closed", self.closed + 1)

    def pull(self) -> Pulled | Future[Pulled]:
        return self.next.pop(0) if self.next else Pulled()


class Client:
    """One client with room for messages, and what it has got."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.got: list[Any] = []
        self.room = True
        self.subscriptions = Subscriptions(
            self.reactor,  # type: ignore[arg-type]
            self.got.append,
            self.got.append,
            lambda: self.room,
            lambda: self.subscriptions.resume(),
        )
        self.stream = FakeStream()
        self.number = self.subscriptions.begin(self.stream)

    def pull(self) -> list[Any]:
        """What comes by the next look."""
        self.subscriptions.pull()
        self.reactor.run()
        got, self.got[:] = list(self.got), []
        return got


ITEM = {"seq": 1, "item": {}}


def test_a_client_without_room_is_pulled_once_it_has_read() -> None:
    client = Client()
    client.room = False
    client.stream.next = [Pulled([ITEM])]
    assert client.pull() == []
    client.room = True
    client.subscriptions.resume()
    client.reactor.run()
    assert client.got == [{"subscription": 1, **ITEM}]


def test_what_there_is_more_of_comes_at_once() -> None:
    client = Client()
    client.stream.next = [Pulled([ITEM], more=True), Pulled([ITEM], more=True), Pulled([ITEM])]
    assert len(client.pull()) == 3


def test_a_stream_is_not_pulled_while_an_answer_is_awaited() -> None:
    client = Client()
    awaited: Future[Pulled] = Future()
    client.stream.next = [awaited, Pulled([ITEM])]
    assert client.pull() == []
    assert client.pull() == []
    awaited.set_result(Pulled([ITEM]))
    client.reactor.run()
    assert client.got == [{"subscription": 1, **ITEM}]
    assert len(client.pull()) == 2


def test_an_answer_for_a_stream_that_was_ended_meanwhile_is_dropped() -> None:
    client = Client()
    awaited: Future[Pulled] = Future()
    client.stream.next = [awaited]
    client.pull()
    client.subscriptions.cancel(1)
    awaited.set_result(Pulled([ITEM]))
    assert client.pull() == [{"subscription": 1, "end": "cancelled"}]


@pytest.mark.parametrize("how", ["raises", "fails later"])
def test_a_stream_that_fails_ends_with_the_reason_and_is_logged(how: str, caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    failed: Future[Pulled] = Future()
    failed.set_exception(ValueError("broken"))
    client.stream.next = [failed]
    if how == "raises":
        client.stream.pull = lambda: 1 / 0  # type: ignore[assignment, return-value, method-assign]
    assert client.pull() == [{"subscription": 1, "end": "it has failed; the server's log tells why"}]
    assert client.stream.closed == 1
    assert "a stream has failed" in caplog.text


def test_what_is_subscribed_for_a_client_that_has_gone_is_closed_at_once() -> None:
    client = Client()
    client.subscriptions.close()
    late = FakeStream()
    client.subscriptions.begin(late)
    assert (late.closed, len(client.subscriptions)) == (1, 0)


def test_a_reader_of_lines_is_told_why_they_end() -> None:
    client = Client()
    plain = FakeStream()
    client.subscriptions.begin(plain, plain=True)
    client.subscriptions.end_all("reload")
    assert "— reload —" in client.got


@pytest.mark.parametrize(
    "end", ["by the stream", "by the client", "by a reload", "by the server", "by the end of the client"]
)
def test_a_stream_is_closed_once_whatever_ends_it(end: str) -> None:
    client = Client()
    if end == "by the stream":
        client.stream.next = [Pulled([], end="complete")]
    elif end == "by the client":
        client.subscriptions.cancel(1)
    elif end == "by a reload":
        client.subscriptions.end_all("reload")
    elif end == "by the server":
        client.stream.end("permission denied")
    else:
        client.subscriptions.close()
    client.pull()
    client.subscriptions.close()
    assert client.stream.closed == 1
    assert len(client.subscriptions) == 0


def test_a_silent_stream_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    assert client.pull() == []
    later = time.monotonic() + TIMEOUT
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert client.pull() == [{"subscription": 1, "seq": 0}]
    assert client.pull() == []


# How many at once


class Counting:
    """A connection that keeps its streams."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def subscribe(self, stream: Stream, *, plain: bool = False) -> int:
        self.streams.append(stream)
        return len(self.streams)

    def cancel(self, subscription: int) -> bool:
        return False

    def keep(self, reply: Any) -> None:
        raise AssertionError("no reload is asked for")

    def send(self, message: bytes) -> None:
        raise AssertionError("nothing but answers")


OBSERVERS = Peer(1, 54321, 54321)


class Watched:
    """A dispatcher with a command that streams nothing; `policy` may be another one later."""

    def __init__(self) -> None:
        def watch(call: Call) -> Stream:
            """Stream nothing."""
            return FakeStream()

        self.guard = Guard(Policy.from_config({"inspect": ["uid:54321"]}))
        registry = CommandRegistry([command_from(watch, role="observe", builtin=True)])
        self.dispatcher = Dispatcher(registry, lambda command, arguments: Future(), self.guard)
        self.connection = Counting()

    def begin(self, peer: Peer) -> bool:
        answer = self.dispatcher.handle(request("watch"), peer, lambda _: None, self.connection)
        assert isinstance(answer, bytes)
        return b"subscription" in answer


def test_callers_below_operate_leave_half_of_the_streams_to_operators() -> None:
    watched = Watched()
    begun = [watched.begin(OBSERVERS) for _ in range(MAX_STREAMS)]
    assert begun == [True] * (MAX_STREAMS // 2) + [False] * (MAX_STREAMS // 2)
    assert watched.begin(this_process())


@pytest.mark.parametrize(
    ("allow", "ends"),
    [
        ({"operate": ["uid:54321"]}, False),
        ({"inspect": ["uid:54321"]}, False),
        ({"observe": ["uid:54321"]}, True),
        ({}, True),
    ],
)
def test_a_policy_that_gives_a_caller_less_ends_its_streams(allow: dict[str, list[str]], ends: bool) -> None:
    watched = Watched()
    watched.begin(OBSERVERS)
    watched.begin(this_process())
    ended: list[tuple[Stream, str]] = []
    for stream in watched.connection.streams:
        stream.end = functools.partial(lambda stream, reason: ended.append((stream, reason)), stream)
    watched.guard.policy = Policy.from_config(allow)
    watched.dispatcher.end_revoked_streams()
    assert [stream for stream, _ in ended] == watched.connection.streams[: int(ends)]
    assert all(reason.startswith("permission denied") for _, reason in ended)
