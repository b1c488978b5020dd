"""What one image of the process has from the previous one, and leaves to the next one, over the exec of a reload."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..dispatch.audit import Audit, Entry
from ..dispatch.replies import reply_bytes
from ..errors import ServerReloaded
from ..inspection import feeds
from ..inspection.metrics import Totals
from ..system.handover import inherited
from ..system.native import new_future
from ..system.threads import threads_that_stay
from ..transports.control_thread import ControlServer
from ..transports.unix import answer_and_close
from .app import ServedApp, by_key
from .commit import CommittedReload
from .cutting import named
from .history import History
from .operation import Progress, timestamp
from .processes import OwnProcess
from .reload import Reload
from .stop import StopRequest


class DeferredStop(NamedTuple):
    """A stop that was accepted when a reload had committed, or before its caller had the answer."""

    request: StopRequest
    progress: Progress | None
    since: datetime
    result: Future[dict[str, Any]]

    def settle(self, ended: Future[dict[str, Any]]) -> None:
        """Take the result of the stop that it became."""
        self.result.set_result(ended.result())


class ImageState:
    """The counters and exceptions, the open entries of the audit log, and the deferred stops of an instance.

    A deferred stop begins in the next image once that serves, unless a fast one ends this image.
    """

    def __init__(
        self, apps: Sequence[ServedApp], history: History, audit: Audit, process: OwnProcess, *, inherit: bool
    ) -> None:
        self._apps = by_key(apps)
        self._process = process
        self._history = history
        self._audit = audit
        self._stops: list[DeferredStop] = []
        self._entries: list[Entry] = []
        self._ended: dict[str, Any] | None = None
        self._inherited = inherited.take_instance() if inherit else None
        if self._inherited is not None:
            history.restore_state(self._inherited)
            feeds.restore_state(self._inherited.get("feeds"))
            self._entries = audit.restore_state(self._inherited["audit"])
            for key, app in self._apps.items():
                app.requests.carry_on(*self._inherited["requests"].get(key, (0, 0)))
                # An image of an older version has none.
                for entry in self._inherited.get("exceptions", {}).get(key, []):
                    app.exceptions.add(entry)
                process.past[key] = Totals.unpacked(self._inherited.get("metrics", {}).get(key, ""))
            for stop in self._inherited["stops"]:
                self.defer(StopRequest(**stop))

    @property
    def owes_answer(self) -> bool:
        """Whether the caller of the reload by which this image began has no answer yet."""
        return self._inherited is not None

    def export_state(self, reload: Reload) -> dict[str, Any]:
        """For `Handover`, at the very end of this image."""
        after = reload.after_commit
        return {
            **self._history.export_state(),
            "reload": {
                "by": reload.by,
                "began": reload.began,
                "cut": after.cut,
                "left_behind": {**after.left_behind, **named(after.cut_requests)},
            },
            "feeds": feeds.export_state(),
            "requests": {key: app.requests.totals() for key, app in self._apps.items()},
            "exceptions": {key: app.exceptions.entries() for key, app in self._apps.items()},
            "metrics": self._process.export_totals(),
            "audit": self._audit.export_state(),
        }

    def export_stops(self) -> list[dict[str, Any]]:
        """The deferred stops, as ``stops`` of the state: the last of it."""
        return [stop.request.export_state() for stop in self._stops]

    def defer(self, request: StopRequest, progress: Progress | None = None) -> Future[dict[str, Any]]:
        """Accept a stop that begins when the next image serves; the Future gets its result if it ends this image."""
        stop = DeferredStop(request, progress, datetime.now(timezone.utc), new_future())
        self._stops.append(stop)
        if self._ended is not None:
            stop.result.set_result(self._ended)
        return stop.result

    def stop_after_commit(
        self, reload: CommittedReload, request: StopRequest, progress: Progress | None
    ) -> Future[dict[str, Any]]:
        """Leave a graceful stop to the next image; a fast one, or the same signal once more, ends this one."""
        again = "signal" in request.by and any(stop.request.by == request.by for stop in self._stops)
        result = self.defer(request, progress)
        if request.mode == "fast" or again:
            reload.end_instead()
        return result

    def stopping(self) -> dict[str, Any] | None:
        """The `stopping` of `status` for the first deferred stop; None without one."""
        for stop in self._stops:
            return {
                "mode": stop.request.mode,
                "since": timestamp(stop.since),
                "deadline": None,
                "by": stop.request.by,
                "deadline_by": stop.request.by,
                "waiting_for": threads_that_stay(),
            }
        return None

    def end(self, result: dict[str, Any]) -> None:
        """This image ends, and is not replaced: the result of all deferred stops, and of those that still come."""
        self._ended = result
        for stop in self._stops:
            stop.result.set_result(result)

    def answer_caller(
        self, control: ControlServer, note: Callable[[dict[str, Any], float, int], dict[str, Any]]
    ) -> None:
        """This image serves: tell the caller of the reload what `note` makes of it, and close what is not needed."""
        assert self._inherited is not None
        reload = self._inherited["reload"]
        elapsed = round(time.monotonic() - reload["began"], 3)
        result = note(reload["by"], elapsed, reload["cut"]) | reload["left_behind"]
        for entry in self._entries:
            if entry.command != "stop" or not self._stops:
                entry.done(result if entry.replaces else ServerReloaded.before(entry.command))
        control.answer_caller(lambda to: reply_bytes(to, "reload", result))
        caller = inherited.take_caller()
        if caller is not None:
            answer_and_close(caller, lambda to: reply_bytes(to, "reload", result))
        inherited.close_rest()

    def begin_stops(self, stop: Callable[[StopRequest, Progress | None], Future[dict[str, Any]]]) -> None:
        """After that, on the control thread: begin the deferred stops; later ones are not deferred."""
        self._inherited = None
        stops, self._stops = self._stops, []
        for deferred in stops:
            stop(deferred.request, deferred.progress).add_done_callback(deferred.settle)
        for entry in self._entries if stops else ():
            if entry.command == "stop":
                entry.follow(stops[0].result)
