"""The command lines of servers that start processes of their own, for ``flask-ctl run --server``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from ..errors import ConfigurationError
from ..system.activation import passed_names
from ..system.addresses import OFF, from_environment
from ..system.sd_notify import held_back
from .urls import host_and_port


class Program(NamedTuple):
    """A command line, and its environment."""

    command: list[str]
    environment: dict[str, str]


def server_program(
    name: str, target: str, host: str, port: int, threads: int | None, directory: str | None = None
) -> Program | None:
    """The command that serves `target`, a ``module:name``; None for a server that runs in this process.

    At a reload it changes to `directory` again, if the server can. Raises ConfigurationError if it is not installed.
    """
    if name not in _PROGRAMS:
        return None
    package, make = _PROGRAMS[name]
    _check_activation(name)
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(f"{name} is not installed; try: pip install {package}")
    program = make(target, host, port, threads)
    if directory is not None and name in _WITH_CHDIR:
        program.command.extend(["--chdir", directory])
    environment = {**os.environ, **program.environment}
    # Without control nobody but the server can tell the manager that it is ready.
    return Program(program.command, environment if OFF in from_environment() else held_back(environment))


def _check_activation(name: str) -> None:
    """gunicorn takes all sockets that systemd passes, whatever their names, for HTTP; the others take none."""
    passed = passed_names(os.environ)
    if passed and (name != "gunicorn" or set(passed) != {"http"}):
        instead = "a socket named http, and no other one" if name == "gunicorn" else "no sockets of systemd"
        raise ConfigurationError(f"{name} can be given {instead}, not {', '.join(passed)}")


def refuse_program(name: str) -> None:
    """Raises ConfigurationError for a server that does not serve in this process."""
    if name in _PROGRAMS:
        raise ConfigurationError(
            f"{name} starts processes of its own, which load the app; start it by its own command,"
            f" or by: flask-ctl run --server {name}"
        )


def _gunicorn(target: str, host: str, port: int, threads: int | None) -> Program:
    from gunicorn.config import KNOWN_SETTINGS

    command = [sys.executable, "-m", "gunicorn", "--bind", host_and_port(host, port)]
    if any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS):
        # gunicorn's own control socket needs a thread in the master, which forks.
        command.append("--no-control-socket")
    return Program([*command, *_option("--threads", threads), target], {})


def _uwsgi(target: str, host: str, port: int, threads: int | None) -> Program:
    command = [sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()", "--master", "--need-app", "--die-on-term"]
    command += ["--http-socket", host_and_port(host, port), *_option("--threads", threads), "--module", target]
    # At a reload uWSGI executes itself by an interpreter that does not find the virtual environment.
    places = [_place_of(name) for name in ("pyuwsgi", "flask_ctl", target.partition(".")[0])]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return Program(command, {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, [*known, *places])))})


def _granian(target: str, host: str, port: int, threads: int | None) -> Program:
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", host, "--port", str(port)]
    return Program([*command, *_option("--blocking-threads", threads), target], {})


def _place_of(module: str) -> str:
    """The directory that holds a module or a package, as ``sys.path`` has it; "" if there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    place = os.path.dirname(spec.origin)
    return place if spec.submodule_search_locations is None else os.path.dirname(place)


def _option(name: str, value: int | None) -> list[str]:
    return [] if value is None else [name, str(value)]


_PROGRAMS: dict[str, tuple[str, Callable[[str, str, int, int | None], Program]]] = {
    "gunicorn": ("gunicorn", _gunicorn),
    "uwsgi": ("pyuwsgi", _uwsgi),
    "granian": ("granian", _granian),
}
"""The module to look for, and the function that makes the command."""

_WITH_CHDIR = ("gunicorn", "uwsgi")
"""Servers that change to a given directory at a reload."""
