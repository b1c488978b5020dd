"""The commands that begin and end a drain."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

from ..dispatch.commands import Impact
from ..dispatch.replies import Call
from .builtin import builtin
from .controller import Controller


class DrainCommands:
    """Have health checks fail, so that load balancers send no more requests, and have them pass again."""

    def __init__(self, controller: Controller[Any]) -> None:
        self._controller = controller

    @builtin("operate", Impact("medium", "load balancers take the server out of service"))
    def drain(self, call: Call) -> Future[dict[str, Any]]:
        """Have health checks fail; requests are still served."""
        return self._set_draining(True, call)

    @builtin("operate", Impact("low"))
    def resume(self, call: Call) -> Future[dict[str, Any]]:
        """End a drain: have health checks pass again."""
        return self._set_draining(False, call)

    def _set_draining(self, draining: bool, call: Call) -> Future[dict[str, Any]]:
        deadline = time.monotonic() + call.timeout
        return self._controller.set_draining(draining, call.peer.describe(), deadline)
