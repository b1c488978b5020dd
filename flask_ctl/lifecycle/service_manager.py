"""What the service manager is told of a server that is a service of it, such as a unit of systemd with Type=notify."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..system.activation import STORED
from ..system.notify_socket import NotifySocket
from .history import History
from .state import State

EXTENSION = 10.0
"""Seconds that a reload, and the drain of a stop, ask for at each tick: they take no longer than they were asked to."""

EXTENDS = {State.RELOADING, State.STOPPING}
"""The states in which the manager's time-outs run: TimeoutStartSec, to which systemd holds reloads, TimeoutStopSec."""


class ServiceManager:
    """Tells the manager when the server's state changes, in the order of the changes. Any thread may."""

    def __init__(self, sock: NotifySocket, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = sock
        self._history = history
        self._clock = clock
        self._state = State.STARTING
        self._status = ""
        self._stored = False

    def describe(self) -> dict[str, Any] | None:
        """The `service_manager` of `status`."""
        if not self._socket.is_there:
            return None
        return {"told_by": os.getpid(), "is_main": self._socket.is_main, "watchdog": self._socket.watchdog or None}

    def enter(self, state: State) -> None:
        """The server is in this state now."""
        if state is self._state:
            return
        self._state, self._status = state, self._describe(state)
        fields: dict[str, str | int] = {}
        if state is State.RUNNING:
            # The previous image may have had the watchdog wait longer.
            fields = {"READY": 1, **self._watchdog(0)}
        elif state is State.RELOADING:
            # Of one moment, in one datagram: systemd takes an older READY=1 for what it is by the clock.
            fields = {"RELOADING": 1, "MONOTONIC_USEC": _microseconds(self._clock())}
        elif state is State.STOPPING:
            fields = {"STOPPING": 1}
            if self._stored:
                # systemd would hold it open: connections after the stop would wait without an answer or a refusal.
                self._socket.send({"FDSTOREREMOVE": 1, "FDNAME": STORED})
        else:
            return
        if state in EXTENDS:
            fields["EXTEND_TIMEOUT_USEC"] = _microseconds(EXTENSION)
        self._socket.send({**fields, "STATUS": self._status})

    def store(self, descriptors: Sequence[int]) -> None:
        """Have the HTTP listener kept until a stop, so that clients wait for the process that comes after a crash."""
        if not self._socket.stores:
            return
        # A listener that a previous process has left there.
        self._socket.send({"FDSTOREREMOVE": 1, "FDNAME": STORED})
        if len(descriptors) == 1:
            # Without a descriptor to spare it is as without a store.
            with contextlib.suppress(OSError):
                self._socket.send({"FDSTORE": 1, "FDNAME": STORED}, descriptors[0])
                self._stored = True

    def tick(self, state: State, drains: bool) -> None:
        """Called every few seconds: have the time of a reload extended, and that of a stop while it `drains`.

        `state` is the one that `status` shows: a reload goes on after the end of the HTTP server.
        """
        self._socket.flush()
        status = self._describe(self._state)
        if status != self._status and self._state is not State.STOPPED:
            self._status = status
            self._socket.send({"STATUS": status})
        if state is State.RELOADING or drains:
            self._socket.send_now({"EXTEND_TIMEOUT_USEC": _microseconds(EXTENSION)})

    def leave(self, load_time: float) -> None:
        """This image is about to be replaced, and the next one may take so many seconds to load."""
        self._socket.send({"EXTEND_TIMEOUT_USEC": _microseconds(load_time + EXTENSION), **self._watchdog(load_time)})
        self._socket.close()

    def ping(self) -> None:
        """The server serves."""
        self._socket.send_now({"WATCHDOG": 1})

    def _watchdog(self, more: float) -> dict[str, str | int]:
        """A ping after which the watchdog waits for so many seconds more than the unit has it wait."""
        if not self._socket.watchdog:
            return {}
        return {"WATCHDOG_USEC": _microseconds(self._socket.watchdog + more), "WATCHDOG": 1}

    def _describe(self, state: State) -> str:
        reload: dict[str, Any] | None = self._history.last_reload
        if state is not State.RUNNING:
            return str(state.value)
        if reload is not None and not reload["ok"]:
            return f"{'draining, ' if self._history.drain else ''}reload refused: {reload['error']}"
        draining = "draining" if self._history.drain else "serving"
        return f"{draining}, generation {self._history.generation}"


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)
