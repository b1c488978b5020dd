"""Stops and reloads by signal: TERM, INT and HUP."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from ..system.signals import signals
from .stop import Mode, Stop


class SignalCommands:
    """Makes stops and reloads of the process's signals, from `begin` to `end`.

    The functions are called in the signal handler: `on_stop` for TERM and INT, `on_reload` for HUP, and after the stop
    for an INT `on_interrupt`. With `only_defaults` the program's own handlers stay.
    """

    def __init__(
        self,
        on_stop: Callable[[Mode, dict[str, Any]], Any],
        on_reload: Callable[[dict[str, Any]], Any],
        on_interrupt: Callable[[], Any],
        *,
        only_defaults: bool,
    ) -> None:
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._on_interrupt = on_interrupt
        self._only_defaults = only_defaults
        self._interrupts = 0

    def begin(self) -> None:
        """Take the signals over."""
        signals.install(only_defaults=self._only_defaults)
        signals.on_signal = self._on_signal

    def end(self) -> None:
        """Give them back, unless another instance has them."""
        if signals.on_signal == self._on_signal:
            signals.restore()

    def _on_signal(self, signum: int) -> None:
        by = {"signal": signal.Signals(signum).name}
        if signum == signal.SIGHUP:
            self._on_reload(by)
            return
        self._interrupts += signum == signal.SIGINT
        self._on_stop("fast" if self._interrupts > 1 else "graceful", by)
        if signum == signal.SIGINT:
            self._on_interrupt()


def tell_terminal(stop: Stop | None) -> None:
    """Print how many requests a graceful stop waits for, on a terminal."""
    if stop is None:
        return
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
