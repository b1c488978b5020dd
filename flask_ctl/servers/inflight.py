"""Which connections have begun a request, and which request: the same connection may have another one soon."""

from __future__ import annotations

import itertools
from typing import Any

from ..system.native import threading


class Busy:
    """The busy connections of a server. Any thread may ask, and several tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[Any, int] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, connection: Any) -> bool:
        return connection in self._requests

    def connections(self) -> list[Any]:
        with self._lock:
            return list(self._requests)

    def requests(self) -> frozenset[int]:
        """The numbers of the requests that have been begun, and not answered."""
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
