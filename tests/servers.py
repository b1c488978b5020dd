"""Every way to serve that comes under control from `Control(app)` alone: one table, for all tests of servers."""

from __future__ import annotations

import pathlib
import sys
from dataclasses import dataclass, field, replace

import pyuwsgi
from harness import PYTHON

import flask_ctl

SCRIPTS = pathlib.Path(sys.executable).parent


@dataclass(frozen=True)
class Row:
    """A server, the way to start it, and what is not expected of it."""

    name: str
    """As `status` tells it."""
    command: list[str]
    """Serves the program `sample` in the current directory; ``{port}`` stands for a free port."""
    app: str = "sample"
    """`flaskr` has the routes and commands of `sample` added to it."""
    workers: int = 0
    """0 for one process that serves by itself."""
    keeps_alive: bool = True
    """Whether an answered connection stays open."""
    preloaded: bool = False
    """Whether new workers have the code of the master, so that it can't be reloaded."""
    runs_atexit: bool = True
    """Whether its workers end as interpreters do."""
    hears_term: str | None = None
    """What it prints when it has heard SIGTERM, where that is its own and lets requests end."""
    env: dict[str, str] = field(default_factory=dict)


def _sample(*how: str) -> list[str]:
    return [*PYTHON, "sample.py", *how]


def gunicorn(workers: int, *options: str, target: str = "sample:app", **more: bool) -> Row:
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", "127.0.0.1:0", "-w", str(workers)]
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


def uwsgi(*options: str) -> Row:
    # It knows its socket by the port at a reload, so it can't be 0.
    command = [str(SCRIPTS / "uwsgi"), "--http-socket", "127.0.0.1:{port}", "--master", "--processes", "2"]
    return Row("uwsgi", [*command, "--need-app", *options], workers=2, keeps_alive=False, env=FINDS_ITSELF)


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
    "gunicorn sync": gunicorn(2, keeps_alive=False),
    "gunicorn sync, 1 worker": gunicorn(1, keeps_alive=False),
    "gunicorn sync, 4 workers": gunicorn(4, keeps_alive=False),
    "gunicorn gthread": gunicorn(2, *_GTHREAD),
    "gunicorn gthread, 1 worker": gunicorn(1, *_GTHREAD),
    "gunicorn gevent": gunicorn(2, *_GEVENT),
    "gunicorn gevent, 4 workers": gunicorn(4, *_GEVENT),
    "gunicorn sync, preload": gunicorn(2, "--preload", keeps_alive=False),
    "gunicorn gthread, preload": gunicorn(2, "--preload", *_GTHREAD),
    "gunicorn gevent, preload": gunicorn(2, "--preload", *_GEVENT),
    "uwsgi": uwsgi("--module", "sample:app"),
    "uwsgi, threads": uwsgi("--threads", "2", "--wsgi-file", "sample.py", "--callable", "app"),
    "uwsgi, lazy-apps": uwsgi("--lazy-apps", "--module", "sample:app"),
    "granian": granian(2),
    "granian, 1 worker": granian(1),
}
SERVERS |= {f"{name}, flaskr": replace(SERVERS[name], app="flaskr") for name in ("werkzeug", "gunicorn sync")}

ALONE = [name for name, row in SERVERS.items() if not row.workers]
"""Those that serve from one process."""

WITH_WORKERS = [name for name, row in SERVERS.items() if row.workers]
RELOADABLE = [name for name, row in SERVERS.items() if not row.preloaded]
PRELOADED = [name for name, row in SERVERS.items() if row.preloaded]
KEEPING_ALIVE = [name for name, row in SERVERS.items() if row.keeps_alive]
