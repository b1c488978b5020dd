"""A worker's connection with its hub: what the hub asks is answered in one go."""

from __future__ import annotations

import os
import pathlib
import socket

from harness import TIMEOUT

from flask_ctl.workers.agent.connection import HubConnection

QUESTIONS = 20


def test_a_question_costs_a_worker_one_look_at_its_counts(short_path: pathlib.Path) -> None:
    looks: list[None] = []
    path = str(short_path / "hub")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        link = HubConnection(
            path,
            os.getpid(),
            hello=lambda: b"hello\n",
            report=lambda: looks.append(None),
            hear=lambda line: link.send(b"answer\n"),
            interval=lambda: TIMEOUT,
            is_wanted=lambda: not looks,
        )
        link.start()
        accepted, _ = listener.accept()
        with accepted, accepted.makefile("rwb", buffering=0) as hub:
            assert hub.readline() == b"hello\n"
            for _ in range(QUESTIONS):
                hub.write(b"question\n")
                assert hub.readline() == b"answer\n"
        link.close(TIMEOUT)
    assert len(looks) == QUESTIONS
