"""Every way to serve that comes under control from `Control(app)` alone: one table, for all tests of servers."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pyuwsgi
from gunicorn.config import KNOWN_SETTINGS
from harness import MODES, PYTHON

import flask_ctl

SCRIPTS = pathlib.Path(sys.executable).parent


@dataclass(frozen=True)
class Row:
    """A server, the way to start it, and what is not expected of it."""

    name: str
    """As `status` tells it."""
    command: list[str]
    """Serves the program `sample` in the current directory; ``{port}`` stands for a free port."""
    at_once: int = 3
    """Requests that it handles at the same time; 3 stands for more, too."""
    workers: int = 0
    """0 for one process that serves by itself."""
    keeps_alive: bool = True
    """Whether an answered connection stays open."""
    preloaded: bool = False
    """Whether new workers have the code of the master, so that it can't be reloaded."""
    reloader: bool = False
    """Whether the process that was started only watches over the one that serves."""
    says: tuple[str, ...] = ("on_stop", "after run", "atexit")
    """What `sample` prints at its end, in this order, where it serves by itself."""
    runs_atexit: bool = True
    """Whether its workers end as interpreters do."""
    hears_term: str | None = None
    """What it prints when it has heard SIGTERM, where that is its own and lets requests end."""
    env: dict[str, str] = field(default_factory=dict)


def _sample(*how: str) -> list[str]:
    return [*PYTHON, "sample.py", *how]


HAS_SOCKET = any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS)
"""Whether this gunicorn has a control socket of its own."""

NO_SOCKET = ["--no-control-socket"] if HAS_SOCKET else []


def gunicorn(workers: int, *options: str, target: str = "sample:app", **more: Any) -> Row:
    command = [sys.executable, "-m", "gunicorn", *NO_SOCKET, "-b", "127.0.0.1:0", "-w", str(workers)]
    return Row(
        "gunicorn",
        [*command, *options, target],
        workers=workers,
        preloaded="--preload" in options,
        hears_term="Handling signal: term",
        **more,
    )


_GTHREAD = ["-k", "gthread", "--threads", "4"]
_GEVENT = ["-k", "gevent"]

FINDS_ITSELF = {"PYTHONPATH": f"{pathlib.Path(pyuwsgi.__file__).parent}:{pathlib.Path(flask_ctl.__file__).parents[1]}"}
"""For uWSGI, which leaves the virtual environment when it executes itself anew at a reload."""


def uwsgi(*options: str, at_once: int = 2) -> Row:
    # It knows its socket by the port at a reload, so it can't be 0.
    command = [str(SCRIPTS / "uwsgi"), "--http-socket", "127.0.0.1:{port}", "--master", "--processes", "2"]
    command = [*command, "--need-app", *options]
    return Row("uwsgi", command, at_once=at_once, workers=2, keeps_alive=False, env=FINDS_ITSELF)


def granian(workers: int, *options: str, target: str = "sample:app") -> Row:
    command = [str(SCRIPTS / "granian"), "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--workers", str(workers), "--blocking-threads", "4", "--respawn-failed-workers"]
    # So long after a new worker has been started the old one ends, whether that serves or not.
    command += ["--respawn-interval", "2"]
    return Row(
        "granian", [*command, *options, target], workers=workers, runs_atexit=False, hears_term="Shutting down granian"
    )


SERVERS = {
    "werkzeug": Row("werkzeug", _sample(), keeps_alive=False),
    "waitress": Row("waitress", _sample("waitress")),
    "cheroot": Row("cheroot", _sample("cheroot")),
    "pywsgi": Row("pywsgi", _sample("pywsgi", "patched")),
    "pywsgi, patched late": Row("pywsgi", _sample("pywsgi", "patched late")),
    "gunicorn sync": gunicorn(2, keeps_alive=False, at_once=2),
    "gunicorn sync, 1 worker": gunicorn(1, keeps_alive=False, at_once=1),
    "gunicorn sync, 4 workers": gunicorn(4, keeps_alive=False),
    "gunicorn gthread": gunicorn(2, *_GTHREAD),
    "gunicorn gthread, 1 worker": gunicorn(1, *_GTHREAD),
    "gunicorn gevent": gunicorn(2, *_GEVENT),
    "gunicorn sync, preload": gunicorn(2, "--preload", keeps_alive=False, at_once=2),
    "gunicorn gthread, preload": gunicorn(2, "--preload", *_GTHREAD),
    "gunicorn gevent, preload": gunicorn(2, "--preload", *_GEVENT),
    "uwsgi": uwsgi("--module", "sample:app"),
    "uwsgi, threads": uwsgi("--threads", "2", "--wsgi-file", "sample.py", "--callable", "app", at_once=3),
    "uwsgi, lazy-apps": uwsgi("--lazy-apps", "--module", "sample:app"),
    "granian": granian(2),
    "granian, 1 worker": granian(1),
}

_SAYS = {
    "app.run debug": ("on_stop", "atexit", "atexit"),
    "flask run": ("on_stop", "atexit"),
    "flask run --debug": ("on_stop", "atexit", "atexit"),
    "flask-ctl run": ("on_stop", "atexit"),
}
"""Where the program does not go on after it has served; a reloader has loaded the program, too."""

SERVERS |= {
    mode: Row(
        "werkzeug",
        command,
        keeps_alive=False,
        at_once=1 if mode == "app.run unthreaded" else 3,
        reloader="debug" in mode,
        says=_SAYS.get(mode, Row.says),
    )
    for mode, command in MODES.items()
    if mode != "app.run"  # which is "werkzeug"
}

REPRESENTATIVES = [
    "werkzeug",
    "waitress",
    "cheroot",
    "pywsgi",
    "gunicorn sync",
    "gunicorn gevent",
    "uwsgi",
    "granian",
]
"""One for each mechanism; the others differ from one of these in a few properties, those that all are asked for."""

FIRSTS = ["werkzeug", "gunicorn sync"]
"""A server of a single process and a server with workers, for tests that cost much and show the same elsewhere."""


def _any(row: Row) -> bool:
    return True


def all_rows(suits: Callable[[Row], bool] = _any, quick: list[str] = REPRESENTATIVES) -> pytest.MarkDecorator:
    """Run a test on each row that suits; `make test` takes those in `quick`."""
    names = [name for name, row in SERVERS.items() if suits(row)]
    return _rows(names, quick)


def each_mechanism(suits: Callable[[Row], bool] = _any, quick: list[str] | None = None) -> pytest.MarkDecorator:
    """Run a test on each representative that suits.

    `make test` takes those in `quick`: by default one that serves alone, and one with workers.
    """
    names = [name for name in REPRESENTATIVES if suits(SERVERS[name])]
    firsts = {bool(SERVERS[name].workers): name for name in reversed(names)}
    return _rows(names, list(firsts.values()) if quick is None else quick)


def _rows(names: list[str], quick: list[str]) -> pytest.MarkDecorator:
    rows = [pytest.param(SERVERS[name], id=name, marks=[] if name in quick else [pytest.mark.full]) for name in names]
    return pytest.mark.parametrize("row", rows)


def alone(row: Row) -> bool:
    """Whether it serves from one process."""
    return not row.workers


def with_workers(row: Row) -> bool:
    """Whether other processes serve than the one that was started."""
    return row.workers > 0


def reloadable(row: Row) -> bool:
    """Whether its code can be replaced."""
    return not row.preloaded
