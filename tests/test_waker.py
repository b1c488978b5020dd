"""The descriptor that wakes the control thread: nobody writes to a number that has been given away."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness import TIMEOUT

from flask_ctl.system.waiting import Waker, wait_readable


@pytest.fixture
def waker() -> Iterator[Waker]:
    with contextlib.closing(Waker()) as waker:
        yield waker


def test_a_waker_is_readable_once_somebody_wakes_it(waker: Waker) -> None:
    assert not wait_readable([waker.fileno()], 0)
    waker.wake()
    assert wait_readable([waker.fileno()], 0)
    waker.clear()
    assert not wait_readable([waker.fileno()], 0)


def test_to_wake_a_closed_waker_is_nothing(waker: Waker) -> None:
    waker.close()
    waker.wake()
    waker.close()


def test_a_file_that_gets_the_number_of_a_closed_waker_is_not_written_to(
    waker: Waker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "database"
    files: list[Any] = []

    def close_and_open() -> None:
        waker.close()
        files.append(path.open("wb"))

    closing = threading.Thread(target=close_and_open)
    write = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        """Between the look at the number and the write another thread closes the waker, unless that has to wait."""
        closing.start()
        closing.join(0.1)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupted)
    waker.wake()
    monkeypatch.undo()
    closing.join(TIMEOUT)
    files[0].close()
    assert pathlib.Path(path).read_bytes() == b""


def test_a_signal_handler_may_wake_while_its_thread_wakes(waker: Waker, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR1)
        return write(descriptor, data)

    before = signal.signal(signal.SIGUSR1, lambda *_: waker.wake())
    try:
        monkeypatch.setattr(os, "write", interrupted)
        waker.wake()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert wait_readable([waker.fileno()], 0)


def test_a_forked_child_may_close_a_waker_that_another_thread_was_waking(
    waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = threading.Event()
    waking = threading.Event()
    write = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        waking.set()
        forked.wait(TIMEOUT)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupted)
    thread = threading.Thread(target=waker.wake)
    thread.start()
    waking.wait(TIMEOUT)
    child = os.fork()
    if child == 0:
        waker.close()
        os._exit(7)
    forked.set()
    thread.join(TIMEOUT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
