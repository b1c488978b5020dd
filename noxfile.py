"""The tests under other versions of Python and of the packages: `make test-versions`.

`newest` runs the tests of what differs between Pythons, under the newest versions of all packages. `lowest` runs under
the oldest Python that is found, with one group of packages at the lowest versions that pyproject.toml declares: the
framework with what flask-ctl itself needs, one HTTP server, or the package of one extra.
"""

from __future__ import annotations

import glob
import os
import pathlib
import shutil

import nox
from packaging.requirements import Requirement

# The shims of pyenv, on the PATH for each of its versions, refuse all versions that are not selected.
os.environ["PATH"] = os.pathsep.join(
    [*sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin"))), os.environ["PATH"]]
)

PROJECT = nox.project.load_toml(pathlib.Path(__file__).parent / "pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST = next((version for version in PYTHONS if shutil.which(f"python{version}")), PYTHONS[0])

DEPENDENCIES = list(map(Requirement, PROJECT["project"]["dependencies"]))
OPTIONAL = PROJECT["project"]["optional-dependencies"]
SERVERS = {
    found.name: found
    for found in map(Requirement, OPTIONAL["test"])
    if found.name in ("waitress", "cheroot", "gevent", "gunicorn", "pyuwsgi", "granian")
}
EXTRAS = {
    found.name: found for extra in ("cli", "metrics", "top", "fleet") for found in map(Requirement, OPTIONAL[extra])
}

ALWAYS = [
    "test_adapters",
    "test_attributes",
    "test_cli",
    "test_cli_run",
    "test_client",
    "test_commands",
    "test_contributing",
    "test_describe",
    "test_dispatcher",
    "test_extension",
    "test_fleet_agent",
    "test_fork",
    "test_framing",
    "test_jsonrpc",
    "test_lifecycle",
    "test_logs",
    "test_middleware",
    "test_parameters",
    "test_profile",
    "test_reload",
    "test_servers",
    "test_signals",
    "test_transports",
    "test_zeromq",
]
"""What a version of Python, Flask, Werkzeug, click, pyzmq or psutil may break: every server, transport and command."""

OF_SERVER = {
    "waitress": (["test_servers", "test_keepalive"], "waitress"),
    "cheroot": (["test_servers", "test_keepalive"], "cheroot"),
    "gevent": (["test_servers", "test_keepalive", "test_gevent"], "pywsgi or gevent"),
    "gunicorn": (["test_servers", "test_gunicorn"], "gunicorn"),
    "pyuwsgi": (["test_servers", "test_uwsgi"], "uwsgi"),
    "granian": (["test_servers", "test_attributes", "test_flaskr"], "granian"),
}
"""The tests of a server, and the expression (``pytest -k``) that selects its rows there; all of them are run."""

OF_EXTRA = {
    "prompt-toolkit": ["test_shell"],
    "prometheus-client": ["test_metrics", "test_metrics_workers", "test_worker_requests"],
    "textual": ["test_top"],
    "nats-py": ["test_fleet", "test_fleet_agent", "test_fleet_faults", "test_fleet_permissions", "test_fleet_rollout"],
}
"""The tests of what an extra adds; all of them are run."""

nox.needs_version = ">=2026.2"
nox.options.sessions = ["newest", "lowest"]
nox.options.download_python = "never"


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest versions of all packages under one Python."""
    session.install("--upgrade", "--editable", ".[test]")
    _test(session, ALWAYS, "-m", "not full")


@nox.session(python=OLDEST)
@nox.parametrize("group", ["framework", *SERVERS, *EXTRAS], ids=["framework", *SERVERS, *EXTRAS])
def lowest(session: nox.Session, group: str) -> None:
    """The lowest declared versions of Flask, Werkzeug, click, pyzmq and psutil, of one server, or of one extra."""
    lowered = DEPENDENCIES if group == "framework" else [{**SERVERS, **EXTRAS}[group]]
    session.install("--editable", ".[test]", *map(_at_lowest, lowered))
    if group == "framework":
        _test(session, ALWAYS, "-m", "not full")
    elif group in EXTRAS:
        _test(session, OF_EXTRA[group])
    else:
        names, expression = OF_SERVER[group]
        _test(session, names, "-k", expression)


def _at_lowest(requirement: Requirement) -> str:
    [lower] = [each.version for each in requirement.specifier if each.operator == ">="]
    return f"{requirement.name}=={lower}"


def _test(session: nox.Session, names: list[str], *options: str) -> None:
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")
    files = [f"tests/{name}.py" for name in names]
    session.run("python", "-m", "pytest", *options, *session.posargs, *files)
