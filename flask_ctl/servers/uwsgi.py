"""uWSGI: its workers register after their fork, or when they have loaded the app themselves (``--lazy-apps``).

The module `uwsgi` exists only inside the server.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..errors import ConfigurationError
from ..system import logs
from ..system.directory import StartDirectory
from ..system.native import start_thread
from ..system.program import program
from ..system.sockets import refuse_new_connections, welcome_connections
from .attributes import CONTROL, Attributes, lost_without
from .base import Host, PreforkWorker
from .open_sockets import begun_connections
from .registry import WORKERS
from .urls import url

LOAD_INTERVAL = 0.02
"""Seconds between two looks at whether a worker has loaded its app."""

logger = logging.getLogger("flask_ctl")

ATTRIBUTES: Attributes = {CONTROL: {"uwsgi": "masterpid numproc opt sockets version worker_id workers"}}

SIGNALS = {"stop": signal.SIGINT, "fast": signal.SIGINT, "reload": signal.SIGHUP, "recycle": signal.SIGHUP}
CHEAPER = "with --cheaper uWSGI starts and ends workers as it needs them, at most as many as --processes says"


def arm(host: Host) -> None:
    """Make every worker of this uWSGI register with `host` when it begins to serve, if uWSGI runs this process."""
    uwsgi = sys.modules["uwsgi"]
    if not hasattr(uwsgi, "worker_id"):
        return
    WORKERS["uwsgi"] = lambda: True
    if lost_without("pyuwsgi", ATTRIBUTES):
        return
    if uwsgi.worker_id() > 0:
        start_thread(lambda: _begin_when_loaded(host, uwsgi))
    else:
        _after_fork(uwsgi, lambda: _begin(host, uwsgi))


def _begin_when_loaded(host: Host, uwsgi: Any) -> None:
    while not uwsgi.workers()[uwsgi.worker_id() - 1]["apps"]:
        time.sleep(LOAD_INTERVAL)
    _begin(host, uwsgi)


def _begin(host: Host, uwsgi: Any) -> None:
    # Mules and spoolers are forked, too.
    if uwsgi.worker_id() > 0:
        worker = UwsgiWorker(uwsgi)
        try:
            host.register_worker(worker, None)
        except ConfigurationError as error:
            # An exception in a hook is only printed, and uWSGI serves.
            logger.error("%s; uWSGI ends", error.message)
            logs.flush()
            try:
                os.kill(worker.master, worker.signals["stop"])
            finally:
                # The master interrupts us at once.
                os._exit(1)


def _after_fork(uwsgi: Any, function: Callable[[], Any]) -> None:
    """Call it in every process that uWSGI forks, after what the app wants to be called there."""
    if uwsgi.masterpid() and importlib.util.find_spec("uwsgidecorators") is not None:
        # An import by the app later would replace the hook.
        import uwsgidecorators  # noqa: F401
    before = getattr(uwsgi, "post_fork_hook", None)

    def hook() -> None:
        try:
            if before is not None:
                before()
        finally:
            # uWSGI serves all the same if the app's own function fails.
            function()

    uwsgi.post_fork_hook = hook


class UwsgiWorker(PreforkWorker):
    """One worker process."""

    name = "uwsgi"
    drains_by_itself = False
    instead: ClassVar[Mapping[str, str]] = {"add": CHEAPER, "remove": CHEAPER}

    def __init__(self, uwsgi: Any) -> None:
        # With --cheaper and the like it starts and ends workers as it needs them.
        wanted = 0 if any(name.startswith("cheap") for name in uwsgi.opt) else uwsgi.numproc
        super().__init__(uwsgi.version.decode(), uwsgi.masterpid() or os.getpid(), wanted, SIGNALS)
        self._uwsgi = uwsgi
        # The master is this very process, if there is none.
        self._alone = not uwsgi.masterpid()
        self._sockets = [socket.socket(fileno=os.dup(descriptor)) for descriptor in uwsgi.sockets]
        self.runs_exit_handlers = "skip-atexit" not in uwsgi.opt

    @property
    def listeners(self) -> list[str]:
        scheme = "http" if "http-socket" in self._uwsgi.opt else "uwsgi"
        return [url(sock.getsockname(), scheme) for sock in self._sockets]

    def has_master(self) -> bool:
        return self._alone or super().has_master()

    def obstacle(self) -> str | None:
        if self._alone:
            return "uWSGI runs without a master; give it --master"
        if _is_python(self.master) and sys.prefix != sys.base_prefix and not self._will_be_found():
            place = os.path.dirname(_origin("pyuwsgi"))
            return (
                "uWSGI executes itself anew by the interpreter outside of the virtual environment, which does not find"
                f" pyuwsgi, and the server would end; start it with PYTHONPATH={place}"
            )
        return None

    def start_directory(self, given: str | None) -> StartDirectory:
        # At a reload it changes to the resolved directory of its start, and then to that of --chdir.
        told = _text(self._uwsgi.opt.get("chdir"))
        path = told if isinstance(told, str) and os.path.isabs(told) else program.origin.real
        return program.origin.for_server(path, given, remedy="stop it, and start it with --chdir {link}")

    def preflight(self) -> dict[str, Any] | None:
        options = {name: _text(value) for name, value in self._uwsgi.opt.items()}
        file = options.get("wsgi-file") or options.get("file")
        module = options.get("module") or options.get("wsgi")
        if not isinstance(file or module, str):
            return None
        target = ["file", file] if file else ["module", str(module)]
        interpreter = f"/proc/{self.master}/exe"
        interpreter = os.readlink(interpreter) if _is_python(self.master) else _beside(sys.prefix)
        home = options.get("virtualenv") or options.get("home") or options.get("venv") or ""
        command = [interpreter, "-c", _PREFLIGHT, *target, str(home), *_list(options.get("pythonpath"))]
        directory = self.start_directory(None).path
        return {"command": command, "directory": directory, "environment": program.environment}

    def set_accepting(self, accept: bool) -> bool:
        if accept:
            for sock in self._sockets:
                welcome_connections(sock)
            return True
        # With a router of uWSGI's own in front, connections have been accepted already.
        if any(name in self._uwsgi.opt for name in ("http", "https")):
            return False
        if any(sock.family == socket.AF_UNIX for sock in self._sockets):
            return False
        refused = [refuse_new_connections(sock) for sock in self._sockets]
        return all(refused)

    def _listening(self) -> list[socket.socket]:
        return self._sockets

    def begun(self) -> int:
        # uWSGI closes each connection after its answer: one that has sent something waits for it.
        return begun_connections(self._ports())

    def _will_be_found(self) -> bool:
        paths = program.environment.get("PYTHONPATH", "").split(os.pathsep)
        return os.path.realpath(os.path.dirname(_origin("pyuwsgi"))) in map(os.path.realpath, filter(None, paths))


_PREFLIGHT = """
import importlib, os, runpy, site, sys, types
kind, target, home, *paths = sys.argv[1:]
sys.path[:0] = [*paths, os.getcwd()]
if home:
    site.addsitedir(f"{home}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
sys.argv[:] = ["uwsgi"]
class Stub(types.ModuleType):
    opt, numproc, sockets, applications = {}, 1, [], {}
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: 0
    def masterpid(self):
        return 1
try:
    import uwsgi
except ImportError:
    sys.modules["uwsgi"] = Stub("uwsgi")
if kind == "file":
    runpy.run_path(target, run_name="uwsgi_file")
else:
    name, _, attribute = target.partition(":")
    module = importlib.import_module(name)
    if attribute and not attribute.endswith(")"):
        getattr(module, attribute)
"""
"""Load the app as uWSGI does. Outside of the server there is no module `uwsgi`; whatever an app asks of it is 0."""


def _is_python(pid: int) -> bool:
    """Whether the process runs an interpreter that has loaded uWSGI, and not uWSGI's own program."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("python")
    except OSError:
        return False


def _origin(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return "" if spec is None or spec.origin is None else spec.origin


def _beside(prefix: str) -> str:
    return os.path.join(prefix, "bin", f"python{sys.version_info.major}")


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _list(value: Any) -> list[str]:
    """The values of an option that may be given several times."""
    return [] if value is None else value if isinstance(value, list) else [value]
