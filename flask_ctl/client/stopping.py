"""Asking a server for its stop, and the next hub where one has died before the stop began."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..errors import NotRunning, TimedOut
from .connection import MAX_TRIES, Connection
from .stop import Progress, StopTimes, StopWaiter, Unanswered, kill_unreached
from .targets import targets_at, targets_of
from .trust import Trust


def stop_server(
    connect: Callable[[StopTimes], Connection],
    disconnect: Callable[[], Any],
    params: dict[str, Any],
    times: StopTimes,
    *,
    killed_at: tuple[str, Trust] | None,
    wait: bool,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """The result of a stop, or without `wait` its first progress.

    `killed_at` is the path of a server that is to be killed in the end. Raises like `ControlClient.stop`.
    """
    death: Unanswered | None = None
    asked: int | None = None
    for _ in range(MAX_TRIES):
        try:
            connection = connect(times)
        except NotRunning:
            if death is None or not death.sent:
                raise
            return death.outcome()
        except TimedOut:
            targets = None if killed_at is None else targets_at(*killed_at)
            if targets is None:
                raise
            with contextlib.closing(targets):
                return kill_unreached(targets, times.began)
        if death is not None and death.accepted:
            raise death
        with contextlib.closing(targets_of(connection)) as targets:
            if death is not None and death.sent and asked is not None and targets.pid not in (None, asked):
                # Another instance of the app listens at that path by now.
                return death.outcome()
            asked = targets.pid
            if killed_at is not None and targets.obstacle is not None and connection.peer_has_ended():
                # A hub that is about to end holds no lock any more.
                disconnect()
                continue
            call = StopWaiter(connection, targets, times, on_progress)
            try:
                call.ask(params)
                return call.until_gone() if wait else call.until_accepted()
            except Unanswered as error:
                death, times = error, call.times
                disconnect()
    raise death or TimedOut("the stop was not accepted")


def check_killable(path: str, trust: Trust) -> None:
    """Raises what would keep a server from being killed, as far as that can be known without connecting to it."""
    targets = targets_at(path, trust)
    if targets is not None:
        targets.close()
        if targets.obstacle is not None:
            raise targets.obstacle
