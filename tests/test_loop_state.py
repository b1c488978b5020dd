"""The states of a server's loop: the whole table, and what the loop does on its way through it, without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from flask_ctl.servers import keepalive, loop
from flask_ctl.servers.keepalive import KeepAliveServer
from flask_ctl.servers.loop_state import STOPPING, LoopEvent, LoopState, next_state

STATES = {
    "serving": LoopState.SERVING, "closing": LoopState.CLOSING, "paused": LoopState.PAUSED,
    "handing": LoopState.HANDING_OVER, "draining": LoopState.DRAINING, "busy": LoopState.DRAINING_BUSY,
    "ending": LoopState.ENDING, "ended": LoopState.ENDED,
}  # fmt: skip

# A dash: the event changes nothing.
TABLE = """
                     serving   closing   paused    handing  draining  busy    ending  ended
KEEP_ALIVE           -         serving   -         -        -         -       -       -
CLOSE_AFTER_ANSWER   closing   -         -         -        -         -       -       -
PAUSE                paused    paused    -         -        -         -       -       -
RESUME               -         -         closing   -        -         -       -       -
HAND_OVER            handing   handing   handing   -        -         -       -       -
DRAIN                draining  draining  draining  -        -         -       -       -
CLOSE_IDLE           -         -         -         -        busy      -       -       -
CUT                  -         -         -         -        ending    ending  -       -
END                  ending    ending    ending    -        ending    ending  -       -
RETURN               ended     ended     ended     ended    ended     ended   ended   -
"""


def rows() -> Iterator[tuple[LoopEvent, LoopState, LoopState]]:
    names, *lines = [line.split() for line in TABLE.strip().splitlines()]
    for event, *afterwards in lines:
        for name, after in zip(names, afterwards, strict=True):
            yield LoopEvent[event], STATES[name], STATES[name if after == "-" else after]


@pytest.mark.parametrize(("event", "before", "after"), list(rows()), ids=lambda value: value.name)
def test_every_event_in_every_state(event: LoopEvent, before: LoopState, after: LoopState) -> None:
    assert next_state(before, event) is after


def test_the_table_has_every_event_and_every_state() -> None:
    assert {(event, before) for event, before, _ in rows()} == {(e, s) for e in LoopEvent for s in LoopState}


@pytest.mark.parametrize("event", LoopEvent, ids=lambda event: event.name)
@pytest.mark.parametrize("state", [state for state in LoopState if state in STOPPING], ids=lambda state: state.name)
def test_a_stop_is_never_taken_back(state: LoopState, event: LoopEvent) -> None:
    assert next_state(state, event) in {*STOPPING, LoopState.ENDED}


class LoopOver(BaseException):
    """Ends the loop of a fake server."""


class FakeLoop(KeepAliveServer):
    """A server whose connections are names, and whose loop is the test; `log` has what its hooks were asked for."""

    name, package, loop_end = "fake", "flask", (LoopOver,)

    def __init__(self) -> None:
        self.log: list[str] = []
        self.names: list[str] = []
        super().__init__([], {}, given=True, tls=False)

    def attach(self) -> None:
        self.log.append("attach")

    def detach(self) -> None:
        self.log.append("detach")

    def end_loop(self) -> NoReturn:
        raise LoopOver

    def listening(self) -> list[Any]:
        return ["a listener"]

    def idle(self) -> list[str]:
        return [name for name in self.names if name not in self.busy]

    def set_accepting(self, accept: bool) -> None:
        self.log.append("accept" if accept else "accept none")

    def accept_waiting(self) -> None:
        self.log.append("accept the backlog")

    def socket_of(self, connection: str) -> NoReturn:
        raise OSError

    def close_connection(self, connection: str) -> None:
        self.names.remove(connection)

    def give_up(self, connection: str) -> int:
        return self.names.index(connection)

    def look(self) -> bool:
        """What the loop does when it is woken; whether it goes on."""
        try:
            self.loop.look()
        except LoopOver:
            return False
        return True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLoop]:
    monkeypatch.setattr(keepalive, "waiting_connections", lambda listener: 0)
    server = FakeLoop()
    yield server
    server.loop.resources.close()


def test_a_pause_is_there_when_the_loop_has_looked_and_nothing_is_in_flight(server: FakeLoop) -> None:
    server.busy.begin("a")
    server.pause()
    assert not server.paused()
    assert server.look()
    assert server.loop.holding
    assert not server.paused()
    server.busy.done("a")
    assert server.paused()
    assert server.log == ["accept none"]


def test_a_pause_that_was_taken_back_before_the_loop_looked_is_none(server: FakeLoop) -> None:
    server.set_keep_alive(False)
    server.pause()
    server.resume()
    assert server.look()
    assert server.log == []
    assert not server.loop.holding
    assert server.loop.closing


def test_no_pause_is_reported_while_the_loop_lets_requests_in_again(
    server: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pause()
    server.look()
    server.resume()

    def pause_again(accept: bool) -> None:
        server.pause()
        seen.append(server.paused())

    seen: list[bool] = []
    monkeypatch.setattr(server, "set_accepting", pause_again)
    server.look()
    assert seen == [False]
    assert not server.paused()
    server.look()
    assert server.paused()


def test_a_drain_takes_back_a_pause_and_accepts_the_backlog_once(server: FakeLoop) -> None:
    server.pause()
    server.look()
    server.busy.begin("a")
    server.drain()
    assert server.look()
    server.close_idle()
    assert server.look()
    assert server.log == ["accept none", "accept", "accept the backlog", "accept none"]
    server.busy.done("a")
    assert not server.look()


@pytest.mark.parametrize("paused", [False, True])
def test_the_next_image_gets_the_idle_connections_and_nothing_is_let_in(server: FakeLoop, paused: bool) -> None:
    server.names = ["a", "b"]
    if paused:
        server.pause()
        server.look()
    server.leave()
    assert not server.look()
    assert server.hand_over() == {"listeners": {}, "parked": [0, 1]}
    assert server.log == ["accept none"] * paused


def test_a_loop_that_ends_for_the_next_image_keeps_the_program_until_the_reload_leaves(
    server: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that a cut has taken out of its request ends before the hooks have run."""
    events = []
    server.on_stopped = lambda: events.append("stopped")

    def leave() -> None:
        events.append("waits")
        server.leave()
        wait()

    wait = server.loop._released.wait
    monkeypatch.setattr(server.loop._released, "wait", leave)
    server.loop.report(LoopEvent.HAND_OVER)
    with pytest.raises(SystemExit):
        server.run(server.loop.look)
    assert events == ["waits", "stopped"]


