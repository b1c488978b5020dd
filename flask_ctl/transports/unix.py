"""The Unix-domain stream socket."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from ..access import peer_of
from ..addresses import prepare_directory
from ..dispatcher import ReplyTo
from ..errors import ConfigurationError
from ..guard import Guard
from ..handover import inherited
from ..reactor import Reactor
from . import Handler
from .socketfile import SocketFile
from .stream import StreamServer

logger = logging.getLogger("flask_ctl")


class UnixListener:
    """Listens at a path, for those whom the guard's policy names; puts the socket back if a cleaner removes it."""

    def __init__(self, path: str, guard: Guard) -> None:
        self._guard = guard
        self._file = SocketFile(path, guard.policy.file_access())
        self._socket: socket.socket | None = None
        self._server: StreamServer | None = None
        self._reactor: Reactor | None = None
        self._complained = False
        self._warned = False
        self._owed: list[dict[str, Any]] = []

    @property
    def endpoint(self) -> str:
        return self._file.path

    def check(self) -> None:
        self._file.check()

    def open(self) -> None:
        control = inherited.take_control(self._file.path)
        if control is not None:
            self._adopt(control)
        else:
            prepare_directory(self._file.path)
            self._socket = self._file.acquire()
        self._warn_of_obstacle()

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        self._reactor = reactor
        self._server = StreamServer(reactor, handler, self._guard)
        if self._socket is None or self._socket.fileno() < 0:
            self._restore()
        else:
            self._server.listen(self._socket, peer_of)

    def tick(self) -> None:
        if self._server is not None:
            self._server.tick()
        if not self._file.in_place():
            self._restore()

    def detach(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def flush(self, timeout: float) -> None:
        if self._server is not None:
            self._server.flush(timeout)

    def hand_over(self) -> dict[str, Any] | None:
        if self._socket is None or self._server is None:
            return None
        control = {
            "path": self._file.path,
            "socket": self._socket.detach(),
            "lock": self._file.hand_over(),
            "clients": self._server.hand_over(),
        }
        self._socket = None
        return control

    def answer_owed(self, reply: Callable[[ReplyTo], bytes]) -> None:
        owed, self._owed = self._owed, []
        for client in owed:
            sock = socket.socket(fileno=client["descriptor"])
            connection = None if self._server is None else self._server.add(sock, peer_of(sock))
            if connection is None:
                sock.close()
                continue
            replies, unread = client["replies"], client["unread"].encode("latin-1")
            finish = any(to.get("plain") for to in replies)
            connection.resume(b"".join(map(reply, replies)), unread, finish=finish)

    def close(self) -> None:
        self.detach()
        self._close_socket()
        self._file.release()

    def abandon(self) -> None:
        if self._server is not None:
            self._server.abandon()
        if self._socket is not None:
            self._socket.close()
        self._file.abandon()

    def _warn_of_obstacle(self) -> None:
        directory = self._file.obstacle()
        if directory is not None and not self._warned:
            self._warned = True
            logger.warning(
                "%s is open to others by CTL_ALLOW, but they can't all enter %s; give a path in a directory that they"
                " can enter by FLASK_CTL_SOCKET",
                self.endpoint,
                directory,
            )

    def _adopt(self, control: dict[str, Any]) -> None:
        try:
            self._socket = self._file.adopt(control["socket"], control["lock"])
        except ConfigurationError:
            for client in control["clients"]:
                os.close(client["descriptor"])
            raise
        self._owed = control["clients"]

    def _restore(self) -> None:
        """Listen anew at our path, unless somebody else has taken it."""
        if not self._file.vacant() and not self._file.in_place():
            self._complain("something else is there now")
            return
        self._close_socket()
        self._file.release()
        try:
            self.open()
        except ConfigurationError as error:
            self._complain(error.message)
            return
        logger.warning("the control socket %s had been removed; it is back", self.endpoint)
        self._complained = False
        if self._server is not None and self._socket is not None:
            self._server.listen(self._socket, peer_of)

    def _close_socket(self) -> None:
        if self._socket is not None:
            if self._reactor is not None:
                self._reactor.unregister(self._socket)
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("the control socket %s was removed and can't be put back: %s", self.endpoint, reason)
