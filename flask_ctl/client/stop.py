"""The client's side of a stop: ask, follow the progress, and wait for the proof that the server is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import AccessDenied, ControlError, RemoteProtocolError, ServerReloaded, TimedOut, error_from_object
from ..protocol.jsonrpc import Request, Response
from ..system.processes import ProcessHandle
from ..system.waiting import wait_readable
from .connection import END_DELAY, Connection
from .targets import Targets

MARGIN = 5.0
"""Seconds beyond delay and grace for hooks and interpreter shutdown; also for a killed process to end."""

RELOAD_MARGIN = 30.0
"""Least seconds for the next image to answer a stop that a reload has cut off: it may have to import a big program."""

STATUS_TIMEOUT = 1.0
"""Seconds for the status that tells what a process waits for."""

HUB_MARGIN = 1.0
"""Seconds for a hub to end after its master."""

FOLLOW = -1.0
"""Stands for a limit that follows the server's progress: its remaining time and MARGIN."""

Progress = Callable[[Mapping[str, Any]], Any]


class Unanswered(TimedOut):
    """The hub has been killed, or a reload has replaced the image that was asked; the server may go on.

    `sent` tells whether the server can have got the stop, `accepted` whether it had begun in a hub. `outcome` is the
    result if nothing runs any more; None if the server may have ended by this stop, or without it.
    """

    def __init__(
        self, message: str, data: Any, *, accepted: bool, outcome: dict[str, Any] | None, sent: bool = True
    ) -> None:
        super().__init__(message, data)
        self.sent = sent
        self.accepted = accepted
        self._outcome = outcome

    def outcome(self) -> dict[str, Any]:
        """The result if nothing runs any more. Raises ServerReloaded if it is not known."""
        if self._outcome is None:
            raise ServerReloaded(f"{self.message}; the server has ended, and whether by this stop is not known")
        return self._outcome


class StillThere(TimedOut):
    """The server has answered the stop, but has not ended; `reason` is what keeps it."""

    def __init__(self, message: str, data: Any, reason: str) -> None:
        super().__init__(message, data)
        self.reason = reason


class StopTimes(NamedTuple):
    """When a stop began, on the monotonic clock, and after how many seconds it is given up, or killed.

    `kill_after` suspends the `limit`. With the limit FOLLOW the stop is not given up before `reloads_until`.
    """

    began: float
    limit: float | None = None
    kill_after: float | None = None
    reloads_until: float = 0.0

    def to_connect(self, default: float) -> float | None:
        """Seconds left to reach the server."""
        if self.kill_after is not None:
            return max(0.0, self.began + self.kill_after - time.monotonic())
        return max(default, self.reloads_until - time.monotonic()) if self.limit == FOLLOW else self.limit


