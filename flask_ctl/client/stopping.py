"""Asking a server for its stop, and the next hub where one has died before the stop began."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..errors import NotRunning, TimedOut
from ..system.supervisor import starts_again
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
    tell: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """The result of a stop, or without `wait` its first progress.

    `killed_at` is the path of a server that is to be killed in the end. `tell` has the server's supervisor stop it,
    once everything else is ready, or raises; this stop then joins that of the supervisor. Raises like
    `ControlClient.stop`.
    """
    death: Unanswered | None = None
    asked: int | None = None
    told = False
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
            call = StopWaiter(connection, targets, times, on_progress, told=tell is not None)
            try:
                if tell is not None and not told:
                    # So that it answers, however soon after the supervisor's signal it ends.
                    call.ask({**params, "begin": False, "_progress": False})
                    tell()
                    told = True
                call.ask(params)
                return call.until_gone() if wait else call.until_accepted()
            except Unanswered as error:
                if told and call.ends_unanswered():
                    return call.outcome_unknown()
                death, times = error, call.times
                disconnect()
    raise death or TimedOut("the stop was not accepted")


def with_supervisor(result: dict[str, Any], known: dict[str, Any], *, told: bool) -> dict[str, Any]:
    """The result with whether the server is started again; `known` has the ``supervisor`` with its policy, or nothing.

    `told` means that it was told to keep the server down.
    """
    result = {**result, **known}
    if "supervisor" not in result:
        return result
    if told:
        return {**result, "starts_again": False, "for_good": True}
    # With sockets of systemd's the next connection starts it, whatever the policy.
    again = bool(result.get("activated")) or starts_again(result["supervisor"], result.get("outcome", "drained"))
    if again is False and result["supervisor"] and "sockets" in result["supervisor"]:
        # They may not be active.
        again = None
    return {**result, "starts_again": again}


def check_killable(path: str, trust: Trust) -> None:
    """Raises what would keep a server from being killed, as far as that can be known without connecting to it."""
    targets = targets_at(path, trust)
    if targets is not None:
        targets.close()
        if targets.obstacle is not None:
            raise targets.obstacle
