"""A service manager of the tests: it reads single datagrams of sd_notify(3), and the kernel tells who has sent them."""

from __future__ import annotations

import array
import os
import pathlib
import socket
import struct
import time
from typing import NamedTuple

from harness import TIMEOUT

ROOM = 64
"""Descriptors of one datagram that are taken."""


class Told(NamedTuple):
    """One datagram: when it was read, by the monotonic clock, its sender, and the assignments."""

    at: float
    pid: int
    fields: dict[str, str]
    descriptors: list[int]


class Manager:
    """Listens at a path, or at an abstract address that begins with @, until `close`."""

    def __init__(self, address: pathlib.Path | str) -> None:
        self.address = str(address)
        self.all: list[Told] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)

    @property
    def env(self) -> dict[str, str]:
        """What a service finds in its environment."""
        return {"NOTIFY_SOCKET": self.address}

    def next(self, timeout: float = TIMEOUT) -> Told:
        """The next datagram. Raises TimeoutError."""
        self._socket.settimeout(timeout)
        room = socket.CMSG_SPACE(struct.calcsize("3i")) + socket.CMSG_SPACE(ROOM * array.array("i").itemsize)
        data, ancillary, *_ = self._socket.recvmsg(65536, room)
        pid, descriptors = 0, array.array("i")
        for _, kind, value in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid = struct.unpack("3i", value)[0]
            else:
                descriptors.frombytes(value)
        lines = data.decode().splitlines()
        told = Told(time.monotonic(), pid, dict(line.split("=", 1) for line in lines), descriptors.tolist())
        assert len(told.fields) == len(lines), "a field was assigned twice"
        self.all.append(told)
        return told

    def until(self, name: str) -> Told:
        """The next datagram that assigns `name`; those before are in `all`."""
        while name not in (told := self.next()).fields:
            """Another one."""
        return told

    def waiting(self) -> list[Told]:
        """Those that have arrived."""
        found = []
        try:
            while True:
                found.append(self.next(timeout=0))
        except BlockingIOError:
            return found

    def close(self) -> None:
        for descriptor in (number for told in self.all for number in told.descriptors):
            os.close(descriptor)
        self._socket.close()
