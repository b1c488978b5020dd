"""The command that samples where the serving processes spend their time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from ..dispatch.commands import Impact, invalid_parameter
from ..dispatch.futures import then
from ..dispatch.replies import Call
from ..dispatch.streams import Message, Pulled, Stream
from ..errors import CONFLICT, CommandError
from ..inspection.questions import Answer
from ..protocol.profiles import ProfileParts, render_profile
from ..system.native import new_future
from .app import AppConfig
from .builtin import builtin
from .controller import Controller
from .operation import timestamp

MAX_SECONDS, MAX_HZ = 600.0, 1000.0
"""The longest profile, and the highest rate."""

MAX_ROUTE = 200
"""Characters of a route."""

INTERVAL = 0.5
"""Seconds between two questions to the processes, which show them that somebody still waits for the profile."""

PATIENCE = 3.0
"""Seconds after the end for a process to say that it has ended its profile."""

GONE = "it has ended before its profile"

PROFILE_IMPACT = Impact("medium", "2% of a processor at most; threads switch more often for a fifth of the time")

Ask = Callable[[dict[str, Any], "int | None"], "Future[list[Answer]]"]
"""Asks the processes, or the one with that pid, the question ``profile`` with these parameters."""


class ProfileCommands:
    """Sampling profiles of the serving processes of one app."""

    def __init__(self, controller: Controller[Any], app: AppConfig) -> None:
        self._controller = controller
        self._app = app

    @builtin("inspect", PROFILE_IMPACT)
    def profile(
        self,
        call: Call,
        seconds: float = 10.0,
        hz: float = 100.0,
        route: str = "",
        requests_only: bool = False,
        worker: int | None = None,
    ) -> Future[Stream]:
        """Sample where requests and threads spend their time; ends with the caller's connection."""
        if not 0 < seconds <= MAX_SECONDS:
            raise invalid_parameter("seconds", f"must be more than 0, and at most {MAX_SECONDS:.0f}")
        if not 1 <= hz <= MAX_HZ:
            raise invalid_parameter("hz", f"must be from 1 to {MAX_HZ:.0f}")
        if len(route) > MAX_ROUTE:
            raise invalid_parameter("route", f"has more than {MAX_ROUTE} characters")
        order = {
            "id": os.urandom(8).hex(),
            "until": time.monotonic() + seconds,
            "hz": hz,
            "route": route or None,
            "requests_only": requests_only,
            "by": call.peer.describe(),
            "until_time": timestamp(datetime.now(timezone.utc) + timedelta(seconds=seconds)),
        }

        def ask(params: dict[str, Any], pid: int | None) -> Future[list[Answer]]:
            return self._controller.processes.ask(self._app, "profile", {"order": order, **params}, pid)

        def begun(answers: list[Answer]) -> Stream:
            stream = ProfileStream(ask, seconds, worker, answers)
            errors = [value for _, value in answers if isinstance(value, CommandError)]
            refused = next((error for error in errors if error.code == CONFLICT), None)
            if refused is None and len(errors) == len(answers):
                refused = errors[0] if errors else CommandError("no worker serves", code=CONFLICT)
            if refused is not None:
                stream.cancel()
                raise refused
            return stream

        return then(ask({"step": "run"}, worker), begun)


@dataclass
class Process:
    """A process that is profiled: whether it still samples, how far its result is known, and why it does not answer."""

    running: bool = True
    samples: int = 0
    after: int = 0
    error: str | None = None


