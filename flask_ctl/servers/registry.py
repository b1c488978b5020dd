"""The table of HTTP servers and their adapters: one module for each server, with what differs.

An adapter is a module with

- `SERVER`, the name of the server's module, after whose import `arm` is called;
- `arm(host)`, which patches the server to call `host.register`, or `host.register_worker`, when it begins to serve;
- `serve(app, host, port, threads)`, for ``flask-ctl run --server``, and `prepare()` if the process has to be made ready
  before the app is imported. Servers of several processes have a row in `launch` instead.

An adapter may import its server, because it is loaded only after the server. Other packages add adapters by the
entry-point group GROUP: the name is the server's, the object is such a module, which is loaded at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigurationError
from .attributes import ADAPTER, installed
from .base import Host
from .importing import when_imported

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class AdapterSpec(NamedTuple):
    """The modules of an adapter and of its server, and the package that installs the server."""

    adapter: str
    server: str
    package: str


ADAPTERS = {
    "werkzeug": AdapterSpec("flask_ctl.servers.werkzeug", "werkzeug.serving", "werkzeug"),
    "waitress": AdapterSpec("flask_ctl.servers.waitress", "waitress.server", "waitress"),
    "cheroot": AdapterSpec("flask_ctl.servers.cheroot", "cheroot.server", "cheroot"),
    "pywsgi": AdapterSpec("flask_ctl.servers.pywsgi", "gevent.pywsgi", "gevent"),
    "gunicorn": AdapterSpec("flask_ctl.servers.gunicorn", "gunicorn.workers.base", "gunicorn"),
    "uwsgi": AdapterSpec("flask_ctl.servers.uwsgi", "uwsgi", "pyuwsgi"),
    "granian": AdapterSpec("flask_ctl.servers.granian", "granian.server.mp", "granian"),
}
"""By the name of the server, as `run --server` takes it and `status` shows it."""

GROUP = "flask_ctl.adapters"
"""The entry-point group of adapters that other packages provide."""

WORKERS: dict[str, Callable[[], bool]] = {}
"""For each server with worker processes that is loaded: whether this process is one of its workers."""

logger = logging.getLogger("flask_ctl")


def server_names() -> list[str]:
    """The names of the servers that have an adapter."""
    return list({**ADAPTERS, **_entry_points()})


def load_adapter(name: str) -> Any:
    """The adapter of a server. Raises ConfigurationError if there is none, or if the server is not installed."""
    if name in ADAPTERS:
        known = ADAPTERS[name]
        try:
            # The server first: its import may arm the adapter, which must be loaded completely by then.
            importlib.import_module(known.server)
            return importlib.import_module(known.adapter)
        except ModuleNotFoundError as error:
            if error.name is None or not known.server.startswith(error.name):
                raise
            raise ConfigurationError(f"{name} is not installed; try: pip install {known.package}") from None
    try:
        return _entry_points()[name].load()
    except KeyError:
        raise ConfigurationError(f"no server is called {name!r}; there are: {', '.join(server_names())}") from None


def prepare_server(name: str) -> None:
    """Make this process ready for that server, before the app is imported. Raises like `load_adapter`."""
    adapter = load_adapter(name)
    if hasattr(adapter, "prepare"):
        adapter.prepare()


def arm_all(host: Host) -> None:
    """Patch every server, now or when it is imported, to register with `host` when it begins to serve."""
    for name, known in ADAPTERS.items():
        _arm_once(name, host, known.server)
    for name in _entry_points():
        _arm_once(name, host)


def server_of_workers() -> str | None:
    """The name of the server that has started this process as a worker; None if there is none."""
    return next((name for name, is_worker in WORKERS.items() if is_worker()), None)


_armed: set[str] = set()


def _arm_once(name: str, host: Host, server: str | None = None) -> None:
    if name in _armed:
        return
    _armed.add(name)

    def arm() -> None:
        with _warn_on_failure(name):
            load_adapter(name).arm(host)

    with _warn_on_failure(name):
        when_imported(server or load_adapter(name).SERVER, arm)


@contextlib.contextmanager
def _warn_on_failure(name: str) -> Iterator[None]:
    """Log a warning, and let the app serve, if an adapter does not work with this version of its server."""
    try:
        yield
    except Exception as error:
        server = installed(ADAPTERS[name].package) if name in ADAPTERS else name
        logger.warning("the adapter of %s does not work: %s: %s: %s", server, type(error).__name__, error, ADAPTER)


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    # Imported late: it takes longer than everything else that a client imports.
    from importlib.metadata import entry_points

    return {found.name: found for found in entry_points(group=GROUP) if found.name not in ADAPTERS}
