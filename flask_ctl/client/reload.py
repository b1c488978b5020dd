"""The client's side of a reload whose hub is killed: the result comes from the `status` of the next hub."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import CommandError, ControlError, NotRunning, ServerDied, TimedOut

NEXT_HUB_TIMEOUT = 5.0
"""Seconds for the next hub to report the result of the reload."""

INTERVAL = 0.1
"""Seconds between two requests."""


class HubEnded(ControlError):
    """The hub has ended before it answered; the server goes on."""


class ReloadWaiter:
    """Finds the result of a reload during which the hub ended. Created before the reload is requested."""

    def __init__(self, status: Callable[..., dict[str, Any]]) -> None:
        """`status` is that of the client. Raises ControlError as it does, TimedOut excepted."""
        self._status = status
        try:
            self._before: dict[str, Any] | None = status()
        except TimedOut:
            # The reload may be meant to mend just that.
            self._before = None

    def result(self, ended: HubEnded, limit: float | None) -> dict[str, Any]:
        """The result of the reload.

        Raises CommandError if it has failed, ServerDied if the server has, ControlError if the next hub does not tell
        within NEXT_HUB_TIMEOUT, or within `limit` seconds.
        """
        deadline = time.monotonic() + min(NEXT_HUB_TIMEOUT, NEXT_HUB_TIMEOUT if limit is None else limit)
        while (left := deadline - time.monotonic()) > 0:
            try:
                status = self._status(timeout=left)
            except NotRunning as error:
                raise ServerDied(f"the server died during the reload: {error.message}") from None
            except TimedOut:
                break
            if status["state"] != "reloading" and self._before is not None:
                last = status["last_reload"]
                if last is not None and last != self._before["last_reload"]:
                    return _result(status, last)
                if self._is_unchanged(status):
                    raise ControlError(f"{ended.message}; the reload had not begun, and the old code serves")
            time.sleep(min(INTERVAL, max(0.0, deadline - time.monotonic())))
        raise ControlError(
            f"{ended.message}; the outcome is not known: the reload may go on, and status tells how it ends",
            {"may_have_run": True},
        )

    def _is_unchanged(self, status: dict[str, Any]) -> bool:
        """Whether exactly the workers from before the reload still serve."""
        assert self._before is not None
        before, now = ({worker["pid"] for worker in one["workers"]} for one in (self._before, status))
        return bool(now) and before == now


def _result(status: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    if not last["ok"]:
        raise CommandError(last["error"])
    old = sum(worker["generation"] < status["generation"] for worker in status["workers"])
    result = {"cut": last.get("cut", 0), "elapsed": last["elapsed"]}
    result |= {name: last[name] for name in ("cut_requests",) if name in last}
    result |= {name: value for name, value in status.items() if name in ("generation", "pid", "directory")}
    return {**result, "old_left": old} if old else result
