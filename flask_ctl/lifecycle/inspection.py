"""The commands that look into the serving processes."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any

from ..dispatch.commands import Impact, invalid_parameter
from ..dispatch.futures import then
from ..dispatch.replies import Call
from ..dispatch.streams import Stream
from ..inspection.exceptions import merged
from ..inspection.feeds import StreamStart, log_filter, parse_since
from ..inspection.questions import Answer, gathered
from ..inspection.requests import together
from ..inspection.stacks import MAX_CHUNKS, MAX_MESSAGE, stacks_together
from .app import AppConfig
from .builtin import builtin
from .controller import Controller
from .operation import timestamp

STACKS_NOTE = "no request goes on for some milliseconds; with --all under gevent for 0.5 s per million objects"


class InspectionCommands:
    """The commands that ask each serving process of one app, or the `worker` with that pid."""

    def __init__(self, controller: Controller[Any], app: AppConfig) -> None:
        self._controller = controller
        self._app = app

    @builtin("observe", Impact("low"))
    def requests(self, call: Call, slower: float = 0.0, worker: int | None = None) -> Future[dict[str, Any]]:
        """The requests in flight, the oldest first."""
        if slower < 0:
            raise invalid_parameter("slower", "must be 0 or more seconds")

        def merge(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            return {**together(found), "unanswered": errors}

        params = {"slower": slower, "full": self._may_inspect(call)}
        return then(self._controller.processes.ask(self._app, "requests", params, worker), merge)

    @builtin("inspect", Impact("low"))
    def exceptions(self, call: Call, worker: int | None = None) -> Future[dict[str, Any]]:
        """The last distinct unhandled exceptions of the app, the last one at the end."""

        def merge(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            return {"exceptions": [_with_times(entry) for entry in merged(found)], "unanswered": errors}

        return then(self._controller.processes.ask(self._app, "exceptions", {}, worker), merge)

    @builtin("inspect", Impact("low", "with follow, records of every level are taken, 2 us each"))
    def logs(
        self,
        call: Call,
        follow: bool = False,
        lines: int | None = 100,
        level: str = "",
        logger: str = "",
        request: str = "",
        grep: str = "",
        since: str = "",
        worker: int | None = None,
        after: int | None = None,
        epoch: str = "",
    ) -> Stream:
        """The last log records, and with follow those to come."""
        wanted = log_filter(level, logger, request, grep, since)
        _check_lines(lines)
        return self._controller.processes.stream(
            self._app, "logs", wanted, StreamStart(lines, follow, after, epoch), worker
        )

    @builtin("inspect", Impact("low", STACKS_NOTE))
    def stacks(
        self, call: Call, worker: int | None = None, request: str | None = None, all: bool = False
    ) -> Future[dict[str, Any]]:
        """The Python stacks of the threads and greenlets that serve requests."""

        def merge(answers: list[Answer]) -> dict[str, Any]:
            found, errors = gathered(answers)
            return {**stacks_together(found, room), "unanswered": errors}

        # A batch is answered by one message.
        room = MAX_CHUNKS if call.meta.get("_chunks") is True and call.reply is not None else MAX_MESSAGE
        params = {"request": request, "everything": all}
        return then(self._controller.processes.ask(self._app, "stacks", params, worker), merge)

    @builtin("observe", Impact("low"))
    def events(
        self,
        call: Call,
        follow: bool = False,
        lines: int | None = 100,
        since: str = "",
        worker: int | None = None,
        after: int | None = None,
        epoch: str = "",
    ) -> Stream:
        """What has happened, and with follow what will."""
        wanted = {"since": parse_since(since), "full": self._may_inspect(call)}
        _check_lines(lines)
        return self._controller.processes.stream(
            self._app, "events", wanted, StreamStart(lines, follow, after, epoch), worker
        )

    def _may_inspect(self, call: Call) -> bool:
        return self._app.policy.role_of(call.peer) in ("inspect", "operate")


def _check_lines(lines: int | None) -> None:
    if lines is not None and lines < 0:
        raise invalid_parameter("lines", "must be 0 or more")


def _with_times(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {name: timestamp(datetime.fromtimestamp(entry[name], timezone.utc)) for name in ("first", "last")}