def test_a_drain_waits_for_idle_connections_until_they_have_had_their_time(
    server: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.names = ["a"]
    monkeypatch.setattr(server, "socket_of", lambda connection: server.loop.waker)
    monkeypatch.setattr(loop, "wait_readable", lambda descriptors, timeout: [])
    server.drain()
    assert server.look()
    assert server.names == ["a"]
    server.close_idle()
    assert not server.look()
    assert server.names == []


@pytest.mark.parametrize("end", ["cut", "end"])
def test_the_loop_ends_though_requests_are_in_flight(server: FakeLoop, end: str) -> None:
    server.busy.begin("a")
    server.drain()
    server.look()
    getattr(server, end)()
    assert not server.look()


@pytest.mark.parametrize(("ask", "outlived", "count"), [("drain", False, 4), ("drain", True, 1), ("pause", False, 1)])
def test_connections_that_wait_are_cut_by_a_stop_and_go_to_the_next_image_at_a_reload(
    server: FakeLoop, monkeypatch: pytest.MonkeyPatch, ask: str, outlived: bool, count: int
) -> None:
    """Where the socket outlives the process, the next process answers them."""
    monkeypatch.setattr(server, "_outlived", outlived)
    monkeypatch.setattr(keepalive, "waiting_connections", lambda listener: 3)
    server.busy.begin("a")
    getattr(server, ask)()
    assert server.cut() == count


def test_a_server_that_never_drained_ends_too(server: FakeLoop) -> None:
    server.end()
    assert not server.look()


def test_a_loop_that_was_drained_waits_for_its_release(server: FakeLoop) -> None:
    events = []
    server.on_stopped = lambda: events.append("stopped")
    server.notify = lambda: events.append("quiet") if server.quiet() else server.end()
    server.drain()
    server.run(server.loop.look)
    assert server.log == ["accept the backlog", "accept none", "detach"]
    assert events[-2:] == ["quiet", "stopped"]