class StopWaiter:
    """One `stop`, from the request to the end of the server.

    `targets` are the processes to watch, and to kill after `kill_after`; the caller closes them. `told` means that the
    server's supervisor has been told to stop it, which may end it before it has got the request.
    """

    def __init__(
        self,
        connection: Connection,
        targets: Targets,
        times: StopTimes,
        on_progress: Progress | None = None,
        *,
        told: bool = False,
    ) -> None:
        self._told = told
        self._connection = connection
        self._targets = targets
        self._began = times.began
        self.times = times
        """Those for the next try, if this one is unanswered."""
        self._on_progress = on_progress
        self._follow = times.limit == FOLLOW
        self._kill_at = None if times.kill_after is None else times.began + times.kill_after
        self._deadline = None if times.limit is None else times.began + times.limit
        self._stop_ids: list[int] = []
        self._ping_id: int | None = None
        self._said_pid: int | None = None
        self._said_hub = False
        self._mode: str | None = None
        self._progress: dict[str, Any] = {}
        self._result: dict[str, Any] | None = None

    def ask(self, params: dict[str, Any]) -> None:
        """Send the request. Raises the targets' obstacle, with nothing sent, if they are to be killed and can't be."""
        if self._kill_at is not None and self._targets.obstacle is not None:
            raise self._targets.obstacle
        self._mode = params["mode"]
        if self._follow:
            deadline = time.monotonic() + MARGIN + params["delay"] + params.get("grace", 0)
            self._deadline = max(deadline, self.times.reloads_until)
        # If the kernel names no process, messages use the pid that the server reports.
        questions: list[tuple[str, Mapping[str, Any]]] = [] if self._targets.pid else [("ping", {})]
        # A server that does not read its socket is still killed in time.
        with contextlib.suppress(*([] if self._kill_at is None else [TimedOut])):
            ids = self._connection.send([*questions, ("stop", params)], self._until())
            self._stop_ids.append(ids[-1])
            self._ping_id = ids[0] if questions else None
        if self._connection.undelivered and not self._stop_ids[:-1]:
            raise self._again(f"{self._connection.endpoint} has closed the connection", sent=False)

    def until_accepted(self) -> dict[str, Any]:
        """The first progress. Raises what the server answers, Unanswered, TimedOut, or RemoteProtocolError."""
        if not self._receive_until(lambda: bool(self._progress) or self._result is not None):
            self._check_hub()
            if self._connection.ended:
                raise self._connection.unanswered("stop")
            raise self._timed_out("accepted the stop")
        return {"accepted": True, "pid": self._pid, **self._progress}

    def until_gone(self) -> dict[str, Any]:
        """The result, once the server is gone; ``proof`` tells how that is known.

        ``process``: the kernel says that the process has ended; ``connection``: the connection has ended, for a server
        on another machine or in a bigger program; ``answer``: the server says that it ends now, and no process here
        outlives it. Raises what the server answers, Unanswered, TimedOut, AccessDenied or RemoteProtocolError.
        """
        if not self._receive_until(lambda: self._result is not None):
            over = self._connection.ended or any(process.ended() for process in self._targets.watched)
            return self._died() if over else self._overdue("ended")
        if self._targets.unobservable:
            return self._outcome("answer")
        if not self._wait_until_gone(self._until()):
            return self._overdue("ended")
        return self._outcome("process" if self._is_watched() else "connection")

    def ends_unanswered(self) -> bool:
        """Whether the server's process ends now, by the kernel, after its connection has ended."""
        return bool(self._targets.server) and wait_for_end(self._targets.server, time.monotonic() + END_DELAY)

    def outcome_unknown(self) -> dict[str, Any]:
        """The result of a server that its supervisor has ended before it answered."""
        return self._outcome("process", "stopped")

    @property
    def _pid(self) -> int | None:
        """The pid for messages: from the kernel, else from the server."""
        return self._targets.pid or self._said_pid or (self._result or {}).get("pid")

    @property
    def _name(self) -> str:
        return f"pid {self._pid}" if self._pid else f"the server at {self._connection.endpoint}"

    def _until(self) -> float | None:
        return self._deadline if self._kill_at is None else self._kill_at

    def _receive_until(self, done: Callable[[], bool]) -> bool:
        """Take in messages; False if the server ended, or the time has passed, before `done`."""
        while not done():
            message = self._connection.receive(self._until(), self._targets.watched)
            if message is None:
                return False
            if isinstance(message, Request):
                self._note_progress(message)
            else:
                self._note_response(message)
        return True

    def _note_progress(self, message: Request) -> None:
        params = message.params
        if message.method != "progress" or not isinstance(params, dict) or params.get("id") not in self._stop_ids:
            return
        self._progress = {name: value for name, value in params.items() if name != "id"}
        if self._follow and isinstance(remaining := params.get("remaining"), (int, float)):
            self._deadline = time.monotonic() + remaining + MARGIN
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def _note_response(self, response: Response) -> None:
        if response.id == self._ping_id is not None:
            if isinstance(response.result, dict) and isinstance(pid := response.result.get("pid"), int):
                self._said_pid = pid
                self._said_hub = "hub" in response.result
            return
        if response.error is not None and response.id in self._stop_ids[:-1]:
            # An older server can't join a stop before it has begun.
            return
        if response.error is not None:
            error = error_from_object(*response.error)
            if isinstance(error, ServerReloaded):
                # What was accepted goes over the exec, and is joined.
                raise self._again(error.message)
            raise error
        if response.id in self._stop_ids:
            if not isinstance(response.result, dict) or "outcome" not in response.result:
                raise RemoteProtocolError("the answer to stop holds no outcome")
            self._result = response.result

    def _is_watched(self) -> bool:
        """Whether the ends of processes are the proof of the server's end."""
        return bool(self._targets.watched) and not (self._result or {}).get("embedded")

    def _wait_until_gone(self, deadline: float | None) -> bool:
        targets = self._targets
        if self._is_watched():
            if not wait_for_end(targets.server or targets.watched, deadline):
                return False
            # Once the master has ended the server is gone, even if the hub hangs.
            wait_for_end(targets.watched, time.monotonic() + HUB_MARGIN)
            return True
        while not self._connection.ended:
            if self._connection.receive(deadline) is None and not self._connection.ended:
                return False
        return True

    def _died(self) -> dict[str, Any]:
        """The result after a process or the connection has ended without an answer."""
        self._check_hub()
        targets = self._targets
        if targets.server and wait_for_end(targets.server, self._kill_at or time.monotonic() + MARGIN):
            # Without a progress it may have ended in order, by the stop that its supervisor has begun.
            return self.outcome_unknown() if self._told and not self._progress else self._outcome("process", "died")
        if not targets.watched and self._connection.peer_has_ended():
            if self._said_hub:
                raise ControlError(
                    f"the hub at {self._connection.endpoint} ended before it answered stop, which may have been done;"
                    " the outcome is not known: the server's process can't be watched from here",
                    {"may_have_run": True},
                )
            return self._outcome("connection", "died")
        if self._kill_at is None:
            raise self._connection.unanswered("stop")
        return self._overdue("ended")

    def _check_hub(self) -> None:
        """Raises Unanswered for a hub that has been killed, or a stop that a reload has lost.

        Not for a hub whose server is to be killed anyway.
        """
        if self._connection.lost and self._targets.pid is None:
            # Where the kernel names no process, another server may have come in the place of the one that was asked.
            raise self._connection.unanswered("stop")
        if self._connection.lost:
            # The new image does not know the stop, or its answer is lost: it can be asked again.
            raise self._again(f"{self._connection.endpoint} was reloaded before it answered stop")
        targets = self._targets
        accepted = bool(self._progress)
        if targets.hub is not None:
            delay = END_DELAY if self._connection.ended else 0.0
            died = wait_for_end([targets.hub], time.monotonic() + delay)
            goes_on = any(not process.ended() for process in targets.server or targets.workers)
        else:
            # Without the lock file it is unknown whether a hub has died.
            uncertain = targets.obstacle is not None and self._connection.path is not None
            over = self._connection.ended or any(process.ended() for process in targets.server)
            died = uncertain and over and self._connection.peer_has_ended()
            goes_on = True
        if died and goes_on and not (accepted and self._kill_at is not None):
            message = f"the hub of {self._name} has been killed; the server goes on, and can be stopped again"
            data = {"pid": self._pid, "hub": "died", **self._progress}
            raise Unanswered(message, data, accepted=accepted, outcome=self._outcome("process", "died"))

    def _overdue(self, what: str) -> dict[str, Any]:
        if self._kill_at is None:
            raise self._timed_out(what)
        kill(self._targets)
        return self._outcome("process", "killed")

    def _outcome(self, proof: str, outcome: str | None = None) -> dict[str, Any]:
        known = {**UNKNOWN, "cut": self._progress.get("in_flight"), **(self._result or {})}
        if self._targets.pid or not self._result:
            # The server may report its pid in another PID namespace.
            known["pid"] = self._pid
        known |= {"ended_after": elapsed_since(self._began) if proof == "process" else None, "proof": proof}
        if outcome is None:
            return known
        return {**known, "outcome": outcome, "elapsed": elapsed_since(self._began)}

    def _again(self, message: str, *, sent: bool = True) -> Unanswered:
        until = max(self._deadline or 0.0, time.monotonic() + RELOAD_MARGIN)
        self.times = self.times._replace(reloads_until=until)
        return Unanswered(message, {"pid": self._pid}, accepted=False, outcome=None, sent=sent)

    def _timed_out(self, what: str) -> TimedOut:
        elapsed = time.monotonic() - self._began
        message = f"{self._name} has not {what} within {elapsed:.1f} s; it is still there"
        reasons = self._reasons()
        data = {"pid": self._pid, "can_be_killed": self._targets.obstacle is None, "mode": self._mode, **self._progress}
        message = f"{message}: {reasons}" if reasons else message
        return TimedOut(message, data) if self._result is None else StillThere(message, data, reasons)

    def _reasons(self) -> str:
        """What the server waits for, as it has reported."""
        if self._result is None:
            if self._progress.get("phase") == "hooks":
                return "its on_stop hooks run"
            count = self._progress.get("in_flight")
            return f"{count} in flight" if count else ""
        threads = self._threads_that_stay()
        return f"kept alive by {', '.join(threads)}" if threads else "its main thread has not returned"

    def _threads_that_stay(self) -> list[str]:
        status = self._ask_status(time.monotonic() + STATUS_TIMEOUT)
        if status:
            self._progress = {"waiting_for": (status.get("stopping") or {}).get("waiting_for", [])}
        return [str(name) for name in self._progress.get("waiting_for", [])]

    def _ask_status(self, deadline: float) -> dict[str, Any] | None:
        """The answer to `status`, None without an answer in time."""
        (id,) = self._connection.send([("status", {})], deadline)
        while (message := self._connection.receive(deadline)) is not None:
            if isinstance(message, Response) and message.id == id:
                return message.result if isinstance(message.result, dict) else {}
        return None


