"""The Unix-domain stream socket."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..dispatch.guard import Guard
from ..dispatch.peer import peer_of
from ..dispatch.replies import ReplyTo
from ..system.addresses import Address
from ..system.native import socket
from .base import Handler
from .endpoint import BoundListener
from .reactor import Reactor
from .socketfile import SocketFile
from .stream import StreamServer


class UnixListener(BoundListener):
    """Listens at a path, for the users in the guard's policy; restores the socket file if it is removed."""

    def __init__(self, path: str, guard: Guard, file: SocketFile | None = None) -> None:
        super().__init__(Address("unix", path), file or SocketFile(path, guard.policy.file_access()), guard)
        self._server: StreamServer | None = None
        self._reactor: Reactor | None = None

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        self._reactor = reactor
        self._server = StreamServer(reactor, handler, self._guard)
        if self._socket is not None or self._restore():
            self._listen()

    def tick(self) -> None:
        if self._server is not None:
            self._server.tick()
        if not self._is_reached():
            self._ignore()
            self._restore()
            self._listen()

    def detach(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def flush(self, timeout: float) -> None:
        if self._server is not None:
            self._server.flush(timeout)

    def export_state(self) -> dict[str, Any] | None:
        return None if self._server is None else self._export_socket(self._server.export_state())

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        caller, self._caller = self._caller, None
        if caller is None:
            return
        sock = socket.socket(fileno=caller["descriptor"])
        connection = None if self._server is None else self._server.add(sock, peer_of(sock))
        if connection is None:
            sock.close()
            return
        unread, finish = caller["unread"].encode("latin-1"), bool(caller["reply"].get("plain"))
        connection.answer_caller(_line(caller, reply), unread, finish=finish)

    def close(self) -> None:
        self.detach()
        self._ignore()
        super().close()

    def abandon(self) -> None:
        if self._server is not None:
            self._server.abandon()
        super().abandon()

    def _listen(self) -> None:
        if self._server is not None and self._socket is not None:
            self._server.listen(self._socket, peer_of)

    def _ignore(self) -> None:
        if self._reactor is not None and self._socket is not None:
            self._reactor.unregister(self._socket)


def answer_and_close(caller: dict[str, Any], reply: Callable[[ReplyTo], bytes]) -> None:
    """Give the caller of the reload its answer, where the new image listens elsewhere."""
    with socket.socket(fileno=caller["descriptor"]) as sock:
        sock.setblocking(False)
        # A client that does not read, or is gone, gets none.
        with suppress(OSError):
            sock.send(_line(caller, reply))


def _line(caller: dict[str, Any], reply: Callable[[ReplyTo], bytes]) -> bytes:
    # A line ends with its end, a plain answer with the stream's.
    answer = reply(caller["reply"])
    return answer + b"\n" if answer and not caller["reply"].get("plain") else answer
