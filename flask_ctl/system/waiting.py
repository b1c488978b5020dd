"""Waiting for descriptors and for other threads, without gevent's patches."""

from __future__ import annotations

import contextlib
import os
import select
import sys

from . import native
from .fork import Step, in_child
from .native import threading


def wait_readable(descriptors: list[int], timeout: float | None) -> list[int]:
    """The descriptors that are readable or at their end, after at most `timeout` seconds (None: no limit)."""
    poll = native.select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(_milliseconds(timeout))]


def wait_writable(descriptor: int, timeout: float | None) -> bool:
    """Whether the descriptor is writable after at most `timeout` seconds."""
    poll = native.select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(_milliseconds(timeout)))


def _milliseconds(timeout: float | None) -> float | None:
    # poll(2) takes an int of whole milliseconds; 0 would not wait at all.
    if timeout is None or timeout <= 0:
        return None if timeout is None else 0
    return min(max(1.0, timeout * 1000), 2**31 - 1)


class Waker:
    """A descriptor that other threads and signal handlers make readable: eventfd(2), or a pipe."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)
        # No thread may write once `close` has released the number. Reentrant, because a signal handler may interrupt
        # `wake` in its own thread. Held only during one system call that does not block.
        self._lock = threading.RLock()
        in_child(Step.MEMORY, self._renew_lock)

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        """Make it readable; does nothing after `close`."""
        # Full means that it is readable already.
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._write >= 0:
                os.write(self._write, (1).to_bytes(8, sys.byteorder))

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """More than once is fine, also while another thread calls `wake`."""
        with self._lock:
            descriptors = {self._read, self._write} - {-1}
            self._read = self._write = -1
            for descriptor in descriptors:
                os.close(descriptor)

    def _renew_lock(self) -> None:
        """In a forked child, where the thread that may have held it does not exist."""
        self._lock = threading.RLock()


class NativeEvent:
    """A threading.Event for the thread of an event loop, which any native thread may set.

    In a program patched by gevent other greenlets go on while one waits; an unpatched Event would block all of them.
    """

    def __init__(self) -> None:
        self._waker = Waker()
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        # The waiting thread may have gone on already, and have closed it.
        with contextlib.suppress(OSError):
            self._waker.wake()

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        while not self._is_set:
            poll.poll()

    def close(self) -> None:
        self._waker.close()


class EagerSwitching:
    """A context with less waiting for the GIL, otherwise 5 ms per system call while other threads compute.

    The switch interval is global: of several threads inside the one that wants the shortest has it, and the last one
    restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[float] = []
        self._before = 0.0

    def __enter__(self) -> None:
        self.begin(EAGER_SWITCH_INTERVAL)

    def __exit__(self, *exc_info: object) -> None:
        self.end(EAGER_SWITCH_INTERVAL)

    def begin(self, interval: float) -> None:
        """Have threads switch after so many seconds, until `end`."""
        with self._lock:
            if not self._wanted:
                self._before = sys.getswitchinterval()
            self._wanted.append(interval)
            sys.setswitchinterval(min(self._wanted))

    def end(self, interval: float) -> None:
        """See `begin`."""
        with self._lock:
            self._wanted.remove(interval)
            sys.setswitchinterval(min(self._wanted, default=self._before))

    def abandon(self) -> None:
        """In a forked child, in which no thread is inside."""
        self._lock = threading.Lock()
        if self._wanted:
            self._wanted.clear()
            sys.setswitchinterval(self._before)


eager_switching = EagerSwitching()

in_child(Step.MEMORY, eager_switching.abandon)


EAGER_SWITCH_INTERVAL = 0.0001
"""Seconds after which a thread that waits for the GIL gets it, while a command is answered."""
