"""The states of a served app, and the only ways from one to another."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """The `state` of `status`. STOPPED is never shown: until the process ends, it is still stopping or reloading."""

    STARTING = "starting"
    RUNNING = "running"
    RELOADING = "reloading"
    STOPPING = "stopping"
    STOPPED = "stopped"


DRAINING = "draining"
"""Shown for RUNNING while a drain is in force, which is no state of its own: it outlasts a reload."""


class Event(enum.Enum):
    """What moves a served app from state to state."""

    SERVE = "the HTTP server begins to serve"
    RELOAD = "a reload is accepted"
    RETURN = "the reload has failed, and the old code goes on"
    STOP = "a stop is accepted"
    END = "the HTTP server has ended"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.SERVE): State.RUNNING,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.STARTING, Event.END): State.STOPPED,
    (State.RUNNING, Event.RELOAD): State.RELOADING,
    (State.RUNNING, Event.STOP): State.STOPPING,
    (State.RUNNING, Event.END): State.STOPPED,
    (State.RELOADING, Event.RETURN): State.RUNNING,
    (State.RELOADING, Event.STOP): State.STOPPING,
    (State.RELOADING, Event.END): State.STOPPED,
    (State.STOPPING, Event.SERVE): State.STOPPING,
    (State.STOPPING, Event.RETURN): State.STOPPING,
    (State.STOPPING, Event.END): State.STOPPED,
    (State.STOPPED, Event.RETURN): State.STOPPED,
    (State.STOPPED, Event.STOP): State.STOPPED,
}


class IllegalTransition(RuntimeError):
    """The event can't happen in that state."""


class Lifecycle:
    """One walk through TRANSITIONS."""

    def __init__(self) -> None:
        self.state = State.STARTING

    def advance(self, event: Event) -> State:
        """The state after `event`. Raises IllegalTransition, and stays, if the table has no way."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise IllegalTransition(f"{event.value}: not possible while {self.state.value}") from None
        return self.state