UNKNOWN: dict[str, Any] = {"drained": None, "cut": None, "pid": None}
"""The fields that only the server could have filled in."""


def kill_unreached(targets: Targets, began: float) -> dict[str, Any]:
    """Kill a server that could not be reached, and return the result. Raises like `kill`, or the targets' obstacle."""
    if targets.obstacle is not None:
        raise targets.obstacle
    kill(targets)
    elapsed = elapsed_since(began)
    return {
        **UNKNOWN,
        "pid": targets.pid,
        "outcome": "killed",
        "elapsed": elapsed,
        "ended_after": elapsed,
        "proof": "process",
    }


def kill(targets: Targets) -> None:
    """Kill a server and wait for its end. Raises AccessDenied, or TimedOut if it has not ended after MARGIN."""
    try:
        killed = targets.kill()
    except PermissionError:
        raise AccessDenied(f"pid {targets.pid} belongs to another user, so it can't be killed") from None
    dead = [process for process in killed if process is not targets.hub]
    if not wait_for_end(dead, time.monotonic() + MARGIN):
        data = {"pid": targets.pid, "can_be_killed": False, "killed": True}
        raise TimedOut(
            f"pid {targets.pid} was killed, but is still there: the kernel has not ended it yet, as while a disk"
            " or a network file system does not answer",
            data,
        )
    # So that the address is free for the next server; a hub that hangs is not waited for.
    wait_for_end([process for process in killed if process is targets.hub], time.monotonic() + HUB_MARGIN)


def wait_for_end(processes: Sequence[ProcessHandle], deadline: float | None) -> bool:
    """Whether all of them have ended before the deadline."""
    for process in processes:
        timeout = None if deadline is None else deadline - time.monotonic()
        if not wait_readable([process.fileno()], timeout):
            return False
    return True


def elapsed_since(began: float) -> float:
    """Seconds since `began`, to the millisecond."""
    return round(time.monotonic() - began, 3)
