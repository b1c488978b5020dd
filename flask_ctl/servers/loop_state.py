"""The states of a server's loop, and the only ways from one to another."""

from __future__ import annotations

import enum


class LoopState(enum.Enum):
    """What the loop does, or is to do as soon as it has been woken."""

    SERVING = "accepts connections, and keeps them open after an answer"
    CLOSING = "serves, but each answer is the last of its connection"
    PAUSED = "lets new connections and requests wait, and answers those in flight"
    HANDING_OVER = "ends, and leaves the idle connections to the next image of the process"
    DRAINING = "refuses new connections, and waits for the others"
    DRAINING_BUSY = "refuses new connections, closes idle ones, and waits for the busy ones"
    ENDING = "ends, whatever is in flight"
    ENDED = "has returned"


class LoopEvent(enum.Enum):
    """What a stop, a reload or the loop itself reports."""

    KEEP_ALIVE = "connections may have another request after an answer"
    CLOSE_AFTER_ANSWER = "each answer is to be the last of its connection"
    PAUSE = "new requests are to wait"
    RESUME = "new requests are to be answered again"
    HAND_OVER = "the next image is to have the connections"
    DRAIN = "a stop has begun"
    CLOSE_IDLE = "idle connections have had their time"
    CUT = "the time for requests in flight is over"
    END = "the server is to end"
    RETURN = "the loop has returned"


S, E = LoopState, LoopEvent

TRANSITIONS: dict[LoopState, dict[LoopEvent, LoopState]] = {
    S.SERVING: {
        E.CLOSE_AFTER_ANSWER: S.CLOSING, E.PAUSE: S.PAUSED, E.HAND_OVER: S.HANDING_OVER,
        E.DRAIN: S.DRAINING, E.END: S.ENDING, E.RETURN: S.ENDED,
    },
    S.CLOSING: {
        E.KEEP_ALIVE: S.SERVING, E.PAUSE: S.PAUSED, E.HAND_OVER: S.HANDING_OVER,
        E.DRAIN: S.DRAINING, E.END: S.ENDING, E.RETURN: S.ENDED,
    },
    # Only a reload pauses, and it has closed connections after answers before.
    S.PAUSED: {
        E.RESUME: S.CLOSING, E.HAND_OVER: S.HANDING_OVER, E.DRAIN: S.DRAINING, E.END: S.ENDING, E.RETURN: S.ENDED,
    },
    S.HANDING_OVER: {E.RETURN: S.ENDED},
    S.DRAINING: {E.CLOSE_IDLE: S.DRAINING_BUSY, E.CUT: S.ENDING, E.END: S.ENDING, E.RETURN: S.ENDED},
    S.DRAINING_BUSY: {E.CUT: S.ENDING, E.END: S.ENDING, E.RETURN: S.ENDED},
    S.ENDING: {E.RETURN: S.ENDED},
    S.ENDED: {},
}  # fmt: skip
"""An event that a state has no entry for changes nothing."""

SERVING = frozenset({S.SERVING, S.CLOSING, S.PAUSED})
DRAINING = frozenset({S.DRAINING, S.DRAINING_BUSY})
STOPPING = DRAINING | {S.ENDING}


def next_state(state: LoopState, event: LoopEvent) -> LoopState:
    """The state after `event`."""
    return TRANSITIONS[state].get(event, state)
