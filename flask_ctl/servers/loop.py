"""What the thread of a server's loop does when a stop or a reload asks for something."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..system.native import threading
from ..system.sockets import refuse_new_connections
from ..system.waiting import NativeEvent, Waker, wait_readable
from .hooks import LoopHooks
from .inflight import InFlight
from .loop_state import DRAINING, STOPPING, LoopEvent, LoopState, next_state


class ServerLoop:
    """The loop of a server under control. Any thread reports an event, which wakes the loop; it then calls `look`.

    `on_change` is called when something has changed that a stop or a reload may wait for. `given` says that the
    listening sockets outlive the process.
    """

    def __init__(self, hooks: LoopHooks, on_change: Callable[[], Any], *, given: bool) -> None:
        self.busy = InFlight(self.changed)
        self.waker = Waker()
        self.state = LoopState.SERVING
        """What is asked for; `_reached` is what the loop has done of that."""
        self.accepting = True
        self.left_idle: list[int] = []
        """The descriptors of the idle connections that go to the next image."""
        self._hooks = hooks
        self._on_change = on_change
        self._given = given
        self._lock = threading.Lock()
        self._reached = LoopState.SERVING
        self._released = NativeEvent()
        self.resources = contextlib.ExitStack()
        """What is closed when the loop has ended, or does not come under control."""
        self.resources.callback(self.waker.close)
        self.resources.callback(self._released.close)

    def report(self, event: LoopEvent) -> LoopState:
        """From any thread: have the loop act on an event, soon. Returns the state before."""
        with self._lock:
            before, self.state = self.state, next_state(self.state, event)
        self.waker.wake()
        return before

    def release(self, event: LoopEvent) -> None:
        """Report an event after which the program may go on once the loop has returned."""
        self._released.set()
        self.report(event)

    def wait_for_release(self) -> None:
        """After the loop has returned: wait for `release`."""
        self._released.wait()

    def has_paused(self) -> bool:
        """Whether the loop has done what PAUSE asks for, and no request is in flight."""
        with self._lock:
            return self.state is self._reached is LoopState.PAUSED and not self.busy

    @property
    def closing(self) -> bool:
        """Whether an answer that begins now is to be the last of its connection."""
        return self.state is not LoopState.SERVING

    @property
    def holding(self) -> bool:
        """Whether idle connections are not to be read now."""
        return self._reached is LoopState.PAUSED

    def changed(self) -> None:
        """A connection has come, is done or closed, which a drain or a reload may wait for."""
        self._on_change()
        if self.state in STOPPING:
            self.waker.wake()

    def look(self) -> None:
        """On the loop's thread, woken: do what is asked for."""
        state, hooks = self._enter_state(), self._hooks
        if state is LoopState.HANDING_OVER:
            # Detached, so that the program does not close them while it unwinds.
            self.left_idle += [hooks.give_up(connection) for connection in list(hooks.idle())]
            hooks.end_loop()
        elif state is LoopState.ENDING:
            hooks.end_loop()
        elif state in DRAINING:
            if state is LoopState.DRAINING_BUSY:
                self._close_idle()
            if not (self.busy or hooks.idle() or self._backlog_waits()):
                hooks.end_loop()

    def _enter_state(self) -> LoopState:
        """The state that is asked for, with what its beginning takes done."""
        with self._lock:
            state, before = self.state, self._reached
            # Before anything is let in again: `has_paused` must not be true meanwhile, if another pause is asked for.
            if state is not LoopState.PAUSED:
                self._reached = state
        if state is before:
            return state
        if before is LoopState.PAUSED and state not in (LoopState.HANDING_OVER, LoopState.ENDING):
            self._hooks.set_reading(True)
            self._accept(True)
        if state is LoopState.PAUSED:
            self._hooks.set_reading(False)
            self._accept(False)
            self._reached = state
        elif state in DRAINING and before not in DRAINING:
            self._accept_last()
        self._on_change()
        return state

    def _accept(self, accept: bool) -> None:
        self.accepting = accept
        self._hooks.set_accepting(accept)

    def _accept_last(self) -> None:
        """Accept the connections that are established already, and no other."""
        # A socket that was given may be given to another program: nothing that outlives this process is done to it.
        refused = [not self._given and refuse_new_connections(listener) for listener in self._hooks.listening()]
        if not all(refused):
            self._hooks.accept_waiting()
            self._accept(False)

    def _close_idle(self) -> None:
        idle = {self._hooks.socket_of(connection).fileno(): connection for connection in self._hooks.idle()}
        for descriptor in set(idle) - set(wait_readable(list(idle), 0)):
            self._hooks.close_connection(idle[descriptor])

    def _backlog_waits(self) -> bool:
        return self.accepting and bool(wait_readable([listener.fileno() for listener in self._hooks.listening()], 0))
