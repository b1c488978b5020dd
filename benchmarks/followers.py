"""What a request that logs costs while a client that follows the log does not read."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from urllib.request import urlopen

from benchmarks.measuring import Figure, compare, elapsed
from benchmarks.running import PROGRAMS, TOOL, Program, free_port, scratch_directory
from flask_ctl import ControlClient

REQUESTS = 500
"""In one sample, each with a record of a kilobyte: the follower's socket is full after about 200."""

GOAL = 1.1


def stopped_follower(rounds: int) -> list[Figure]:
    """Requests under Werkzeug, with a follower under SIGSTOP and without one."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        address, port = str(scratch / "app.sock"), free_port()
        server = stack.enter_context(Program(PROGRAMS, "logging_app", address, str(port), log=scratch / "app.log"))
        client = stack.enter_context(ControlClient(address))
        server.wait_until(client.ping)

        def requests() -> None:
            for _ in range(REQUESTS):
                with urlopen(f"http://127.0.0.1:{port}") as answer:
                    answer.read()

        def beside_follower() -> float:
            with _stopped_follower(scratch, address):
                return elapsed(requests) / REQUESTS

        requests()
        compared = compare(rounds, beside_follower, lambda: elapsed(requests) / REQUESTS)
    return [Figure.ratio("a request that logs, beside a follower under SIGSTOP", "without a follower", compared, GOAL)]


@contextlib.contextmanager
def _stopped_follower(scratch: pathlib.Path, address: str) -> Iterator[None]:
    command = [TOOL, "logs", "--follow", "--json", "--lines", "0", "--socket", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as follower:
        assert follower.stdout is not None
        # It follows, once it has been told what it will see.
        if not follower.stdout.readline():
            raise RuntimeError("it does not follow")
        follower.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, follower.pid, os.WSTOPPED)
        try:
            yield
        finally:
            follower.kill()