class ProfileStream(Stream):
    """Asks the processes for some `seconds`, then for their results; new workers begin when they are asked.

    `worker` is the pid of the only one, if it is for one. The `first` answers have been given. The items are
    ``progress``, with the seconds and samples so far, and the parts of `ProfileParts`, each of one ``worker``.
    """

    name = "profile"

    def __init__(self, ask: Ask, seconds: float, worker: int | None, first: list[Answer]) -> None:
        self.head = {"seq": 0}
        self._ask = ask
        self._seconds = seconds
        self._worker = worker
        self._processes: dict[int, Process] = {}
        self._left: deque[int] | None = None
        self._seq = 0
        self._parts = ProfileParts()
        self._began = time.monotonic()
        self._next = self._began + INTERVAL
        self._note(first)

    def pull(self) -> Pulled | Future[Pulled]:
        now = time.monotonic()
        if self._left:
            if len(self._left) > 1 and now >= self._next:
                # A process forgets its result when nobody asks any more; one with many pages keeps the others waiting.
                self._next = now + INTERVAL
                self._asked({"step": "run"}, None)
            pid = self._left[0]
            asked = self._asked({"step": "take", "after": self._processes[pid].after}, pid)
            return then(asked, lambda answers: self._taken(pid, answers))
        if self._left is not None:
            return self._pulled(self._end(), end="complete")
        if now < self._next:
            return Pulled()
        self._next = min(now + INTERVAL, max(self._began + self._seconds, now + INTERVAL / 5))
        return then(self._asked({"step": "run"}, self._worker), self._told)

    def text(self, message: Message) -> str:
        item = message.get("item", {})
        if "unanswered" not in item:
            self._parts.add(item)
            return ""
        self._parts.add(item)
        return render_profile(self._parts.profile()).rstrip("\n")

    def cancel(self) -> None:
        """End it in all processes, whose results are not asked for."""
        self._asked({"step": "cancel"}, self._worker)

    def close(self) -> None:
        super().close()
        self.cancel()

    def _asked(self, params: dict[str, Any], pid: int | None) -> Future[list[Answer]]:
        try:
            return self._ask(params, pid)
        except CommandError:
            # There is no such process any more.
            gone: Future[list[Answer]] = new_future()
            gone.set_result([])
            return gone

    def _told(self, answers: list[Answer]) -> Pulled:
        self._note(answers)
        elapsed = time.monotonic() - self._began
        late = elapsed > self._seconds + PATIENCE
        if late or (elapsed >= self._seconds and not any(one.running for one in self._processes.values())):
            self._left = deque(pid for pid, one in self._processes.items() if one.error is None or not late)
        samples = sum(one.samples for one in self._processes.values())
        return self._pulled([{"progress": {"elapsed": round(elapsed, 1), "samples": samples}}], more=bool(self._left))

    def _note(self, answers: list[Answer]) -> None:
        for pid, value in answers:
            process = self._processes.setdefault(pid, Process())
            if isinstance(value, CommandError):
                process.error = value.message
            else:
                process.error, process.running, process.samples = None, value[0]["running"], value[0]["samples"]
        heard = {pid for pid, _ in answers}
        for pid, process in self._processes.items():
            if pid not in heard:
                process.running, process.error = False, GONE

    def _taken(self, pid: int, answers: list[Answer]) -> Pulled:
        assert self._left is not None
        process = self._processes[pid]
        value = answers[0].value if answers else CommandError(GONE)
        if not isinstance(value, CommandError) and not value[0]["more"] and "summary" not in value[0]:
            value = CommandError("it has no result: it was asked too late")
        if isinstance(value, CommandError):
            process.error = value.message
            self._left.popleft()
            return self._pulled([], more=True)
        page = value[0]
        process.after = page.get("after", 0)
        if not page["more"]:
            self._left.popleft()
        parts = {name: page[name] for name in ("frames", "stacks", "summary") if name in page}
        return self._pulled([{"worker": pid, **parts}], more=True)

    def _end(self) -> list[dict[str, Any]]:
        silent = [(pid, one.error) for pid, one in self._processes.items() if one.error is not None]
        return [{"unanswered": [{"worker": pid, "error": error} for pid, error in silent]}]

    def _pulled(self, items: list[dict[str, Any]], *, more: bool = False, end: str | None = None) -> Pulled:
        messages = []
        for item in items:
            self._seq += 1
            messages.append({"seq": self._seq, "item": item})
        return Pulled(messages, more, end)
