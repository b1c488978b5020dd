"""One reload, from its acceptance to the moment when the process is replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .adapters import HttpServer
from .errors import CONFLICT, INTERNAL_ERROR, CommandError, TimedOut
from .operation import MAX_SECONDS, Operation, Work
from .reload.bytecode import remove_stale
from .reload.preflight import Preflight
from .reload.program import program

PAUSE = 0.25
"""Seconds that visitors wait for young requests to end, before they are let in again and those are waited for, too."""

logger = logging.getLogger("flask_ctl")


@dataclass
class ReloadRequest:
    """What was asked: seconds of grace, whether to cut what is left then, and by whom."""

    grace: float
    cut: bool
    preflight: bool
    preflight_timeout: float
    by: dict[str, Any]


class Reload(Operation):
    """A reload under way. Its result is only ever an error: the success is told by the image that follows.

    `committed` is true from the moment when there is no way back.
    """

    def __init__(self, server: HttpServer, work: Work, request: ReloadRequest) -> None:
        super().__init__(request.by, time.monotonic() + min(request.grace, MAX_SECONDS))
        self.committed = False
        self.cut = 0
        self._server = server
        self._work = work
        self._request = request
        self._cancelled = False
        self._preflight = Preflight(program, request.preflight_timeout) if request.preflight else None

    def start(self, on_failure: Callable[[CommandError], Any], on_commit: Callable[[], Any]) -> None:
        """Go through it in a thread. `on_failure` is called there if the old code goes on, else `on_commit`."""

        def run() -> None:
            try:
                self._run(on_commit)
            except CommandError as error:
                self._fail(error, on_failure)
            except BaseException as error:
                logger.exception("the reload failed on its way")
                self._fail(CommandError(f"the reload failed: {error}", code=INTERNAL_ERROR), on_failure)

        self._spawn(run, "flask-ctl-reload")

    def cancel(self) -> bool:
        """Call it off, for a stop; False if there is no way back any more."""
        with self._changed:
            if self.committed:
                return False
            self._cancelled = True
            if self._preflight is not None:
                self._preflight.cancel()
            self._changed.notify_all()
        return True

    def progress(self) -> dict[str, Any]:
        """How far it is: the phase, requests and commands in flight, seconds of grace that remain."""
        return {**super().progress(), "in_flight": self._server.in_flight() + self._work.commands_in_flight()}

    def _run(self, on_commit: Callable[[], Any]) -> None:
        if self._preflight is not None:
            self._enter("preflight")
            remove_stale()
            self._preflight.run()
        self._deadline = time.monotonic() + min(self._request.grace, MAX_SECONDS)
        self._enter("drain")
        self._drain()
        self._commit()
        on_commit()
        self._enter("hooks")
        self._work.run_stop_hooks()
        self._enter("replace")
        remove_stale()
        self._server.leave()

    def _drain(self) -> None:
        """Wait until nothing is in flight and the server pauses; visitors never wait for long meanwhile."""
        self._server.watch(self.poke)
        while self._wait_for_those_in_flight():
            self._server.pause()
            if self._wait_until_quiet():
                return
            if time.monotonic() >= self._deadline:
                break
            self._server.resume()
        self._end_grace()

    def _wait_for_those_in_flight(self) -> bool:
        old = self._server.requests()

        def ended() -> bool:
            return self._cancelled or (not self._server.answers_any(old) and not self._work.commands_in_flight())

        return self._wait(ended, lambda: self._deadline)

    def _wait_until_quiet(self) -> bool:
        end = time.monotonic() + PAUSE
        return self._wait(self._is_quiet, lambda: end)

    def _is_quiet(self) -> bool:
        return self._cancelled or (self._server.paused() and not self._work.commands_in_flight())

    def _end_grace(self) -> None:
        if not self._request.cut:
            count = self._server.in_flight() + self._work.commands_in_flight()
            raise TimedOut(f"{count} still in flight after {self._request.grace:g} s of grace; the old code serves on")
        self._server.pause()
        self.cut = self._server.cut() + self._work.commands_in_flight()
        self._wait_until_quiet()

    def _commit(self) -> None:
        with self._changed:
            if self._cancelled:
                raise CommandError("the reload was called off by a stop", code=CONFLICT)
            self.committed = True

    def _fail(self, error: CommandError, on_failure: Callable[[CommandError], Any]) -> None:
        self._server.resume()
        self._server.unwatch()
        on_failure(error)
        self.result.set_exception(error)
