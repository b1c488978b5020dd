"""Any other WSGI server: noticed at its first request, and ended by SystemExit in the main thread.

Its sockets are out of reach, so a stop waits for requests only, not for connections, and the server accepts until it
ends.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from ..system.native import threading
from ..system.signals import signals
from .base import HttpServer
from .middleware import RequestCounter
from .urls import url

RETRY_INTERVAL = 0.02
"""Seconds between two tries to find the main thread outside a request."""

PATIENCE = 1.0
"""Seconds in which a server that has swallowed the SystemExit would begin another request."""


class UnknownServer(HttpServer):
    """A server without an adapter."""

    name = "unknown"
    keeps_signal_handlers = True

    def __init__(self, environ: Mapping[str, Any], requests: RequestCounter) -> None:
        address = environ.get("SERVER_NAME", ""), environ.get("SERVER_PORT", "")
        where = url(address, environ.get("wsgi.url_scheme", "http"))
        super().__init__(str(environ.get("SERVER_SOFTWARE", "")), [where])
        self._requests = requests
        self._left = threading.Event()
        requests.on_done = lambda: self.notify()

    def in_flight(self) -> int:
        return self._requests.in_flight

    def quiet(self) -> bool:
        return not self._requests.in_flight

    def cut(self) -> int:
        return self._requests.in_flight

    def end(self) -> None:
        if not signals.installed:
            signals.exit_main()
            return
        # A server may take the SystemExit for an error of the app; another request shows that it has done so.
        self._requests.on_first = lambda environ: self._left.clear()
        while True:
            signals.interrupt_main(self._leave)
            self._left.wait(RETRY_INTERVAL)
            if self._left.is_set() and not self._serves_on():
                return

    def _leave(self) -> None:
        """In the main thread, between requests: unwind it."""
        if not self._requests.in_flight and not _handles_request():
            self._left.set()
            sys.exit(signals.exit_code)

    def _serves_on(self) -> bool:
        threading.Event().wait(PATIENCE)
        return not self._left.is_set()


def _handles_request() -> bool:
    """Whether wsgiref's handler is on the stack, which swallows exceptions even around the app."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "wsgiref.handlers":
            return True
        frame = frame.f_back
    return False
