"""Any other WSGI server: noticed at its first request, ended by SIGTERM.

Nothing is known of its sockets, so a stop can wait for requests only, not for connections, and the server goes on
accepting until it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..middleware import RequestCounter
from ..signals import signals


class UnknownServer:
    """A server that nobody told us of."""

    name = "unknown"
    embedded = False
    parent: int | None = None
    keeps_signal_handlers = True

    def __init__(self, environ: Mapping[str, Any], requests: RequestCounter) -> None:
        self.version = str(environ.get("SERVER_SOFTWARE", ""))
        self.listeners = [_url(environ)]
        self._requests = requests
        self._pid = os.getpid()

    def in_flight(self) -> int:
        return self._requests.in_flight

    def quiet(self) -> bool:
        return not self._requests.in_flight

    def drain(self, on_change: Callable[[], Any]) -> None:
        self._requests.on_done = on_change

    def close_idle(self) -> None:
        """Connections are out of reach."""

    def cut(self) -> int:
        return self._requests.in_flight

    def end(self) -> None:
        signals.exit_main()

    def obstacle(self) -> str | None:
        return "nothing is known of this HTTP server"

    def watch(self, on_change: Callable[[], Any]) -> None:
        self._requests.on_done = on_change

    def requests(self) -> frozenset[Any]:
        return frozenset()

    def answers_any(self, requests: frozenset[Any]) -> bool:
        return False

    def pause(self) -> None:
        """Its sockets are out of reach."""

    def resume(self) -> None:
        """Nothing was paused."""

    def paused(self) -> bool:
        return False

    def leave(self) -> None:
        """It is never replaced."""

    def hand_over(self) -> dict[str, Any]:
        return {}

    def is_serving_thread(self) -> bool:
        return False


def _url(environ: Mapping[str, Any]) -> str:
    host = environ.get("SERVER_NAME", "")
    host = f"[{host}]" if ":" in host else host
    return f"{environ.get('wsgi.url_scheme', 'http')}://{host}:{environ.get('SERVER_PORT', '')}"
