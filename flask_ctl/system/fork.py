"""What a forked child does before anything else, in one order.

A child of fork(2) has copies of the parent's descriptors, locks and signal handlers, and only the thread that called
fork. So it puts the handlers back, replaces what another thread may have held, and closes its copies of descriptors:
the parent's sockets and locks stay as they are. This is the only caller of `os.register_at_fork`.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import types
import weakref
from collections.abc import Callable
from typing import Any


class Step(enum.IntEnum):
    """When a call is made in the child; within a step the calls are made in the order of their registration."""

    SIGNALS = 0
    """Signal handlers are put back: a signal that the child gets before is the parent's business."""

    MEMORY = 1
    """Locks and queues that another thread may hold are replaced; lists of what only the parent has are emptied."""

    DESCRIPTORS = 2
    """Copies of descriptors are closed, which takes some of the locks."""


_calls: dict[Step, dict[int, tuple[weakref.ref[Any] | None, Callable[..., Any]]]] = {step: {} for step in Step}
"""By the number of their registration: the object of a method, and the function."""

_numbers = itertools.count()


def in_child(step: Step, call: Callable[[], Any]) -> None:
    """Have `call` called in every forked child. A method does not keep its object alive. Any thread may register."""
    calls, number = _calls[step], next(_numbers)
    if isinstance(call, types.MethodType):
        # Not a WeakMethod, which may fail at the interpreter's end (in its callback).
        calls[number] = weakref.ref(call.__self__, lambda _: calls.pop(number, None)), call.__func__
    else:
        calls[number] = None, call


def _after_fork() -> None:
    # The stack makes every call, whatever the others raise. It goes backwards.
    with contextlib.ExitStack() as stack:
        for step in reversed(Step):
            for reference, function in reversed(list(_calls[step].values())):
                if reference is None:
                    stack.callback(function)
                elif (owner := reference()) is not None:
                    stack.callback(function, owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
