"""What a forked child does first: the order of the calls, and what is left of a server's control sockets."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pathlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from harness import TIMEOUT

from flask_ctl import BackgroundServer, ControlClient
from flask_ctl.system import fork, locks
from flask_ctl.system.fork import Step, in_child
from flask_ctl.system.reserve import SIZE, reserve
from flask_ctl.system.waiting import Waker


def in_forked_child(look: Callable[[], Any]) -> Any:
    """What `look` returns in a child, which then ends without running the test's own cleanup."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(look()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told)


class Recorder:
    """Methods for every step, which note their call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def signals(self) -> None:
        self.calls.append("signals")

    def memory(self) -> None:
        self.calls.append("memory")

    def failing(self) -> None:
        self.calls.append("failing")
        raise RuntimeError("no")

    def descriptors(self) -> None:
        self.calls.append("descriptors")


def test_the_steps_are_made_in_their_order_whatever_the_order_of_registration() -> None:
    recorder = Recorder()
    in_child(Step.DESCRIPTORS, recorder.descriptors)
    in_child(Step.MEMORY, recorder.memory)
    in_child(Step.SIGNALS, recorder.signals)
    assert in_forked_child(lambda: recorder.calls) == ["signals", "memory", "descriptors"]
    assert recorder.calls == []


# Python reports what the call raises on stderr, which is the child's.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_that_fails_keeps_no_other_from_being_made() -> None:
    recorder = Recorder()
    for step, call in [
        (Step.SIGNALS, recorder.signals),
        (Step.MEMORY, recorder.failing),
        (Step.MEMORY, recorder.memory),
        (Step.DESCRIPTORS, recorder.descriptors),
    ]:
        in_child(step, call)
    assert in_forked_child(lambda: recorder.calls) == ["signals", "failing", "memory", "descriptors"]


def test_a_method_that_is_registered_does_not_keep_its_object_alive() -> None:
    gc.collect()
    before = {step: len(calls) for step, calls in fork._calls.items()}
    recorder, waker = Recorder(), Waker()
    in_child(Step.DESCRIPTORS, recorder.descriptors)
    waker.close()
    del recorder, waker
    gc.collect()
    assert {step: len(calls) for step, calls in fork._calls.items()} == before


def _sockets() -> list[int]:
    """The descriptors of this process that lead to sockets."""
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                found.append(number)
    return found


@pytest.mark.parametrize("scheme", ["", "ipc://"], ids=["unix", "ipc"])
def test_a_forked_child_has_neither_control_sockets_nor_locks_and_the_parent_keeps_them(
    short_path: pathlib.Path, scheme: str
) -> None:
    path = str(short_path / "c.sock")
    with BackgroundServer(Flask(__name__), socket=scheme + path), ControlClient(scheme + path) as client:
        assert client.ping()["pong"]

        def look() -> dict[str, Any]:
            return {
                "lock": locks.is_ours(locks.lock_path(path)),
                "reserve": reserve.held,
                "serves": any(_name(number) == path for number in _sockets()),
            }

        assert look() == {"lock": True, "reserve": SIZE, "serves": True}
        assert in_forked_child(look) == {"lock": False, "reserve": 0, "serves": False}
        assert locks.is_ours(locks.lock_path(path))
        assert client.status(timeout=TIMEOUT)["pid"] == os.getpid()


def _name(number: int) -> Any:
    with socket.socket(fileno=os.dup(number)) as copy:
        return copy.getsockname()
