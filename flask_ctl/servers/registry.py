"""The HTTP servers that are known, and their adapters: one module a server, each only what differs.

An adapter is a module with

- `SERVER`, the name of its server's module, at whose import it is armed;
- `arm(host)`, which makes that server call `host.begin` when it begins to serve;
- `serve(app, host, port, threads)`, which serves by it, for ``flask-ctl run --server``; if the process has to be made
  ready for that before the app is imported, also `prepare()`. For servers of several processes there is `launch`.

It may import its server, because it is loaded only when the server has been. Other packages add theirs by the
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
from .importing import when_imported

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
from .base import Host


class Known(NamedTuple):
    """A server's adapter, its own module, and the package that has it."""

    adapter: str
    server: str
    package: str


ADAPTERS = {
    "werkzeug": Known("flask_ctl.servers.werkzeug", "werkzeug.serving", "werkzeug"),
    "waitress": Known("flask_ctl.servers.waitress", "waitress.server", "waitress"),
    "cheroot": Known("flask_ctl.servers.cheroot", "cheroot.server", "cheroot"),
    "pywsgi": Known("flask_ctl.servers.pywsgi", "gevent.pywsgi", "gevent"),
    "gunicorn": Known("flask_ctl.servers.gunicorn", "gunicorn.workers.base", "gunicorn"),
    "uwsgi": Known("flask_ctl.servers.uwsgi", "uwsgi", "pyuwsgi"),
    "granian": Known("flask_ctl.servers.granian", "granian.server.mp", "granian"),
}
"""By the names of the servers, as `run --server` takes them and `status` shows them."""


GROUP = "flask_ctl.adapters"
"""The entry points of adapters that other packages bring."""

WORKERS: dict[str, Callable[[], bool]] = {}
"""Servers that serve from worker processes, by name: whether this process is one of theirs."""

logger = logging.getLogger("flask_ctl")


def server_names() -> list[str]:
    """The names of the servers that are known."""
    return list({**ADAPTERS, **_brought()})


def load_adapter(name: str) -> Any:
    """The module for a server's name. Raises ConfigurationError for one that is not known, or not installed."""
    if name in ADAPTERS:
        known = ADAPTERS[name]
        try:
            # First, because its import may arm the adapter, which must not be half loaded then.
            importlib.import_module(known.server)
            return importlib.import_module(known.adapter)
        except ModuleNotFoundError as error:
            if error.name is None or not known.server.startswith(error.name):
                raise
            raise ConfigurationError(f"{name} is not installed; try: pip install {known.package}") from None
    try:
        return _brought()[name].load()
    except KeyError:
        raise ConfigurationError(f"no server is called {name!r}; there are: {', '.join(server_names())}") from None


def prepare_server(name: str) -> None:
    """Make this process ready to be served by that server, before the app is imported. Raises like `load_adapter`."""
    adapter = load_adapter(name)
    if hasattr(adapter, "prepare"):
        adapter.prepare()


def arm_all(host: Host) -> None:
    """Make every known server, whether it is imported already or later, tell `host` when it begins to serve."""
    for name, known in ADAPTERS.items():
        _arm_once(name, host, known.server)
    for name in _brought():
        _arm_once(name, host)


def server_of_workers() -> str | None:
    """The name of the server that this process is a worker of, None if it is of none."""
    return next((name for name, is_worker in WORKERS.items() if is_worker()), None)


_armed: set[str] = set()


def _arm_once(name: str, host: Host, server: str | None = None) -> None:
    if name in _armed:
        return
    _armed.add(name)

    def arm() -> None:
        with _complaining(name):
            load_adapter(name).arm(host)

    with _complaining(name):
        when_imported(server or load_adapter(name).SERVER, arm)


@contextlib.contextmanager
def _complaining(name: str) -> Iterator[None]:
    """An adapter that does not work, or not with this version of its server, costs a warning; the app serves."""
    try:
        yield
    except Exception as error:
        logger.warning("apps that %s serves are not under control: %s: %s", name, type(error).__name__, error)


@functools.cache
def _brought() -> dict[str, EntryPoint]:
    # Loading this costs a client more than all else together.
    from importlib.metadata import entry_points

    return {found.name: found for found in entry_points(group=GROUP) if found.name not in ADAPTERS}
