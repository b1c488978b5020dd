"""The least that a middleware which counts honestly has to do: what our own one is measured beside."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class MinimalCounter:
    """Knows the requests in flight, their age, and how many failed. One ends when its response is closed or lost."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self.in_flight: dict[int, float] = {}
        self.next = itertools.count().__next__
        self.next_failed = itertools.count().__next__

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> MinimalExchange:
        return MinimalExchange(self, environ, start_response)


class MinimalExchange:
    """One request and its response."""

    __slots__ = ("body", "counter", "server_start", "token")

    def __init__(self, counter: MinimalCounter, environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        self.counter = counter
        self.server_start = start_response
        self.token = token = counter.next()
        counter.in_flight[token] = time.monotonic()
        try:
            self.body = counter.app(environ, self.start_response)
        except BaseException:
            counter.next_failed()
            self.end()
            raise

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if status >= "5":
            self.counter.next_failed()
        return self.server_start(status, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)

    def close(self) -> None:
        try:
            if hasattr(self.body, "close"):
                self.body.close()
        finally:
            self.end()

    def end(self) -> None:
        self.counter.in_flight.pop(self.token, None)

    def __del__(self) -> None:
        self.end()
