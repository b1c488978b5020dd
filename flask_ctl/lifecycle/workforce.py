"""The command that changes the workers."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from typing import Any

from ..dispatch.commands import Impact, invalid_parameter
from ..dispatch.replies import Call
from .app import AppConfig
from .builtin import builtin
from .controller import Controller

CHANGE_TIMEOUT = 60.0
"""Seconds for a change, unless the caller sets a time-out."""

MAX_CHANGE = 256
"""The most workers that one call adds or removes."""


class WorkerCommands:
    """Add and remove workers, and have one replaced."""

    def __init__(self, controller: Controller[Any], app: AppConfig) -> None:
        self._controller = controller
        self._app = app

    @builtin("operate", Impact("medium", "a new worker loads the code that is on the disk, without a reload"))
    def workers(
        self, call: Call, add: int | None = None, remove: int | None = None, recycle: int | None = None
    ) -> Future[dict[str, Any]]:
        """Add or remove so many workers, or have the one with that pid replaced."""
        given = {name: value for name, value in [("add", add), ("remove", remove), ("recycle", recycle)] if value}
        if len(given) != 1:
            raise invalid_parameter("add", "exactly one of add, remove and recycle has to be given")
        ((what, number),) = given.items()
        if what != "recycle" and not 0 < number <= MAX_CHANGE:
            raise invalid_parameter(what, f"must be 1 to {MAX_CHANGE}")
        deadline = time.monotonic() + (CHANGE_TIMEOUT if call.timeout == math.inf else call.timeout)
        return self._controller.change_workers(
            what, number, deadline, self._app.preflight_timeout, call.peer.describe()
        )
