"""The client's side of a stop: ask, follow the progress, and wait for the proof that the process is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .conversations import Conversation
from .errors import AccessDenied, RemoteProtocolError, TimedOut, error_from_object
from .processes import ProcessHandle, open_process, open_reloader, open_staff
from .protocol.jsonrpc import Request, Response
from .system import wait_readable

MARGIN = 5.0
"""Seconds beyond delay and grace for hooks and the interpreter's end; also for a killed process to be gone."""


STATUS_TIMEOUT = 1.0
"""Seconds to find out who is to be killed, or what a process waits for."""

FOLLOW = -1.0
"""A limit that stands for: as long as the server's progress tells, and MARGIN."""


class StopCall:
    """One `stop`, from the request to the end of the process.

    `limit` and `kill_after` are seconds from now; `kill_after` suspends the limit.
    """

    def __init__(
        self,
        conversation: Conversation,
        limit: float | None,
        kill_after: float | None,
        on_progress: Callable[[Mapping[str, Any]], Any] | None,
    ) -> None:
        self._conversation = conversation
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._follow = limit == FOLLOW
        self._kill_at = None if kill_after is None else self._began + kill_after
        self._deadline = None if limit is None else self._began + limit
        peer = conversation.peer()
        self._pid = None if peer is None else peer.pid
        self._processes: list[ProcessHandle] = [] if peer is None else [peer]
        """Whose ends are the end of the server."""
        reloader = None if peer is None else open_reloader(peer)
        if reloader is not None:
            self._processes.append(reloader)
        self._to_kill = self._processes[::-1]
        self._staff = [] if peer is None else open_staff(peer)
        """Behind a hub, the master and its workers: the hub ends with them, but it may be killed alone."""
        if self._staff:
            self._pid = self._staff[0].pid
            self._processes.append(self._staff[0])
        self._progress: dict[str, Any] = {}
        self._result: dict[str, Any] | None = None

    def ask(self, params: dict[str, Any]) -> None:
        """Send the request; if there is somebody to be killed, find out before who that is."""
        if self._kill_at is not None:
            self._find_staff(min(self._kill_at, self._began + STATUS_TIMEOUT))
        if self._follow:
            self._deadline = self._began + MARGIN + params["delay"] + params.get("grace", 0)
        (self._stop_id,) = self._conversation.send([("stop", params)], self._until())

    def close(self) -> None:
        for process in {*self._processes, *self._to_kill, *self._staff}:
            process.close()

    def until_accepted(self) -> dict[str, Any]:
        """The first progress. Raises what the server answers, TimedOut, or RemoteProtocolError."""
        if not self._receive_until(lambda: bool(self._progress) or self._result is not None):
            if self._conversation.ended:
                raise self._unanswered()
            raise self._timed_out("accepted the stop")
        return {"accepted": True, "pid": self._pid, **self._progress}

    def until_gone(self) -> dict[str, Any]:
        """The result, once the process is gone (once the server has closed, where it is part of a bigger program)."""
        if not self._receive_until(lambda: self._result is not None):
            over = self._conversation.ended or any(process.ended() for process in self._processes)
            return self._died() if over else self._overdue("ended")
        if not self._wait_until_gone(self._until()):
            return self._overdue("ended")
        return self._outcome()

    def _find_staff(self, deadline: float) -> None:
        """Behind a hub it is the master and its workers that are to be killed, the master first; the hub ends then."""
        status = self._ask_status(deadline)
        # If nobody answers, what the kernel tells has to do.
        self._to_kill = self._staff or self._to_kill
        if status and status.get("workers"):
            pids = [status.get("pid"), *(worker.get("pid") for worker in status["workers"])]
            self._to_kill = [handle for handle in map(open_process, pids) if handle is not None]
        self._processes = list({*self._processes, *self._to_kill})

    def _ask_status(self, deadline: float) -> dict[str, Any] | None:
        """What `status` answers, None if nothing comes in time."""
        (id,) = self._conversation.send([("status", {})], deadline)
        while (message := self._conversation.receive(deadline)) is not None:
            if isinstance(message, Response) and message.id == id:
                return message.result if isinstance(message.result, dict) else {}
        return None

    def _until(self) -> float | None:
        return self._deadline if self._kill_at is None else self._kill_at

    def _receive_until(self, done: Callable[[], bool]) -> bool:
        """Take in messages; False if the server ended, or the time has passed, before `done`."""
        while not done():
            message = self._conversation.receive(self._until(), self._processes)
            if message is None:
                return False
            if isinstance(message, Request):
                self._note_progress(message)
            else:
                self._note_response(message)
        return True

    def _note_progress(self, message: Request) -> None:
        params = message.params
        if message.method != "progress" or not isinstance(params, dict) or params.get("id") != self._stop_id:
            return
        self._progress = {name: value for name, value in params.items() if name != "id"}
        if self._follow and isinstance(remaining := params.get("remaining"), (int, float)):
            self._deadline = time.monotonic() + remaining + MARGIN
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def _note_response(self, response: Response) -> None:
        if response.error is not None:
            raise error_from_object(*response.error)
        if response.id == self._stop_id:
            if not isinstance(response.result, dict) or "outcome" not in response.result:
                raise RemoteProtocolError("the answer to stop holds no outcome")
            self._result = response.result

    def _wait_until_gone(self, deadline: float | None) -> bool:
        if self._processes and not (self._result or {}).get("embedded"):
            return _wait_for_end(self._processes, deadline)
        while not self._conversation.ended:
            if self._conversation.receive(deadline) is None and not self._conversation.ended:
                return False
        return True

    def _died(self) -> dict[str, Any]:
        if self._staff and not self._staff[0].ended() and self._kill_at is None:
            raise TimedOut(
                f"the hub of pid {self._pid} has been killed; the server goes on, and can be stopped again",
                {"pid": self._pid, **self._progress},
            )
        if self._processes and _wait_for_end(self._processes, self._kill_at or time.monotonic() + MARGIN):
            return self._outcome("died")
        if not self._processes and self._conversation.peer_has_ended():
            return self._outcome("died")
        if self._kill_at is None:
            raise self._unanswered()
        return self._overdue("ended")

    def _overdue(self, what: str) -> dict[str, Any]:
        if self._kill_at is None:
            raise self._timed_out(what)
        if not self._processes:
            raise TimedOut(
                f"{self._conversation.endpoint}: the kernel does not name the process, so it can't be killed"
            )
        try:
            for process in self._to_kill:
                process.kill()
        except PermissionError:
            raise AccessDenied(f"pid {self._pid} belongs to another user, so it can't be killed") from None
        if not _wait_for_end(self._processes, time.monotonic() + MARGIN):
            raise TimedOut(f"pid {self._pid} was killed, but is still there")
        return self._outcome("killed")

    def _outcome(self, outcome: str | None = None) -> dict[str, Any]:
        if outcome is None and self._result is not None:
            return self._result
        known = self._result or {"drained": None, "cut": self._progress.get("in_flight"), "pid": self._pid}
        return {**known, "outcome": outcome, "elapsed": round(time.monotonic() - self._began, 3)}

    def _unanswered(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._conversation.endpoint} closed the connection without an answer to stop")

    def _timed_out(self, what: str) -> TimedOut:
        elapsed = time.monotonic() - self._began
        message = f"pid {self._pid} has not {what} within {elapsed:.1f} s; it is still there"
        reasons = self._reasons()
        return TimedOut(f"{message}: {reasons}" if reasons else message, {"pid": self._pid, **self._progress})

    def _reasons(self) -> str:
        """What the process waits for, as it says itself."""
        if self._result is None:
            if self._progress.get("phase") == "hooks":
                return "its on_stop hooks run; a stop with mode fast does not wait for them"
            count = self._progress.get("in_flight")
            return f"{count} in flight" if count else "use --kill-after to end it all the same"
        threads = self._threads_that_stay()
        return f"kept alive by {', '.join(threads)}" if threads else "its main thread has not returned"

    def _threads_that_stay(self) -> list[str]:
        status = self._ask_status(time.monotonic() + STATUS_TIMEOUT)
        if status:
            self._progress = {"waiting_for": (status.get("stopping") or {}).get("waiting_for", [])}
        return [str(name) for name in self._progress.get("waiting_for", [])]


def _wait_for_end(processes: Sequence[ProcessHandle], deadline: float | None) -> bool:
    """Whether all of them have ended before the deadline."""
    for process in processes:
        timeout = None if deadline is None else deadline - time.monotonic()
        if not wait_readable([process.fileno()], timeout):
            return False
    return True
