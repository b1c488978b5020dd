"""The client's side of `wait`: watch the instance at an address until it is in the state that is waited for.

An instance is one process, by its pid and its start time. Another instance that has come to the same address is not the
one that is waited for, except by ``ready``, which waits for any.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from ..errors import (
    AccessDenied,
    AmbiguousTarget,
    ConfigurationError,
    ControlError,
    LocalProtocolError,
    NotRunning,
    ServerDied,
    TimedOut,
    WrongScheme,
)
from ..system.processes import inner_pid, parent_of, start_time
from .connection import Connection
from .stop import HUB_MARGIN, elapsed_since, wait_for_end
from .targets import Targets, targets_at, targets_of
from .trust import Trust

Condition = Literal["ready", "gone", "drained", "idle", "generation"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

QUESTION_TIMEOUT = 5.0
"""Seconds for one answer, so that a server which hangs is asked again."""

INTERVAL, MAX_INTERVAL = 0.02, 0.25
"""Seconds between two questions: at first, and at the most."""

START_TOLERANCE = 1.0
"""Seconds by which two answers may differ in when an instance started: each hub computes it from its master's age."""

FINAL = (ConfigurationError, LocalProtocolError, AccessDenied, WrongScheme)
"""Errors that do not go away by waiting."""

Status = dict[str, Any]


class Site(NamedTuple):
    """What a `Waiter` needs of a client; the numbers are timeouts in seconds, `path` is None without a socket here."""

    connect: Callable[[float], Connection]
    disconnect: Callable[[], Any]
    status: Callable[[float], Status]
    path: Callable[[], str | None]
    trust: Trust


class InstanceId(NamedTuple):
    """What tells two instances apart: the pid, and the start as the server tells it, or in the kernel's clock ticks."""

    pid: int
    started: float | None = None
    ticks: int | None = None

    @classmethod
    def of(cls, status: Status) -> InstanceId:
        """The identity that a server reports."""
        from datetime import datetime

        # Python 3.10 does not know the Z.
        started = datetime.fromisoformat(status["started_at"].replace("Z", "+00:00"))
        return cls(status["pid"], started.timestamp())

    def is_same(self, other: InstanceId) -> bool:
        """Whether nothing that is known of both differs."""
        if self.pid != other.pid or (None not in (self.ticks, other.ticks) and self.ticks != other.ticks):
            return False
        if self.started is None or other.started is None:
            return True
        return abs(self.started - other.started) <= START_TOLERANCE


