"""TERM and INT while an HTTP server serves, and the way to interrupt the main thread.

Signal handlers run in the main thread between two bytecodes, so what they call must take no lock: they hand over to the
control thread.
"""

from __future__ import annotations

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

    def restore(self) -> None:
        """Put back the previous handlers, unless replaced since; outside of the main thread only clear `on_signal`."""
        self.on_signal = None
        if threading.current_thread() is not threading.main_thread():
            return
        for signum, handler in self._previous.items():
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, handler)
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
        current = signal.getsignal(signum)
        foreign = current is None or current == signal.SIG_IGN or (keep_handlers and _is_handler(current))
        if not foreign and current != self._handle:
            self._previous[signum] = signal.signal(signum, self._handle)

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


def would_kill() -> bool:
    """Whether TERM ends the process at once, without atexit."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
