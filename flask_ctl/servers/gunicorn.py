"""gunicorn: its workers register, in every worker class, when they have loaded the app and are about to serve."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from gunicorn.config import Config
from gunicorn.workers import base

from ..system.directory import StartDirectory
from ..system.preflight import SERVED
from ..system.processes import arguments_of, children_of
from ..system.program import program
from ..system.sockets import refuse_new_connections, welcome_connections
from .attributes import CONTROL, Attributes, lost_without, note
from .base import Host, PreforkWorker
from .checkconfig import written
from .open_sockets import begun_connections
from .registry import WORKERS
from .urls import url

ABORTING = ("handle_abort", "handle_quit")
"""The workers' handlers of SIGABRT, which is the master's by --timeout, and SIGQUIT: they raise SystemExit."""

ATTRIBUTES: Attributes = {
    CONTROL: {base.Worker: "app booted cfg ppid sockets wsgi", Config: "address is_ssl set settings"},
    "a request that gunicorn itself ends counts as ended by the app": {base.Worker: " ".join(ABORTING)},
}

MASTER_TITLE = "gunicorn: master ["

SIGNALS = {
    "stop": signal.SIGTERM,
    "fast": signal.SIGQUIT,
    "reload": signal.SIGHUP,
    "add": signal.SIGTTIN,
    "remove": signal.SIGTTOU,
    "recycle": signal.SIGTERM,
}


def arm(host: Host) -> None:
    """Make every gunicorn worker of this process register with `host` when it begins to serve."""
    WORKERS["gunicorn"] = lambda: "gunicorn.arbiter" in sys.modules
    if CONTROL not in lost_without("gunicorn", ATTRIBUTES):
        base.Worker.booted = _Booted(host)


class _Booted:
    """A descriptor for the attribute that gunicorn sets in every worker right before its loop."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __get__(self, worker: Any, owner: Any = None) -> Any:
        return self if worker is None else worker.__dict__.get("booted", False)

    def __set__(self, worker: Any, booted: bool) -> None:
        if booted:
            self._host.register_worker(GunicornWorker(worker), worker.wsgi)
        worker.__dict__["booted"] = booted


class GunicornWorker(PreforkWorker):
    """One worker process."""

    name = "gunicorn"

    def __init__(self, worker: Any) -> None:
        import gunicorn

        super().__init__(gunicorn.__version__, worker.ppid, worker.cfg.workers, SIGNALS)
        self._worker = worker
        # Version 25 and older have none.
        if "control_socket" in worker.cfg.settings and not worker.cfg.control_socket_disable:
            note(
                "gunicorn has a control socket of its own, too, by which its users can stop and reload it",
                "start gunicorn with --no-control-socket, unless you use its gunicornc",
            )
        # Not gunicorn's wrappers, which lose what they wrap when they are closed.
        self._sockets = [getattr(sock, "sock", sock) for sock in worker.sockets]
        names = [sock.getsockname() for sock in self._sockets]
        self._tcp_ports = {name[1] for name in names if isinstance(name, tuple)}
        self._on_unix_socket = any(not isinstance(name, tuple) for name in names)
        self._keepalive = worker.cfg.keepalive
        if has_taken_sockets(worker.ppid, program.environment):
            self.activated = ["http"]
        self._urls = [url(name, "https" if worker.cfg.is_ssl else "http") for name in names]

    @property
    def listeners(self) -> list[str]:
        return self._urls

    def obstacle(self) -> str | None:
        if program.pid == os.getpid():
            return None
        how = "--preload" if self._worker.cfg.preload_app else "the program that runs gunicorn"
        return (
            f"{how} has loaded the code in the master, pid {self.master}, whose new workers would have the same;"
            f" start a new master by `kill -USR2 {self.master}` and stop this one then, or stop and start"
        )

    def start_directory(self, given: str | None) -> StartDirectory:
        # The master changes there again at a reload. The default is the start's directory as the shell names it.
        remedy = "stop it, and start it with --chdir {link}"
        return program.origin.for_server(self._worker.cfg.chdir, given, remedy=remedy)

    def preflight(self) -> dict[str, Any] | None:
        from gunicorn.app.wsgiapp import WSGIApplication

        if not isinstance(self._worker.app, WSGIApplication):
            return None
        environment = dict(program.environment)
        environment["GUNICORN_CMD_ARGS"] = f"{environment.get('GUNICORN_CMD_ARGS', '')} --check-config".strip()
        environment[SERVED] = json.dumps(written(self._worker.cfg))
        # Not the directory of --chdir: that option, and the file of --config, may be relative.
        directory = self._worker.cfg.settings["chdir"].default
        return {"command": program.command, "directory": directory, "environment": environment}

    def set_accepting(self, accept: bool) -> bool:
        if accept:
            # This undoes only what was changed before, by this hub or by one that was killed.
            self._set("keepalive", self._keepalive)
            if not self._shares_listeners():
                for sock in self._sockets:
                    welcome_connections(sock)
            return True
        self._set("keepalive", 0)
        if self._on_unix_socket or self._shares_listeners():
            return False
        refused = [refuse_new_connections(sock) for sock in self._sockets]
        return all(refused)

    def _listening(self) -> list[socket.socket]:
        return self._sockets

    def _ports(self) -> set[int]:
        # The worker closes its sockets before its connections.
        return self._tcp_ports

    def begun(self) -> int:
        # Not at the top: gunicorn's package may be in the middle of its import.
        from gunicorn.workers.sync import SyncWorker

        # Only these workers close each connection after its answer: one that has sent something waits for it.
        return begun_connections(self._tcp_ports) if isinstance(self._worker, SyncWorker) else 0

    def is_abort(self, error: BaseException | None) -> bool:
        # A view may call sys.exit by itself.
        return isinstance(error, SystemExit) and any(map(_is_handler, _frames(error)))

    def extend_grace(self, seconds: float) -> None:
        self._set("graceful_timeout", max(self._worker.cfg.graceful_timeout, int(seconds + 1)))

    def _set(self, name: str, value: Any) -> None:
        """Change a setting of this worker alone."""
        if getattr(self._worker.cfg, name) != value:
            self._worker.cfg.set(name, value)

    def _shares_listeners(self) -> bool:
        """Whether another process keeps these sockets when this master ends: systemd, or another master (USR2)."""
        if self.activated:
            return True
        former = os.environ.get("GUNICORN_PID")
        if former is not None and os.path.exists(f"/proc/{former}"):
            return True
        return any(is_next_master(pid, self.master) for pid in children_of(self.master))


def has_taken_sockets(master: int, environment: Mapping[str, str]) -> bool:
    """Whether a master has taken sockets that systemd had passed to it."""
    if "LISTEN_PID" in environment:
        return environment["LISTEN_PID"] == str(master)
    # Where the environment of the start is lost, this is the only variable of the three that a master leaves.
    return "LISTEN_FDNAMES" in environment


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _is_handler(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
    return module.startswith("gunicorn.workers.") and frame.f_code.co_name in ABORTING


def is_next_master(pid: int, master: int) -> bool:
    """Whether a child of a master is a new master (USR2), and not a worker."""
    if f"GUNICORN_PID={master}".encode() in _environ(pid):
        return True
    # With the package setproctitle there is a title instead of the command line and the environment.
    return "".join(arguments_of(pid)[:1]).startswith(MASTER_TITLE)


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
