"""The control thread's event loop: whose turn it is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from flask_ctl.transports.reactor import READ, Reactor

MANY = 1000


Ready = Callable[[Callable[[int], None]], socket.socket]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with contextlib.closing(Reactor()) as reactor:
        yield reactor


@pytest.fixture
def ready(reactor: Reactor) -> Iterator[Ready]:
    """Register sockets that are ready to be read: `ready(callback)`."""
    with contextlib.ExitStack() as stack:

        def register(callback: Callable[[int], None]) -> socket.socket:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            theirs.send(b"x")
            reactor.register(ours, READ, callback)
            return ours

        yield register


def test_every_socket_that_is_ready_is_served_once_in_a_round(reactor: Reactor, ready: Ready) -> None:
    served: list[int] = []

    def serve(number: int) -> Callable[[int], None]:
        return lambda _events: served.append(number)

    for number in range(100):
        ready(serve(number))
    reactor.run_once()
    assert sorted(served) == list(range(100))
    reactor.run_once()
    assert sorted(served) == sorted([*range(100), *range(100)])


def test_who_always_has_more_to_do_lets_the_other_sockets_have_their_turn(reactor: Reactor, ready: Ready) -> None:
    done: list[str] = []

    def work() -> None:
        done.append("work")
        if done.count("work") < MANY:
            reactor.call_soon(work)

    ready(lambda _events: done.append("socket"))
    reactor.call_soon(work)
    for _ in range(5):
        reactor.run_once()
    assert done == ["socket", "work"] * 5


def test_calls_are_made_in_the_order_in_which_they_were_asked_for(reactor: Reactor) -> None:
    calls: list[int] = []
    for number in range(MANY):
        reactor.call_soon(calls.append, number)
    reactor.run_once()
    assert calls == list(range(MANY))


def test_a_call_that_a_call_asks_for_comes_in_the_next_round(reactor: Reactor) -> None:
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        reactor.call_soon(calls.append, "second")

    reactor.call_soon(first)
    reactor.run_once()
    assert calls == ["first"]
    reactor.run_once()
    assert calls == ["first", "second"]


def test_what_another_callback_of_the_round_has_unregistered_is_not_called(reactor: Reactor, ready: Ready) -> None:
    called: list[str] = []
    sockets: dict[str, socket.socket] = {}

    def end(other: str) -> Callable[[int], None]:
        def callback(_events: int) -> None:
            called.append(other)
            reactor.unregister(sockets[other])

        return callback

    sockets["a"] = ready(end("b"))
    sockets["b"] = ready(end("a"))
    reactor.run_once()
    assert len(called) == 1


def test_later_calls_are_made_in_the_order_of_their_times(reactor: Reactor) -> None:
    calls: list[str] = []
    reactor.call_later(0.002, calls.append, "second")
    reactor.call_later(0.001, calls.append, "first")
    while len(calls) < 2:
        reactor.run_once()
    assert calls == ["first", "second"]


def test_a_later_call_does_not_keep_a_tick_from_its_time(reactor: Reactor) -> None:
    ticks: list[str] = []
    reactor.every(0.001, lambda: ticks.append("tick"))
    reactor.call_later(3600, ticks.append, "late")
    reactor.run_once()
    assert ticks == ["tick"]


def test_a_later_call_that_asks_for_itself_does_not_hold_up_the_round(reactor: Reactor) -> None:
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        reactor.call_later(0, again)

    reactor.call_later(0, again)
    reactor.run_once()
    reactor.run_once()
    assert len(calls) == 2


def test_another_thread_wakes_the_reactor(reactor: Reactor) -> None:
    thread = threading.Thread(target=reactor.run)
    thread.start()
    called = threading.Event()
    reactor.call_soon(called.set)
    assert called.wait(30)
    reactor.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_what_the_last_calls_ask_for_is_called_too(reactor: Reactor) -> None:
    calls: list[str] = []
    reactor.stop()
    reactor.run()
    reactor.call_soon(reactor.call_soon, reactor.call_soon, calls.append, "call")
    reactor.finish_calls()
    assert calls == ["call"]


def test_a_last_call_that_asks_for_itself_without_end_is_given_up(reactor: Reactor) -> None:
    def again() -> None:
        reactor.call_soon(again)

    again()
    reactor.finish_calls()


def test_a_reactor_that_is_renewed_forgets_everything_but_the_calls(reactor: Reactor, ready: Ready) -> None:
    calls: list[str] = []
    ready(lambda _events: calls.append("socket"))
    reactor.every(0, lambda: calls.append("tick"))
    reactor.call_later(0, calls.append, "timer")
    reactor.call_soon(calls.append, "call")
    reactor.renew()
    reactor.run_once()
    assert calls == ["call"]
