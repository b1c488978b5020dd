"""What TERM, INT and HUP ask of an instance."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

from ..system.signals import signals
from .stop import Mode, Stop


class Commanded(Protocol):
    """The instance, as far as signals go."""

    @property
    def keeps_signal_handlers(self) -> bool: ...

    def request_stop(self, mode: Mode, by: dict[str, Any]) -> None: ...

    def request_reload(self, by: dict[str, Any]) -> None: ...

    def tell_soon(self, tell: Callable[[Stop], Any]) -> None: ...


class SignalCommands:
    """Hands the process's signals to one instance, while it serves."""

    def __init__(self, instance: Commanded) -> None:
        self._instance = instance
        self._interrupts = 0

    def begin(self) -> None:
        """Take the signals over."""
        signals.install(only_defaults=self._instance.keeps_signal_handlers)
        signals.on_signal = self._on_signal

    def end(self) -> None:
        """Give them back, unless another instance has them."""
        if signals.on_signal == self._on_signal:
            signals.restore()

    def _on_signal(self, signum: int) -> None:
        by = {"signal": signal.Signals(signum).name}
        if signum == signal.SIGHUP:
            self._instance.request_reload(by)
            return
        self._interrupts += signum == signal.SIGINT
        self._instance.request_stop("fast" if self._interrupts > 1 else "graceful", by)
        if signum == signal.SIGINT:
            self._instance.tell_soon(_tell_terminal)


def _tell_terminal(stop: Stop) -> None:
    fields = stop.progress()
    if stop.mode != "graceful" or not fields["in_flight"]:
        return
    # The program may have put anything in its place.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if sys.stderr.isatty():
            print(
                f"\nWaiting for {fields['in_flight']} in flight, {fields['remaining']:.0f} s at most;"
                " press Ctrl-C again to cut them.",
                file=sys.stderr,
            )
