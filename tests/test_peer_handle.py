"""The handle on the process at the other end of a Unix socket."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess

from flask_ctl.system.processes import open_peer, open_process


def test_a_peer_that_is_gone_and_forgotten_leaves_nothing_open(short_path: pathlib.Path) -> None:
    path = str(short_path / "x.sock")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = set(os.listdir("/proc/self/fd"))
        handle = open_peer(sock)
        if handle is not None:
            with contextlib.closing(handle):
                assert handle.ended()
        assert set(os.listdir("/proc/self/fd")) == before
    os.close(read)
    os.close(write)


def test_a_closed_handle_reaches_nobody_though_its_number_is_in_use_again() -> None:
    first, other = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        closed = open_process(first.pid)
        assert closed is not None
        number = closed.fileno()
        closed.close()
        again = open_process(other.pid)
        assert again is not None
        with contextlib.closing(again):
            assert again.fileno() == number
            closed.kill()
            closed.close()
            assert (closed.ended(), closed.fileno(), closed.duplicate()) == (True, -1, None)
            assert not again.ended()
    finally:
        for process in (first, other):
            process.kill()
            process.wait()
