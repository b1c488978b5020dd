"""A worker that its hub refuses, as one that has no descriptors left does, tries again."""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from harness import TIMEOUT, Serve, Server, connections, until
from manyworkers import all_there, hub, kill
from servers import SERVERS

from flask_ctl import RemoteProtocolError
from flask_ctl.system.waiting import wait_readable
from flask_ctl.workers.agent import connection as link_module
from flask_ctl.workers.agent.connection import HubConnection


class Refused:
    """A talker whose hub refuses it so many times."""

    interval = 10.0

    def __init__(self, times: int) -> None:
        self.left = times
        self.accepted = threading.Event()

    def hello(self) -> bytes:
        return b"hello\n"

    def report(self) -> None:
        return None

    def is_wanted(self) -> bool:
        return True

    def hear(self, line: bytes) -> None:
        if self.left:
            self.left -= 1
            raise RemoteProtocolError("it refuses this worker")
        self.accepted.set()


@pytest.fixture
def hub_socket(short_path: pathlib.Path) -> Iterator[str]:
    """Somebody who answers every line by a line."""
    path = str(short_path / "hub")

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb", buffering=0) as file:
                for line in file:
                    if line == b"end\n":
                        return
                    file.write(b"answer\n")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve, name="a hub")
        thread.start()
        yield path
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(path)
            last.sendall(b"end\n")
            thread.join(TIMEOUT)


def test_each_refusal_is_a_failed_try(hub_socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float | None] = []

    def note(descriptors: list[int], timeout: float | None) -> list[int]:
        if len(descriptors) == 1:
            pauses.append(timeout)
            return []
        return wait_readable(descriptors, timeout)

    monkeypatch.setattr(link_module, "wait_readable", note)
    talker = Refused(4)
    link = HubConnection(
        hub_socket, os.getpid(), hello=talker.hello, report=talker.report, hear=talker.hear,
        interval=lambda: talker.interval, is_wanted=talker.is_wanted,
    )  # fmt: skip
    link.start()
    assert talker.accepted.wait(TIMEOUT)
    link.close(TIMEOUT)
    assert pauses[:4] == [0.02, 0.04, 0.08, 0.16]


def clients_of(server: Server, process: psutil.Process) -> list[Any]:
    """The connections of its control socket, without the socket that listens."""
    return [sock for sock in connections(process.pid, "unix") if str(sock.laddr) == server.socket][1:]


def test_a_hub_without_descriptors_knows_a_new_worker_as_soon_as_it_has_some(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync"])
    process = psutil.Process(hub(server))
    # A connection that the hub has not closed yet would leave a descriptor for the worker.
    until(lambda: not clients_of(server, process), "the end of the last connection")
    before = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), before[1]))
    kill(server.pid, signal.SIGTTIN)
    until(lambda: "the hub refuses this worker" in server.output or "no hub at" in server.output, "the refusal")
    process.rlimit(resource.RLIMIT_NOFILE, before)
    all_there(server, 3)
    assert server.output.count("the hub refuses this worker") <= 1
