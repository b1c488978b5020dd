"""The descriptors that are kept for control."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from flask_ctl.dispatch.guard import Guard
from flask_ctl.system import reserve as reserve_module
from flask_ctl.system.reserve import LENT, SIZE, Reserve
from flask_ctl.transports import stream
from flask_ctl.transports.reactor import Reactor
from flask_ctl.transports.stream import StreamServer


def refuse(*_: Any) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


@contextlib.contextmanager
def opened(reserve: Reserve) -> Iterator[Reserve]:
    reserve.open()
    try:
        yield reserve
    finally:
        reserve.close()


@pytest.fixture
def reserve() -> Iterator[Reserve]:
    with opened(Reserve()) as reserve:
        yield reserve


def test_they_are_held_until_the_last_user_gives_them_back() -> None:
    reserve = Reserve()
    with opened(reserve):
        with opened(reserve):
            assert reserve.held == SIZE
        assert reserve.held == SIZE
    assert reserve.held == 0


def test_they_are_given_up_one_by_one_until_there_are_none(reserve: Reserve) -> None:
    assert [reserve.give_up() for _ in range(SIZE + 1)] == [True] * SIZE + [False]
    reserve.fill()
    assert reserve.held == SIZE


def test_what_is_lent_is_taken_back(reserve: Reserve) -> None:
    with reserve.lend():
        assert reserve.held == SIZE - LENT
        reserve.fill()
        assert reserve.held == SIZE - LENT
    assert reserve.held == SIZE


def test_what_can_not_be_taken_back_is_taken_later(reserve: Reserve, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with reserve.lend():
            pass
        assert reserve.held == SIZE - LENT
    reserve.fill()
    assert reserve.held == SIZE


def test_who_finds_no_descriptor_tries_again_with_those_that_are_lent(reserve: Reserve) -> None:
    held = []

    def read() -> str:
        held.append(reserve.held)
        if len(held) == 1:
            refuse()
        return "read"

    assert reserve.retry(read) == "read"
    assert held == [SIZE, SIZE - LENT]


def test_another_failure_is_not_tried_again(reserve: Reserve) -> None:
    with pytest.raises(FileNotFoundError):
        reserve.retry(lambda: os.open("/nowhere", 0))
    assert reserve.held == SIZE


def test_a_forked_child_holds_none() -> None:
    reserve = reserve_module.reserve
    with opened(reserve):
        child = os.fork()
        if child == 0:
            os._exit(reserve.held)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert reserve.held == SIZE


class Listener:
    """A listening socket whose accept(2) finds no descriptor for a while."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.asked = 0
        self.refusing = True

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> Any:
        self.asked += 1
        return refuse() if self.refusing else self._sock.accept()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_connection(sock.getsockname()):
        yield Listener(sock)


@pytest.fixture
def accepting(
    listener: Listener, reserve: Reserve, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Reactor, list[socket.socket]]]:
    """A reactor that accepts at `listener`, and whom it has accepted."""
    monkeypatch.setattr(stream, "reserve", reserve)
    accepted: list[socket.socket] = []
    with contextlib.closing(Reactor()) as reactor:
        handler: Any = None
        server: Any = StreamServer(reactor, handler, Guard())
        monkeypatch.setattr(server, "add", lambda sock, peer: accepted.append(sock))
        server.listen(listener, lambda sock: None)
        yield reactor, accepted
    for sock in accepted:
        sock.close()


def test_for_a_connection_one_of_them_is_given_up(
    listener: Listener, reserve: Reserve, accepting: tuple[Reactor, list[socket.socket]]
) -> None:
    reactor, accepted = accepting
    reactor.run_once()
    assert (listener.asked, reserve.held, accepted) == (1, SIZE - 1, [])
    listener.refusing = False
    reactor.run_once()
    assert len(accepted) == 1


def test_a_listener_for_which_there_is_no_descriptor_is_looked_at_again_but_not_all_the_time(
    listener: Listener, accepting: tuple[Reactor, list[socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reactor, accepted = accepting
    monkeypatch.setattr(stream, "RETRY", 0.001)
    for _ in range(SIZE + 1):
        reactor.run_once()
    assert listener.asked == SIZE + 1
    # Nothing is there to be called but the timer, after which the listener is asked again.
    reactor.run_once()
    assert listener.asked == SIZE + 1
    listener.refusing = False
    reactor.run_once()
    assert len(accepted) == 1
