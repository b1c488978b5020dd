"""A server that can be drained, paused and left to the next image of its process.

A connection is busy from the first byte of a request to the last of its response, and idle otherwise, before its first
request too. A stop waits for busy connections and closes idle ones; a reload leaves idle ones to the next image. Only
the thread of the server's own loop touches connections. Other threads change the state that is asked for and wake the
loop by a `Waker`; the loop then acts on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from ..system.native import socket, threading
from ..system.signals import signals
from ..system.sockets import refuse_new_connections, waiting_connections, welcome_connections
from ..system.waiting import NativeEvent, Waker, wait_readable
from .attributes import RELOAD, reason_of_loss
from .base import Host, HttpServer, WSGIApp
from .copies import ListenerCopies
from .hooks import LoopHooks, Replacements
from .inflight import InFlight
from .loop_state import DRAINING, STOPPING, LoopEvent, LoopState, next_state
from .urls import end_preflight


class KeepAliveServer(LoopHooks, HttpServer):
    """What the servers under control have in common; an adapter adds the `LoopHooks`.

    `bound` has the sockets that this process has bound, by the addresses that were asked for; `given` says that the
    program was given others, which outlive it.
    """

    package: str
    loop_end: tuple[type[BaseException], ...] = ()
    """What `_end_loop` raises."""
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
        super().__init__(version(self.package), listeners)
        in_main = threading.current_thread() is threading.main_thread()
        self.embedded = not in_main if embedded is None else embedded
        self.busy = InFlight(self.changed)
        self._bound = bound
        self._given = given
        self._tls = tls
        self._lock = threading.Lock()
        self._state = LoopState.SERVING
        """What is asked for; `_reached` is what the loop has done of that."""
        self._reached = LoopState.SERVING
        self._accepting = True
        self._copies = ListenerCopies()
        self._left_idle: list[int] = []
        self._replacements = Replacements()
        self._waker = Waker()
        self._released = NativeEvent()

    # What a stop and a reload ask for.

    def in_flight(self) -> int:
        return len(self.busy)

    def quiet(self) -> bool:
        return self._state is LoopState.ENDED

    def drain(self) -> None:
        self._report(LoopEvent.DRAIN)

    def close_idle(self) -> None:
        self._report(LoopEvent.CLOSE_IDLE)

    def cut(self) -> int:
        connections = self.busy.connections()
        for connection in connections:
            # Not the method of an SSLSocket, which would pull the TLS object from under its thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket_of(connection), socket.SHUT_RDWR)
        # At a reload the next image answers them.
        waiting = self._count_waiting() if self._state in STOPPING else 0
        self._report(LoopEvent.CUT)
        return len(connections) + waiting

    def _count_waiting(self) -> int:
        """Connections that a stop cuts though no request of theirs is being answered: those in the backlog."""
        # The loop may end at this moment, and close the listeners.
        with contextlib.suppress(OSError):
            return sum(map(waiting_connections, self._listening()))
        return 0

    def end(self) -> None:
        # The loop has ended by now, unless the stop has failed on its way.
        self._released.set()
        self._report(LoopEvent.END)

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

    def addresses(self) -> list[str]:
        return list(self._bound)

    def set_keep_alive(self, keep: bool) -> None:
        self._report(LoopEvent.KEEP_ALIVE if keep else LoopEvent.CLOSE_AFTER_ANSWER)

    def requests(self) -> frozenset[int]:
        return self.busy.requests()

    def answers_any(self, requests: frozenset[int]) -> bool:
        return not requests.isdisjoint(self.busy.requests())

    def pause(self) -> None:
        self._report(LoopEvent.PAUSE)

    def resume(self) -> None:
        self._report(LoopEvent.RESUME)

    def paused(self) -> bool:
        with self._lock:
            return self._state is self._reached is LoopState.PAUSED and not self.busy

    def prepare_hand_over(self) -> None:
        # Copies: the program closes its own while it unwinds.
        self._copies.make(self._bound)

    def discard_hand_over(self) -> int:
        return self._copies.discard()

    def leave(self) -> None:
        # The loop has ended before if a cut has taken it out of a request.
        self._released.set()
        self._report(LoopEvent.HAND_OVER)

    def hand_over(self) -> dict[str, Any]:
        return {"listeners": self._copies.detach(), "parked": self._left_idle}

    def is_serving_thread(self) -> bool:
        return self.busy.is_answered_by(threading.get_ident())

    # What the adapters' own connections ask and report.

    @property
    def closing(self) -> bool:
        """Whether an answer that begins now is to be the last of its connection."""
        return self._state is not LoopState.SERVING

    @property
    def holding(self) -> bool:
        """Whether idle connections are not to be read now."""
        return self._reached is LoopState.PAUSED

    def changed(self) -> None:
        """A connection has come, is done or closed, which a drain or a reload may wait for."""
        self.notify()
        if self._state in STOPPING:
            self._waker.wake()

    # What the thread of the loop does.

    def serve(self, host: Host, wsgi_app: WSGIApp, loop: Callable[[], Any]) -> None:
        """Run `loop`, under control if it serves an app that is; after a drain, return or exit only at `end`."""
        end_preflight(host.check_settings)
        if self.open(host, wsgi_app):
            self.run(loop)
        else:
            loop()

    def open(self, host: Host, wsgi_app: WSGIApp) -> bool:
        """Put the server under control; False if it serves no app that is to be."""
        registered = False
        try:
            registered = host.register(self, wsgi_app)
        finally:
            if not registered:
                self._close_wakers()
        if registered:
            self.start()
        return registered

    def start(self) -> None:
        """The loop is about to run under control."""
        for listener in self._listening():
            welcome_connections(listener)
        self._attach()
        self.on_serving()

    def run(self, loop: Callable[[], Any]) -> None:
        """Run `loop` until it has been drained and released; SystemExit if the program is to end with it."""
        try:
            last = self._run(loop)
        finally:
            self.on_stopped()
            self._close_wakers()
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and (last is LoopState.HANDING_OVER or signals.exit_code):
            raise SystemExit(signals.exit_code)

    def _run(self, loop: Callable[[], Any]) -> LoopState:
        """The state in which the loop has ended."""
        try:
            with contextlib.suppress(*self.loop_end):
                loop()
        finally:
            last = self._report(LoopEvent.RETURN)
            self._replacements.put_back()
            self._detach()
            self.notify()
        if last in STOPPING or last is LoopState.HANDING_OVER:
            self._released.wait()
        return last

    def _close_wakers(self) -> None:
        self._waker.close()
        self._released.close()

    def _report(self, event: LoopEvent) -> LoopState:
        """From any thread: have the loop act on an event, soon. Returns the state before."""
        with self._lock:
            before, self._state = self._state, next_state(self._state, event)
        self._waker.wake()
        return before

    def _look(self) -> None:
        """On the loop's thread, woken: do what is asked for."""
        state = self._enter_state()
        if state is LoopState.HANDING_OVER:
            # Detached, so that the program does not close them while it unwinds.
            self._left_idle += [self._give_up(connection) for connection in list(self._idle())]
            self._end_loop()
        elif state is LoopState.ENDING:
            self._end_loop()
        elif state in DRAINING:
            if state is LoopState.DRAINING_BUSY:
                self._close_idle()
            if not (self.busy or self._idle() or self._backlog_waits()):
                self._end_loop()

    def _enter_state(self) -> LoopState:
        """The state that is asked for, with what its beginning takes done."""
        with self._lock:
            state, before = self._state, self._reached
            # Before anything is let in again: `paused` must not be true meanwhile, if another pause is asked for.
            if state is not LoopState.PAUSED:
                self._reached = state
        if state is before:
            return state
        if before is LoopState.PAUSED and state not in (LoopState.HANDING_OVER, LoopState.ENDING):
            self._resume()
        if state is LoopState.PAUSED:
            self._quiesce()
            self._reached = state
        elif state in DRAINING and before not in DRAINING:
            self._accept_last()
        self.notify()
        return state

    def _quiesce(self) -> None:
        self._accept(False)

    def _resume(self) -> None:
        self._accept(True)

    def _accept(self, accept: bool) -> None:
        self._accepting = accept
        self._set_accepting(accept)

    def _accept_last(self) -> None:
        """Accept the connections that are established already, and no other."""
        # A socket that was given may be given to another program: nothing that outlives this process is done to it.
        refused = [not self._given and refuse_new_connections(listener) for listener in self._listening()]
        if not all(refused):
            self._accept_waiting()
            self._accept(False)

    def _close_idle(self) -> None:
        idle = {self._socket_of(connection).fileno(): connection for connection in self._idle()}
        for descriptor in set(idle) - set(wait_readable(list(idle), 0)):
            self._close(idle[descriptor])

    def _backlog_waits(self) -> bool:
        return self._accepting and bool(wait_readable([listener.fileno() for listener in self._listening()], 0))