class Waiter:
    """One `wait` with a deadline. With `pid` the instance is the process of that pid, and no other one.

    Raises TimedOut if the instance runs, but is not as wanted in time; NotRunning if it does not run, or has ended.
    """

    def __init__(self, site: Site, timeout: float | None, pid: int | None = None) -> None:
        self._site = site
        self._began = time.monotonic()
        self._deadline = math.inf if timeout is None else self._began + timeout
        self._within = f"after {round(timeout, 1):g} s" if timeout is not None else ""
        self._pid = pid

    def until(self, condition: Condition, generation: int | None = None) -> dict[str, Any]:
        """The result, once the condition holds."""
        if condition == "ready":
            return self.until_ready()
        return self.until_gone() if condition == "gone" else self._until(condition, generation)

    def until_ready(self, other_than: InstanceId | None = None) -> dict[str, Any]:
        """The instance serves; it may start meanwhile. With `other_than` it has to be another one."""

        def obstacle(status: Status) -> str:
            if other_than is not None and other_than.is_same(InstanceId.of(status)):
                return "it is still the instance from before"
            return self._wrong_pid(status) or ("" if status["state"] == "running" else f"it is {status['state']}")

        last: ControlError | None = None
        pause = INTERVAL
        while True:
            seconds = self._question_timeout()
            try:
                status = self._site.status(seconds)
            except FINAL:
                raise
            except ServerDied as error:
                last = NotRunning(error.message)
            except TimedOut as error:
                last = _last(error, last, seconds)
            except ControlError as error:
                last = error
            else:
                if not (why := obstacle(status)):
                    return self._result("ready", status)
                last = self._not_yet(status, "ready", why)
            if time.monotonic() >= self._deadline:
                raise last
            pause = self._pause(pause)

    def _until(self, condition: Condition, generation: int | None = None, failed_checks: int = 0) -> dict[str, Any]:
        """The instance is ``drained``, ``idle``, or of that `generation` or a later one."""
        name = f"generation {generation}" if condition == "generation" else condition
        known: InstanceId | None = None
        last: ControlError | None = None
        pause = INTERVAL
        while True:
            seconds = self._question_timeout()
            try:
                status = self._site.status(seconds)
            except (NotRunning, ServerDied) as error:
                if known is None and isinstance(error, NotRunning):
                    raise
                raise _ended(known, error.message) from None
            except TimedOut as error:
                # A new image may still load, or the process is suspended.
                last = _last(error, last, seconds)
            else:
                if why := self._wrong_pid(status):
                    raise NotRunning(why)
                known = known or InstanceId.of(status)
                if not known.is_same(InstanceId.of(status)):
                    raise _ended(known, f"another instance, pid {status['pid']}, serves there")
                if not (why := _what_lacks(status, condition, generation, failed_checks)):
                    return self._result(name, status)
                last = self._not_yet(status, name, why)
            if time.monotonic() >= self._deadline:
                raise last
            pause = self._pause(pause)

    def until_drained(self, failed_checks: int) -> dict[str, Any]:
        """The instance is ``drained``, and so many health checks have failed."""
        return self._until("drained", failed_checks=failed_checks)

    def until_gone(self) -> dict[str, Any]:
        """The process of the instance has ended, whatever has come in its place; also if nothing runs there.

        ``proof`` is ``process`` if the kernel has reported the end, ``absence`` if nothing serves at the address, and
        ``other`` if another instance does.
        """
        asked = None if self._pid is None else InstanceId(self._pid)
        while True:
            connection: Connection | None = None
            targets: Targets | None = None
            silent: TimedOut | None = None
            try:
                connection = self._site.connect(self._question_timeout())
                targets = targets_of(connection)
            except NotRunning:
                return self._gone(asked, "absence")
            except AmbiguousTarget as error:
                if not error.none_matches:
                    raise
                return self._gone(asked, "absence")
            except TimedOut as error:
                silent = error
                # A process that accepts no connections still holds the lock of its socket.
                path = self._site.path()
                targets = None if path is None else targets_at(path, self._site.trust)
            if targets is not None:
                with contextlib.closing(targets), contextlib.suppress(NotRunning, ServerDied):
                    try:
                        found = self._identify(targets)
                    except TimedOut as error:
                        silent = error
                    else:
                        if asked is not None and not asked.is_same(found):
                            return self._gone(asked, "other")
                        asked = found
                        if not self._wait_for_end(targets, connection):
                            raise self._overdue(found.pid)
                        if targets.server and targets.obstacle is None:
                            return self._gone(asked, "process")
            # A hub may have been killed, or the connection closed: the same instance may still be there.
            self._site.disconnect()
            self._pause(INTERVAL)
            if time.monotonic() >= self._deadline:
                if silent is not None:
                    raise silent
                if asked is not None:
                    raise self._overdue(asked.pid)

    def _identify(self, targets: Targets) -> InstanceId:
        """The instance that was found, from the kernel if possible: a suspended process can't be asked."""
        if targets.pid is None or targets.obstacle is not None:
            return InstanceId.of(self._site.status(self._question_timeout()))
        # For a process of another PID namespace the caller may have the pid that the server reports.
        named = self._pid if self._pid == inner_pid(targets.pid) else None
        return InstanceId(named or targets.pid, ticks=start_time(targets.pid))

    def _wait_for_end(self, targets: Targets, connection: Connection | None) -> bool:
        deadline = None if self._deadline == math.inf else self._deadline
        if not targets.watched:
            while connection is not None and not connection.ended:
                if connection.receive(deadline) is None and not connection.ended:
                    return False
            return True
        server = targets.server or targets.watched
        if len(server) == 2 and parent_of(server[0].pid) == server[1].pid:
            # Werkzeug's reloader ends with its child, or starts the next one.
            server = server[:1]
        if not wait_for_end(server, deadline):
            return False
        wait_for_end(targets.watched, time.monotonic() + HUB_MARGIN)
        return True

    def _question_timeout(self) -> float:
        return max(INTERVAL, min(QUESTION_TIMEOUT, self._deadline - time.monotonic()))

    def _pause(self, seconds: float) -> float:
        """Wait so long; returns how long to wait the next time."""
        time.sleep(max(0.0, min(seconds, self._deadline - time.monotonic())))
        return min(2 * seconds, MAX_INTERVAL)

    def _wrong_pid(self, status: Status) -> str:
        if self._pid in (None, status["pid"]):
            return ""
        return f"the instance there is pid {status['pid']}, not pid {self._pid}"

    def _result(self, reached: str, status: Status) -> dict[str, Any]:
        return {"reached": reached, **_seen(status), "elapsed": elapsed_since(self._began)}

    def _gone(self, asked: InstanceId | None, proof: str) -> dict[str, Any]:
        pid = None if asked is None else asked.pid
        return {"reached": "gone", "pid": pid, "proof": proof, "elapsed": elapsed_since(self._began)}

    def _not_yet(self, status: Status, name: str, why: str) -> TimedOut:
        return TimedOut(f"pid {status['pid']} is not {name} {self._within}: {why}", _seen(status))

    def _overdue(self, pid: int) -> TimedOut:
        return TimedOut(f"pid {pid} is still there {self._within}", {"pid": pid})


def _last(error: TimedOut, before: ControlError | None, seconds: float) -> ControlError:
    """What the last question has told; of one that was cut short by the deadline, the question before it."""
    return error if before is None or seconds >= QUESTION_TIMEOUT else before


def _ended(known: InstanceId | None, why: str) -> NotRunning:
    return NotRunning(f"{'the server' if known is None else f'pid {known.pid}'} has ended: {why}")


def _what_lacks(status: Status, condition: Condition, generation: int | None, failed_checks: int) -> str:
    """Why the state is not the one that is waited for; "" if it is."""
    if generation is not None:
        reached = status["generation"] >= generation and status["state"] != "starting"
        return "" if reached else f"it is {status['state']}, generation {status['generation']}"
    if condition == "drained" and status["state"] != "draining":
        return f"it is {status['state']}"
    # For a drain the requests of all apps count.
    progress = (status.get("draining") if condition == "drained" else None) or status["requests"]
    if progress["in_flight"]:
        return f"{progress['in_flight']} in flight"
    lacking = failed_checks - progress.get("failed_checks", 0)
    return f"{lacking} more health checks have to fail" if lacking > 0 else ""


def _seen(status: Status) -> dict[str, Any]:
    named = {name: status[name] for name in ("pid", "started_at", "state", "generation")}
    return {**named, "in_flight": status["requests"]["in_flight"]}
