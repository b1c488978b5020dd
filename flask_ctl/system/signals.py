"""TERM and INT while an HTTP server serves, and the way to interrupt the main thread.

Signal handlers run in the main thread between two bytecodes, so what they call must take no lock: they hand over to the
control thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from .fork import Step, in_child
from .native import threading

Handler = Callable[[int, "FrameType | None"], Any]

STOPPING = (signal.SIGTERM, signal.SIGINT)
INTERRUPTION = getattr(signal, "SIGURG", None)
"""Interrupts a wait of the main thread, and does nothing else; what else sends it is ignored by default."""

logger = logging.getLogger("flask_ctl")


class Signals:
    """The process's handlers.

    `on_signal(signum)` is called for each TERM, INT and HUP that is handled here; without it, the previous handlers.
    """

    def __init__(self) -> None:
        self.on_signal: Callable[[int], Any] | None = None
        self.exit_code: Any = 0
        self._previous: dict[int, Any] = {}
        self._called: set[int] = set()
        self._interruption: Callable[[], Any] | None = None
        self._missed = MissedSignals()

    @property
    def exit_status(self) -> int:
        """The exit code as a number, converted as by `sys.exit`."""
        return self.exit_code if isinstance(self.exit_code, int) else int(self.exit_code is not None)

    @property
    def installed(self) -> bool:
        return signal.SIGTERM in self._previous

    def install(self, *, only_defaults: bool = False) -> None:
        """Replace the handlers of TERM and INT, once; only in the main thread. An ignored signal stays ignored.

        HUP is taken only where no terminal would send it, and where the program has no handler of its own. With
        `only_defaults` a handler that the program set for the others stays, too.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in STOPPING:
            self._replace(signum, keep_handlers=only_defaults)
        if not only_defaults and not _has_terminal():
            self._replace(signal.SIGHUP, keep_handlers=True)
        self._missed.begin()

    def tick(self) -> None:
        """In another thread, every few seconds: have a signal handled that the main thread has missed."""
        self._missed.tick()

    def restore(self) -> None:
        """Put back the previous handlers, unless replaced since; outside of the main thread only clear `on_signal`."""
        self.on_signal = None
        if threading.current_thread() is not threading.main_thread():
            return
        for signum, handler in self._previous.items():
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, handler)
        self._missed.end()
        self._previous.clear()
        self._called.clear()
        self._interruption = None

    def interrupt_main(self, interruption: Callable[[], Any]) -> None:
        """Call `interruption`, which may raise, in the main thread; without `install` that gets a plain SIGTERM."""
        self._interruption = interruption
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def exit_main(self) -> None:
        """Raise SystemExit in the main thread, with the exit code of the program's handler."""
        self.interrupt_main(lambda: sys.exit(self.exit_code))

    def _replace(self, signum: int, *, keep_handlers: bool) -> None:
        current = _kept.former(signum)
        foreign = current is None or current == signal.SIG_IGN or (keep_handlers and _is_handler(current))
        if not foreign and current != self._handle:
            signal.signal(signum, self._handle)
            self._previous[signum] = current

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            interruption()
            return
        if self.on_signal is None:
            self._act_as_before(signum, frame)
            return
        if signum not in self._called:
            self._called.add(signum)
            self._call_previous(signum, frame)
        self.on_signal(signum)

    def _call_previous(self, signum: int, frame: FrameType | None) -> None:
        handler = self._previous.get(signum)
        if handler is None or not _is_handler(handler):
            return
        try:
            handler(signum, frame)
        except SystemExit as request:
            self.exit_code = request.code
        except BaseException:
            # The program's handler was meant to end the server, so the stop goes on whatever it raised.
            logger.exception("the handler of %s failed; stopping all the same", signal.Signals(signum).name)

    def _act_as_before(self, signum: int, frame: FrameType | None) -> None:
        handler = self._previous.get(signum)
        if callable(handler):
            handler(signum, frame)
        elif handler == signal.SIG_DFL:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            if os.getpid() == 1:
                # It has no default actions: pid_namespaces(7).
                os._exit(128 + signum)


