"""Werkzeug's reloader: a parent that restarts a child, which serves in its second thread.

A signal to the parent would make `subprocess.call` kill the child, and cut its requests. With the patch the parent
passes TERM on and waits, and the child drains.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import types
from typing import Any

from werkzeug import _reloader

from ..system import locks
from ..system.processes import start_time
from ..system.signals import signals
from .attributes import Attributes, lost_without, reason_of_loss
from .base import Host

RELOADER = "under its reloader apps come under control at their first request, and under its debugger never"

ATTRIBUTES: Attributes = {
    RELOADER: {
        _reloader: "subprocess",
        _reloader.ReloaderLoop: "__enter__ restart_with_reloader trigger_reload",
    }
}

_in_child = False

_RESTARTED = "FLASK_CTL_RESTARTED"
restarted = os.environ.pop(_RESTARTED, None) is not None
"""Whether this process is a child that is not the reloader's first one."""


def is_serving_child() -> bool:
    """Whether this process is the reloader's child, whose main thread watches files."""
    return _in_child


def is_unknown() -> bool:
    """Whether this process is the child of a reloader that is not patched."""
    return reason_of_loss("werkzeug", RELOADER) is not None and os.environ.get("WERKZEUG_RUN_MAIN") == "true"


def arm(host: Host) -> None:
    """Patch the reloader so that both processes end by a drain of the child."""
    if lost_without("werkzeug", ATTRIBUTES):
        return
    enter = _reloader.ReloaderLoop.__enter__
    restart = _reloader.ReloaderLoop.restart_with_reloader

    @functools.wraps(enter)
    def __enter__(self: Any) -> Any:
        global _in_child
        _in_child = True
        parent = os.getppid()
        locks.set_reloader(locks.Starter(parent, start_time(parent)))
        if host.wants_signals():
            # The main thread is here; the one that will serve may not install handlers.
            signals.install()
        return enter(self)

    @functools.wraps(restart)
    def restart_with_reloader(self: Any) -> int:
        if not host.wants_signals():
            return restart(self)
        with _Parent() as parent:
            code = restart(self)
        return 0 if parent.asked and code == -signal.SIGTERM else code

    trigger = _reloader.ReloaderLoop.trigger_reload

    @functools.wraps(trigger)
    def trigger_reload(self: Any, filename: str) -> None:
        # A restart would cut the requests that a stop waits for, and undo the stop.
        if not host.is_stopping():
            trigger(self, filename)

    _reloader.ReloaderLoop.trigger_reload = trigger_reload  # type: ignore[method-assign]
    _reloader.ReloaderLoop.__enter__ = __enter__  # type: ignore[method-assign]
    _reloader.ReloaderLoop.restart_with_reloader = restart_with_reloader  # type: ignore[method-assign]


class _Parent:
    """The parent while it waits: passes TERM on, and INT as TERM, which the child counts only once."""

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}
        self._module: Any = _reloader

    def __enter__(self) -> _Parent:
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._pass_on)
        self._module.subprocess = types.SimpleNamespace(**{**vars(subprocess), "call": self._call})
        return self

    def __exit__(self, *_: object) -> None:
        self._module.subprocess = subprocess
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _call(self, args: list[str], **options: Any) -> int:
        if self._child is not None:
            options["env"] = {**options["env"], _RESTARTED: "1"}
        self._child = subprocess.Popen(args, **options)
        if self.asked:
            self._child.terminate()
        return self._child.wait()

    def _pass_on(self, signum: int, frame: types.FrameType | None) -> None:
        self.asked = True
        if self._child is not None:
            self._child.terminate()
