"""Whatever system call of a hub fails, once and at any moment: the answer comes, and the next one works.

The hub lives in threads of the test; its master and the workers are processes, and know nothing of the faults. Nor
does its main thread: what fails there ends the hub's process, and the workers start another.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import FAULTS, armed
from harness import TIMEOUT, first_quick, raw, until
from smallmaster import WORKERS, Masters

from flask_ctl import ControlClient, ControlError
from flask_ctl.system.processes import open_process
from flask_ctl.workers.agent.spawn import _take_lock
from flask_ctl.workers.hub.hub import Hub

MAX_CALLS = 80
"""No ask makes more calls of one kind."""


@pytest.fixture(scope="module")
def masters() -> Iterator[Masters]:
    masters = Masters()
    yield masters
    masters.close()


class Scene:
    """A master, its workers, and their hub."""

    def __init__(self, directory: pathlib.Path, masters: Masters) -> None:
        self.socket = str(directory / "app.sock")
        path = str(directory / "private.hub")
        master, lock = open_process(masters.start(path, self.socket)), _take_lock(path)
        assert master is not None
        assert lock is not None
        self.master = master
        self._hub = Hub(path, lock, master)
        self._thread = threading.Thread(target=self._hub.run, name="hub")
        self._thread.start()

    def runs(self) -> bool:
        """Wait until all workers are known, and nothing is under way; or until the master has ended."""
        until(lambda: self.master.ended() or self._is_calm(), "an end, or not")
        return not self.master.ended()

    def _is_calm(self) -> bool:
        with contextlib.suppress(ControlError), self.client() as client:
            status = client.status()
            return status["state"] == "running" and len(status["workers"]) == WORKERS
        return False

    def client(self) -> ControlClient:
        return ControlClient(self.socket, timeout=TIMEOUT)

    def close(self) -> None:
        self.master.kill()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        # What the end of its process would do.
        for worker in self._hub.workers:
            worker.close()
        self._hub._waker.close()
        self.master.close()


Ask = Callable[[Scene], Any]


def stop(scene: Scene, mode: str) -> None:
    """Not by a client, which waits for the end of the process at the other end, and that is the test's own here."""
    with raw(scene.socket) as sock:
        sock.sendall(
            json.dumps({"jsonrpc": "2.0", "method": "stop", "params": {"mode": mode}, "id": 1}).encode() + b"\n"
        )
        sock.makefile("rb").readline()


def call(name: str, *arguments: str) -> Ask:
    def ask(scene: Scene) -> Any:
        with scene.client() as client:
            return getattr(client, name)(*arguments)

    return ask


ASKS: dict[str, Ask] = {
    "status": call("status"),
    "a command": call("call", "greet"),
    "reload": call("reload"),
    "stop": lambda scene: stop(scene, "graceful"),
    "reload of the config": call("reload", "config"),
    "stop fast": lambda scene: stop(scene, "fast"),
}


@pytest.mark.parametrize("ask", first_quick(ASKS, 4))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_once_leaves_a_server_that_can_be_asked_reloaded_and_stopped(
    masters: Masters, short_path: pathlib.Path, fault: str, ask: str, stride: int
) -> None:
    for nth in range(1, MAX_CALLS, stride):
        directory = short_path / str(nth)
        directory.mkdir()
        with contextlib.closing(Scene(directory, masters)) as scene:
            assert scene.runs()
            with armed(FAULTS[fault], nth) as arming, contextlib.suppress(ControlError, ConnectionError):
                ASKS[ask](scene)
            if scene.runs():
                (call("reload") if nth % 2 else lambda scene: stop(scene, "graceful"))(scene)
                assert scene.runs() == bool(nth % 2)
            else:
                assert ask.startswith("stop")
        if not arming.came:
            return
    pytest.fail(f"more than {MAX_CALLS} calls")
