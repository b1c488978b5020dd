"""Whatever system call fails, once and at any moment: the answer comes, and the next one works."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Scene
from faults import FAULTS, armed
from harness import TIMEOUT, first_quick, raw, read_all, until

from flask_ctl import CommandError, ControlClient, ProtocolError, ServerDied
from flask_ctl.lifecycle import commit
from flask_ctl.lifecycle import reload as reloading
from flask_ctl.lifecycle import stop as stopping

MAX_CALLS = 60
"""No ask makes more calls of one kind."""


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "MIN_UNWIND", 0.2)
    monkeypatch.setattr(reloading, "PAUSE", 0.02)
    monkeypatch.setattr(stopping, "IDLE_LINGER", 0.0)
    monkeypatch.setattr(stopping, "SETTLE_TIME", 0.01)
    # It looks at the modules of the tests, which are many, and suppresses what fails.
    monkeypatch.setattr(reloading, "remove_stale", lambda: None)


def broken(scene: Scene, client: ControlClient) -> None:
    scene.program.broken = "SyntaxError"
    try:
        client.reload()
    finally:
        scene.program.broken = None


def text(scene: Scene, client: ControlClient) -> None:
    with raw(str(scene.socket)) as sock:
        sock.sendall(b"status\n")
        read_all(sock)


def stop(scene: Scene, mode: str) -> None:
    """Not by a client, which waits for the end of the process, and that is the test's own here."""
    with raw(str(scene.socket)) as sock:
        sock.sendall(b'{"jsonrpc":"2.0","method":"stop","params":{"mode":"%s"},"id":1}\n' % mode.encode())
        while (data := sock.recv(65536)) and b"\n" not in data:
            pass


ASKS: dict[str, Callable[[Scene, ControlClient], Any]] = {
    "status": lambda scene, client: client.status(),
    "a command": lambda scene, client: client.call("double", number=21),
    "reload of broken code": broken,
    "reload": lambda scene, client: client.reload(),
    "stop": lambda scene, client: stop(scene, "graceful"),
    "ping": lambda scene, client: client.ping(),
    "status in text": text,
    "reload of the config": lambda scene, client: client.reload("config"),
    "stop fast": lambda scene, client: stop(scene, "fast"),
}
ENDS = {"reload": "exec", "stop": "end", "stop fast": "end"}


@pytest.mark.parametrize("ask", first_quick(ASKS, 5))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_once_leaves_a_server_that_can_be_asked_reloaded_and_stopped(
    short_path: pathlib.Path, fault: str, ask: str, stride: int
) -> None:
    for nth in range(1, MAX_CALLS, stride):
        directory = short_path / str(nth)
        directory.mkdir()
        scene = Scene(directory)
        try:
            with armed(FAULTS[fault], nth) as arming:
                answer(scene, ask)
            still_controlled(scene, ask, stops=bool(nth % 2))
        finally:
            scene.close()
        if not arming.came:
            return
    pytest.fail(f"more than {MAX_CALLS} calls")


def answer(scene: Scene, ask: str) -> None:
    """Ask once; a clear error is an answer too, but that there was none."""
    with (
        contextlib.suppress(CommandError, ServerDied, ProtocolError, ConnectionError),
        ControlClient(scene.socket) as client,
    ):
        ASKS[ask](scene, client)


def still_controlled(scene: Scene, ask: str, *, stops: bool) -> None:
    """It is on its way to where the ask leads, or runs as before and does what it is asked."""
    if ask in ENDS and not runs(scene):
        how, what = scene.program.wait()
        assert how == ENDS[ask] or (how, what) == ("exit", 1)
        return
    with ControlClient(scene.socket, timeout=TIMEOUT) as client:
        assert client.status()["state"] == "running"
        assert scene.server.serves
    scene.stop() if stops else scene.reload()
    assert scene.program.wait()[0] == ("end" if stops else "exec")


def runs(scene: Scene) -> bool:
    """Whether the ask has come to nothing."""
    until(lambda: scene.program.fate or scene.instance._lifecycle.state.value == "running", "an end, or not")
    return scene.program.fate is None
