"""A server that can be drained, paused and left to the next image of its process.

A connection is busy from the first byte of a request to the last of its response, and idle otherwise, before its first
request too. A stop waits for busy connections and closes idle ones; a reload leaves idle ones to the next image. Only
the thread of the server's own loop touches connections. Other threads report an event to its `ServerLoop`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..system.native import socket, threading
from ..system.packages import version_of
from ..system.signals import signals
from ..system.sockets import waiting_connections, welcome_connections
from .attributes import RELOAD, reason_of_loss
from .base import Host, HttpServer, WSGIApp
from .copies import ListenerCopies
from .hooks import LoopHooks, Replacements
from .loop import ServerLoop
from .loop_state import STOPPING, LoopEvent, LoopState
from .urls import activated, end_preflight, storable


class KeepAliveServer(LoopHooks, HttpServer):
    """What the servers under control have in common; an adapter adds the `LoopHooks`.

    `bound` has the sockets that this process has bound, by the addresses that were asked for; `given` says that the
    program was given others, which outlive it.
    """

    package: str
    loop_end: tuple[type[BaseException], ...] = ()
    """What `end_loop` raises."""
    inherits_given = False
    """Whether the program has a socket that it was given again after a reload, because its descriptor is inherited."""

    def __init__(
        self,
        listeners: list[str],
        bound: dict[str, socket.socket],
        *,
        given: bool,
        tls: bool,
        embedded: bool | None = None,
    ) -> None:
        super().__init__(version_of(self.package), listeners)
        in_main = threading.current_thread() is threading.main_thread()
        self.embedded = not in_main if embedded is None else embedded
        # The next image is given those of systemd again.
        self.copies = ListenerCopies({name: sock for name, sock in bound.items() if name not in activated})
        self.to_store = [sock for name, sock in bound.items() if name in storable and sock.family != socket.AF_UNIX]
        self._outlived = given or not activated.isdisjoint(bound)
        self.loop = ServerLoop(self, lambda: self.notify(), given=self._outlived)
        self.busy = self.loop.busy
        self._given = given
        self._tls = tls
        self._replacements = Replacements()

    # What a stop and a reload ask for.

    def in_flight(self) -> int:
        return len(self.busy)

    def quiet(self) -> bool:
        return self.loop.state is LoopState.ENDED

    def drain(self) -> None:
        self.loop.report(LoopEvent.DRAIN)

    def close_idle(self) -> None:
        self.loop.report(LoopEvent.CLOSE_IDLE)

    def cut(self) -> int:
        connections = self.busy.connections()
        for connection in connections:
            # Not the method of an SSLSocket, which would pull the TLS object from under its thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.socket_of(connection), socket.SHUT_RDWR)
        # At a reload the next image answers them.
        waiting = self._count_waiting() if self.loop.state in STOPPING else 0
        self.loop.report(LoopEvent.CUT)
        return len(connections) + waiting

    def _count_waiting(self) -> int:
        """Connections that a stop cuts though no request of theirs is being answered: those in the backlog."""
        # Where the socket stays, the next process answers them.
        return 0 if self._outlived else self.backlog()

    def backlog(self) -> int:
        # The loop may end at this moment, and close the listeners.
        with contextlib.suppress(OSError):
            return sum(map(waiting_connections, self.listening()))
        return 0

    def reached_at(self) -> list[Any]:
        with contextlib.suppress(OSError):
            return [listener.getsockname() for listener in self.listening()]
        return []

    def end(self) -> None:
        # The loop has ended by now, unless the stop has failed on its way.
        self.loop.release(LoopEvent.END)

    def obstacle(self) -> str | None:
        if (reason := reason_of_loss(self.package, RELOAD)) is not None:
            return reason
        if self.embedded:
            return "the server runs in a thread of a bigger program"
        if self._tls:
            return "TLS connections can't be handed over"
        if self._given and not self.inherits_given:
            return "the server was given its socket, which it can't hand over"
        return None

    def set_keep_alive(self, keep: bool) -> None:
        self.loop.report(LoopEvent.KEEP_ALIVE if keep else LoopEvent.CLOSE_AFTER_ANSWER)

    def requests(self) -> frozenset[int]:
        return self.busy.requests()

    def pause(self) -> None:
        self.loop.report(LoopEvent.PAUSE)

    def resume(self) -> None:
        self.loop.report(LoopEvent.RESUME)

    def paused(self) -> bool:
        return self.loop.has_paused()

    def leave(self) -> None:
        # The loop has ended before if a cut has taken it out of a request.
        self.loop.release(LoopEvent.HAND_OVER)

    def hand_over(self) -> dict[str, Any]:
        return {"listeners": self.copies.detach(), "parked": self.loop.left_idle}

    def is_serving_thread(self) -> bool:
        return self.busy.is_answered_by(threading.get_ident())

    # What the thread of the loop does.

    def serve(self, host: Host, wsgi_app: WSGIApp, run_loop: Callable[[], Any]) -> None:
        """Run `run_loop`, under control if it serves an app that is; after a drain, return or exit only at `end`."""
        end_preflight(host.check_settings)
        if self.open(host, wsgi_app):
            self.run(run_loop)
        else:
            run_loop()

    def open(self, host: Host, wsgi_app: WSGIApp) -> bool:
        """Put the server under control; False if it serves no app that is to be."""
        registered = False
        try:
            registered = host.register(self, wsgi_app)
        finally:
            if not registered:
                self.loop.resources.close()
        if registered:
            self.start()
        return registered

    def start(self) -> None:
        """The loop is about to run under control."""
        for listener in self.listening():
            welcome_connections(listener)
        self.attach()
        self.on_serving()

    def run(self, run_loop: Callable[[], Any]) -> None:
        """Run `run_loop` until it has been drained and released; SystemExit if the program is to end with it."""
        try:
            try:
                with contextlib.suppress(*self.loop_end):
                    run_loop()
            finally:
                last = self.loop.report(LoopEvent.RETURN)
                self._replacements.put_back()
                self.detach()
                self.notify()
            if last in STOPPING or last is LoopState.HANDING_OVER:
                self.loop.wait_for_release()
        finally:
            self.on_stopped()
            self.loop.resources.close()
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and (last is LoopState.HANDING_OVER or signals.exit_code):
            raise SystemExit(signals.exit_code)
