"""granian: its worker processes register when they construct the object that serves the WSGI interface."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, ClassVar

from granian import _internal
from granian.server import mp

from ..system.directory import StartDirectory
from ..system.fork import Step, in_child
from ..system.native import start_thread
from ..system.packages import version_of
from ..system.program import program
from ..system.sockets import refuse_new_connections, welcome_connections
from .attributes import CONTROL, Attributes, lost_without, reason_of_loss
from .base import Host, PreforkWorker
from .open_sockets import listening, unread_connections
from .registry import WORKERS
from .urls import url

BACKLOG_TIMEOUT, BACKLOG_INTERVAL = 2.0, 0.005
"""Seconds in which a worker accepts what has arrived at its socket before it ends; and between two checks."""

UNREAD_TIMEOUT = 0.5
"""Seconds for an accepted connection to send something, and for the worker to read it."""

LISTEN_TIMEOUT = 10.0
"""Seconds for a worker that is about to serve to listen."""

PREFLIGHT = "its apps can be reloaded only without a preflight"

ATTRIBUTES: Attributes = {
    CONTROL: {mp: "WSGIWorker"},
    # Where one of the two functions is missing, its variable is, too.
    PREFLIGHT: {
        getattr(mp.WorkerProcess, "wrap_target", mp.WorkerProcess): "callback_loader",
        getattr(_internal, "load_target", _internal): "wd factory",
    },
}

OWN_SOCKETS = not re.match(r"2\.[0-7]\b", version_of("granian"))

SIGNALS = {"stop": signal.SIGTERM, "fast": signal.SIGTERM, "reload": signal.SIGHUP}


def arm(host: Host) -> None:
    """Make every granian worker of this process register with `host` when it begins to serve."""
    WORKERS["granian"] = lambda: multiprocessing.parent_process() is not None
    if CONTROL in lost_without("granian", ATTRIBUTES):
        return
    construct = mp.WSGIWorker

    def begin(*args: Any, **options: Any) -> Any:
        worker = GranianWorker(_loader())
        worker.take_over_signals()
        host.register_worker(worker, None)
        return construct(*args, **options)

    mp.WSGIWorker = begin


def _loader() -> Any:
    """The function that has loaded the app of this worker, None if granian has changed."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if "callback_loader" in frame.f_locals and frame.f_globals.get("__name__") == "granian.server.mp":
            return frame.f_locals["callback_loader"]
        frame = frame.f_back
    return None


class GranianWorker(PreforkWorker):
    """One worker process. It makes its own listening sockets, outside of Python."""

    name = "granian"
    runs_exit_handlers = False
    instead: ClassVar[Mapping[str, str]] = {
        "add": "granian's number of workers is fixed: stop it, and start it with another --workers",
        "remove": "granian's number of workers is fixed: stop it, and start it with another --workers",
        "recycle": "granian may end when one of its workers ends; reload replaces all of them",
    }

    def __init__(self, loader: Any) -> None:
        super().__init__(version_of("granian"), os.getppid(), 0, SIGNALS)
        self._loader = loader

    @property
    def listeners(self) -> list[str]:
        """Waits until the worker listens, for LISTEN_TIMEOUT at most."""
        deadline = time.monotonic() + LISTEN_TIMEOUT
        while not (urls := [url(sock.getsockname()) for sock in listening()]) and time.monotonic() < deadline:
            time.sleep(BACKLOG_INTERVAL)
        return urls

    def take_over_signals(self) -> None:
        """In the main thread: have the worker accept what has arrived at its socket before a signal ends it.

        The main thread waits for a lock from now on. A signal that the kernel delivers to another thread does not wake
        it, and the handler would never be called. So a thread reads signals from the descriptor to which Python writes
        them in every thread (`signal.set_wakeup_fd`).
        """
        handlers = {signum: signal.signal(signum, _heard) for signum in (signal.SIGTERM, signal.SIGINT)}
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        # Else signals to a child that a view forks would be taken for ours.
        in_child(Step.SIGNALS, lambda: signal.set_wakeup_fd(-1))
        start_thread(lambda: self._await_signals(read, handlers))

    def obstacle(self) -> str | None:
        if program.pid == os.getpid():
            return None
        return f"the program that runs granian has loaded the code in the master, pid {self.master}; stop and start"

    def start_directory(self, given: str | None) -> StartDirectory:
        # Its processes stay in the directory of the start, which comes first on the module path.
        here = program.origin.real
        told = str(getattr(self._loader, "keywords", {}).get("wd") or "")
        path = told if os.path.isabs(told) and os.path.realpath(told) != here else here
        remedy = "stop it, and start it; granian follows only a --working-dir that it is not started in"
        return program.origin.for_server(path, given or told or None, remedy=remedy)

    def preflight(self) -> dict[str, Any] | None:
        target: tuple[Any, ...] = getattr(self._loader, "args", ())
        options: dict[str, Any] = getattr(self._loader, "keywords", {})
        if reason_of_loss("granian", PREFLIGHT) or len(target) != 1 or not isinstance(target[0], str):
            return None
        place = str(options.get("wd") or "")
        wanted = f"{target[0]!r}, wd=Path({place!r}) if {place!r} else None, factory={bool(options.get('factory'))}"
        code = f"from pathlib import Path; from granian._internal import load_target; load_target({wanted})"
        command = [sys.executable, "-c", code]
        return {"command": command, "directory": program.origin.real, "environment": program.environment}

    def set_accepting(self, accept: bool) -> bool:
        if accept:
            for sock in listening():
                welcome_connections(sock)
            return True
        refused = [not _is_shared(sock) and refuse_new_connections(sock) for sock in listening()]
        return bool(refused) and all(refused)

    def _listening(self) -> Iterator[socket.socket]:
        return listening()

    def _await_signals(self, descriptor: int, handlers: dict[signal.Signals, Any]) -> None:
        while signums := os.read(descriptor, 64):
            for signum in signums:
                if signum in handlers:
                    self.set_accepting(False)
                    self._hand_on(handlers[signal.Signals(signum)], signum)

    def _hand_on(self, handler: Any, signum: int) -> None:
        _wait_while(self.waiting, BACKLOG_TIMEOUT)
        # At the signal it closes the connections whose request it has not begun to read.
        ports = self._ports()
        _wait_while(lambda: unread_connections(ports), UNREAD_TIMEOUT)
        handler(signum, None)


def _is_shared(listener: socket.socket) -> bool:
    """Whether all workers accept at this socket, as at a Unix socket, and before granian 2.8 at every socket."""
    return listener.family == socket.AF_UNIX or not OWN_SOCKETS


def _heard(signum: int, frame: FrameType | None) -> None:
    """A handler that does nothing; without one Python would not write the signal to the descriptor."""


def _wait_while(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while condition() and time.monotonic() < deadline:
        time.sleep(BACKLOG_INTERVAL)
