"""Which connections have begun a request, and which threads answer one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ..system.native import threading


class InFlight:
    """The busy connections of a server, each with the number of its request. Any thread may call its methods.

    The number tells a request from the next one of the same connection, which may begin before the answer to the first
    has been reported. `on_done` is called after every end of a request.
    """

    def __init__(self, on_done: Callable[[], Any]) -> None:
        self._on_done = on_done
        self._lock = threading.Lock()
        self._requests: dict[Any, int] = {}
        self._numbers = itertools.count()
        self._threads: set[int] = set()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, connection: Any) -> bool:
        return connection in self._requests

    def connections(self) -> list[Any]:
        """The busy connections."""
        with self._lock:
            return list(self._requests)

    def requests(self) -> frozenset[int]:
        """The numbers of the requests that have begun, and are not answered."""
        with self._lock:
            return frozenset(self._requests.values())

    def begin(self, connection: Any) -> None:
        """The connection has begun a request, or the next one."""
        with self._lock:
            self._requests[connection] = next(self._numbers)

    def request_of(self, connection: Any) -> int | None:
        """The number of the request that a busy connection has begun."""
        return self._requests.get(connection)

    def done(self, connection: Any, request: int | None = None) -> None:
        """The connection is idle or closed, unless it has begun another request than the given one."""
        with self._lock:
            if request is None or self._requests.get(connection) == request:
                self._requests.pop(connection, None)
        self._on_done()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around what a thread does for a request."""
        ident = threading.get_ident()
        self._threads.add(ident)
        try:
            yield
        finally:
            self._threads.discard(ident)

    def is_answered_by(self, ident: int | None) -> bool:
        """Whether the thread of that identifier answers a request. A signal handler may ask."""
        return ident in self._threads
