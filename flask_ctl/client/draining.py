"""The methods of `ControlClient` that begin and end a drain."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ..errors import ServerReloaded
from .methods import DEFAULT, Timeout

if TYPE_CHECKING:
    from .wait import Site

DRAIN_TIMEOUT = 60.0
"""Seconds for the app's hooks, and with `wait` for the requests in flight."""


class DrainMethods(ABC):
    """What tells load balancers whether to send requests."""

    @abstractmethod
    def _limit(self, timeout: Timeout, default: float | None) -> float | None:
        """The seconds of a call, None for no limit."""

    @abstractmethod
    def _site(self) -> Site:
        """What a `Waiter` needs."""

    @abstractmethod
    def call(self, name: str, /, *, timeout: Timeout = DEFAULT, **params: Any) -> Any:
        """The result of a command."""

    def drain(self, *, wait: bool = False, checks: int = 0, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """Have health checks fail (`Control.health`), so that load balancers send no more requests.

        Requests are still served. It holds for workers to come and over reloads, until `resume`, or the server's end.
        Returns when the app's `on_drain` functions have run: ``state``, ``pid``, ``changed`` (False for a server that
        was draining already, None if that is not known because a reload came between), ``in_flight`` (requests),
        ``failed_checks`` (health checks that were answered with 503), ``hooks_run`` (a number), ``hooks_failed``
        (texts) and ``unanswered``: ``worker`` (a pid) and ``error`` for each worker that has not confirmed it.

        With `wait` it returns when no request is in flight, too, and so many health `checks` have failed; then there is
        ``elapsed`` (seconds). Raises TimedOut if that is not so in time: the drain goes on; NotRunning if the server
        ends meanwhile.
        """
        deadline = self._deadline(timeout)
        result = self._set_draining("drain", deadline)
        if not (wait or checks) or result["unanswered"]:
            return result
        from .wait import Waiter

        waiter = Waiter(self._site(), None if deadline is None else max(0.0, deadline - time.monotonic()))
        reached = waiter.until_drained(checks)
        return {**result, **{name: reached[name] for name in ("state", "in_flight", "elapsed")}}

    def resume(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """End a drain: health checks pass again. The result is as that of `drain`, with the `on_ready` functions."""
        return self._set_draining("resume", self._deadline(timeout))

    def _deadline(self, timeout: Timeout) -> float | None:
        limit = self._limit(timeout, DRAIN_TIMEOUT)
        return None if limit is None else time.monotonic() + limit

    def _set_draining(self, command: str, deadline: float | None) -> dict[str, Any]:
        reloaded = False
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                result: dict[str, Any] = self.call(command, timeout=left)
            except ServerReloaded:
                # Whether it was done before the exec or not, the new code can be asked for it again.
                reloaded = True
            else:
                return {**result, "changed": None} if reloaded and not result["changed"] else result