class MissedSignals:
    """Has the main thread call the handlers of signals that did not interrupt its wait.

    Python calls a handler in the main thread, between two bytecodes. A signal that arrives just before this thread
    begins to wait for a lock, or that the kernel gives to another thread, does not end the wait; a view that answers in
    the main thread may wait for hours. Python writes every signal to a descriptor at once (`signal.set_wakeup_fd`), so
    `tick`, in another thread, sees that there was one and interrupts the main thread. Does nothing if the program uses
    that descriptor or INTERRUPTION itself.
    """

    def __init__(self) -> None:
        # Kept until the process ends: another thread may read from it.
        self._pipe: tuple[int, int] | None = None
        self._begun = False
        self._again = False
        in_child(Step.DESCRIPTORS, self._close)

    def begin(self) -> None:
        """In the main thread; more than once is fine."""
        if self._begun or INTERRUPTION is None or signal.getsignal(INTERRUPTION) is not signal.SIG_DFL:
            return
        # Without a descriptor it is as it would be without this.
        with contextlib.suppress(OSError):
            if self._pipe is None:
                self._pipe = os.pipe()
                for descriptor in self._pipe:
                    os.set_blocking(descriptor, False)
            former = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            if former != -1:
                signal.set_wakeup_fd(former, warn_on_full_buffer=False)
                return
            signal.signal(INTERRUPTION, _do_nothing)
            self._begun = True

    def tick(self) -> None:
        """In another thread."""
        arrived = self._arrived()
        if arrived or self._again:
            # Twice, because the first one may itself come just before the wait.
            self._again = arrived
            assert INTERRUPTION is not None
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPTION)

    def end(self) -> None:
        """In the main thread; more than once is fine."""
        if not self._begun or self._pipe is None or INTERRUPTION is None:
            return
        self._begun = self._again = False
        current = signal.set_wakeup_fd(-1)
        if current != self._pipe[1]:
            signal.set_wakeup_fd(current, warn_on_full_buffer=False)
        if signal.getsignal(INTERRUPTION) is _do_nothing:
            signal.signal(INTERRUPTION, signal.SIG_DFL)

    def _arrived(self) -> bool:
        if not self._begun or self._pipe is None:
            return False
        try:
            return bool(set(os.read(self._pipe[0], 65536)) - {INTERRUPTION})
        except BlockingIOError:
            return False

    def _close(self) -> None:
        """In a forked child, after `end`."""
        pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)


def would_kill() -> bool:
    """Whether TERM ends the process at once, without atexit."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class KeptSignals:
    """TERM and INT for process 1 while new code is loaded.

    The kernel drops a signal for which process 1 has no handler, unless it is blocked: pid_namespaces(7). A mask would
    be that of the programs that the new code starts, too, so that this image notes the signals by a handler.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._noted: set[int] = set()

    def begin(self) -> None:
        """At the first import after the exec."""
        if os.getpid() == 1 and threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                self._former[signum] = signal.signal(signum, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def former(self, signum: int) -> Any:
        """The handler of the program, or Python's own."""
        current = signal.getsignal(signum)
        return self._former[signum] if current == self._note else current

    def end(self) -> None:
        """Have the signals that have come since the exec handled as those that come now."""
        if os.getpid() != 1:
            return
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signal.getsignal(signum) == self._note:
                    signal.signal(signum, self._former[signum])
            # Where `begin` was not called.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        noted, self._noted = self._noted, set()
        for number in noted:
            os.kill(os.getpid(), number)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted.add(signum)


_kept = KeptSignals()


def keep_for_next_image() -> None:
    """As process 1, have TERM and INT wait until the next image is there; to be called before an exec."""
    if os.getpid() == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


note_kept, accept_kept = _kept.begin, _kept.end


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Handles INTERRUPTION: that the wait was interrupted is enough."""


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which sends HUP when it closes (credentials(7))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _is_handler(handler: Any) -> bool:
    """Whether it is the program's own: neither SIG_DFL nor Python's handler for KeyboardInterrupt."""
    return callable(handler) and handler is not signal.default_int_handler


signals = Signals()
"""The handlers of this process."""

in_child(Step.SIGNALS, signals.restore)
