"""Servers with several worker processes, for the tests."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import threading

import psutil
from harness import TIMEOUT, Server, until


def hubs_of(directory: pathlib.Path) -> list[psutil.Process]:
    """The hubs whose private sockets are below `directory`."""
    found = []
    # Every test with a hub looks several times, so only what says of itself that it is one is looked at more closely.
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            # Of one that has ended nothing can be read any more.
            line = pathlib.Path("/proc", pid, "cmdline").read_bytes()
            if b"flask_ctl.hub" in line and os.fsencode(directory) in line:
                found.append(psutil.Process(int(pid)))
    return found


def workers(server: Server) -> list[int]:
    """The pids of the workers that its status shows."""
    return [worker["pid"] for worker in server.status()["workers"]]


def hub(server: Server) -> int:
    """The pid of its hub."""
    return int(server.status()["control"]["hub"])


def all_there(server: Server, count: int) -> Server:
    """Wait until so many workers are known."""
    until(lambda: server.status() and len(workers(server)) == count, f"{count} workers; the output was {server.output}")
    return server


def is_alive(pid: int) -> bool:
    """Whether the process runs, and is no zombie."""
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal, and wait for the end if it is SIGKILL."""
    psutil.Process(pid).send_signal(signum)
    if signum == signal.SIGKILL:
        until(lambda: not is_alive(pid), f"the end of {pid}")


class Load:
    """Clients that ask for a path again and again; what is not answered whole is in `lost`."""

    def __init__(self, address: tuple[str, int], path: str = "/version", clients: int = 3, keep: bool = False) -> None:
        self.bodies: list[str] = []
        self.lost: list[str] = []
        self.refused = 0
        self._address, self._path, self._keep = address, path, keep
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="load") for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Load:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        return self

    def __enter__(self) -> Load:
        until(lambda: len(self.bodies) > len(self._threads), "the first answers")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                sock = socket.create_connection(self._address, timeout=TIMEOUT)
            except ConnectionRefusedError:
                # Nobody listens any more: after a stop that is no loss.
                self.refused += 1
                return
            except OSError as error:
                self.lost.append(f"connect: {error}")
                return
            with sock:
                self._converse(sock)

    def _converse(self, sock: socket.socket) -> None:
        """Ask on one connection until the server says that it closes.

        A kept connection may be closed at any time, which a client can't tell from the loss of what it has just asked:
        it asks anew (RFC 9112, section 9.3.1).
        """
        asked = 0
        while not self._stop.is_set():
            try:
                sock.sendall(f"GET {self._path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head, body = _response(sock)
            except (OSError, EOFError, ValueError) as error:
                if not asked:
                    self.lost.append(f"{type(error).__name__}: {error}")
                return
            asked += 1
            if head.split()[1:2] != [b"200"]:
                self.lost.append(head.decode("latin-1"))
            self.bodies.append(body.decode())
            if not self._keep or b"connection: close" in head.lower():
                return


def _response(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += _more(sock)
    return head, body


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise EOFError("the connection ended")
    return data
