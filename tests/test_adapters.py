"""How servers come to be known: when they are imported, now or later, and by whom."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import PYTHON, TIMEOUT, Serve, until

from flask_ctl import ConfigurationError, server_names
from flask_ctl.servers import registry
from flask_ctl.servers.importing import when_imported
from flask_ctl.servers.inflight import InFlight
from flask_ctl.servers.urls import url


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that can be imported, and has not been."""
    (tmp_path / "some_server.py").write_text("class Server:\n    def run(self): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_server"
    sys.modules.pop("some_server", None)


def test_what_is_to_be_called_at_an_import_is_called_once_the_module_is_there(module: str) -> None:
    seen = []
    when_imported(module, lambda: seen.append(sys.modules[module].Server))
    when_imported(module, lambda: seen.append("again"))
    assert module not in sys.modules, "it was imported for this"
    some_server = importlib.import_module(module)
    assert seen == [some_server.Server, "again"]
    when_imported(module, lambda: seen.append("at once"))
    assert seen[2:] == ["at once"]


def test_the_module_is_as_if_nobody_had_looked(module: str) -> None:
    when_imported(module, lambda: None)
    some_server = importlib.import_module(module)
    assert type(some_server.__loader__).__module__ == "_frozen_importlib_external"
    assert some_server.__spec__ is not None
    assert some_server.__spec__.loader is some_server.__loader__
    assert "def run" in inspect.getsource(some_server.Server)


def test_a_module_that_cannot_be_imported_fails_as_ever() -> None:
    when_imported("no_such_server", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="no_such_server"):
        importlib.import_module("no_such_server")


def test_neither_servers_nor_the_part_for_workers_are_imported_for_control(serve: Serve) -> None:
    code = """
import sample, sys
print([name for name in ("waitress", "cheroot", "gevent", "gunicorn", "flask_ctl.workers") if name in sys.modules])
sample.app.run(port=0)
"""
    assert serve(command=[*PYTHON, "-c", code]).lines[0] == "[]"


def test_a_package_without_metadata_as_while_pip_installs_it_has_an_unknown_version(serve: Serve) -> None:
    code = """
from importlib import metadata
def version(name, version=metadata.version):
    if name.replace("_", "-") == "flask-ctl":
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = version
import sample
sample.app.run(port=0)
"""
    assert serve(command=[*PYTHON, "-c", code]).status()["versions"]["flask_ctl"] == "unknown"


def test_a_server_that_was_imported_first_is_noticed_too(serve: Serve) -> None:
    code = "import waitress.server, sample; waitress.serve(sample.app, host='127.0.0.1', port=0)"
    server = serve(command=[*PYTHON, "-c", code])
    assert server.status()["server"]["name"] == "waitress"


@pytest.mark.parametrize("name", ["werkzeug", "waitress", "cheroot", "pywsgi"])
def test_a_program_can_name_its_server(serve: Serve, name: str) -> None:
    server = serve(command=[*PYTHON, "-c", f"import sample; sample.control.run(port=0, server={name!r})"])
    assert server.status()["server"]["name"] == name
    assert "does not work" not in server.output


def test_the_name_of_no_server_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'nonsense'.*werkzeug.*waitress"):
        registry.load_adapter("nonsense")


def test_a_server_that_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "waitress", None)
    monkeypatch.delitem(sys.modules, "flask_ctl.servers.waitress", raising=False)
    with pytest.raises(ConfigurationError, match="waitress is not installed; try: pip install waitress"):
        registry.load_adapter("waitress")


BROUGHT = """
SERVER = "wsgiref.simple_server"

def arm(host):
    print("armed", flush=True)
"""


@pytest.fixture
def bring(tmp_path: pathlib.Path) -> Callable[[str], dict[str, str]]:
    """Install a package that brings an adapter; the environment in which it is installed."""

    def install(code: str) -> dict[str, str]:
        info = pathlib.Path(tmp_path / "bringer-1.0.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bringer\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[flask_ctl.adapters]\nsimple = bringer\n")
        (tmp_path / "bringer.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return install


IMPORT = "import sample; print('before', flush=True); import wsgiref.simple_server; sample.app.run(port=0)"


def test_other_packages_bring_adapters(serve: Serve, bring: Callable[[str], dict[str, str]]) -> None:
    server = serve(command=[*PYTHON, "-c", IMPORT], env=bring(BROUGHT))
    assert server.lines[:2] == ["before", "armed"]


@pytest.mark.parametrize("code", ["1 / 0", "", BROUGHT.replace("print(", "nothing(")], ids=["broken", "empty", "arm"])
def test_one_that_does_not_work_costs_one_warning(
    serve: Serve, bring: Callable[[str], dict[str, str]], code: str
) -> None:
    server = serve(command=[*PYTHON, "-c", IMPORT], env=bring(code))
    until(lambda: "the adapter of simple does not work" in server.output, "the warning")
    assert server.output.count("does not work") == 1
    assert server.get("/") == (200, b"hello")


def test_a_connection_that_has_begun_its_next_request_is_not_idle_for_having_answered_the_last() -> None:
    ended = []
    busy = InFlight(lambda: ended.append(len(busy)))
    busy.begin("connection")
    first = busy.request_of("connection")
    busy.begin("connection")
    busy.done("connection", first)
    assert "connection" in busy
    assert busy.requests() == {busy.request_of("connection")} != {first}
    busy.done("connection")
    assert (len(busy), busy.connections()) == (0, [])
    assert ended == [1, 0]


CLOSED = {
    "waitress": """
import waitress
from flask_ctl.servers.waitress import WaitressServer
server = waitress.create_server(app, host="127.0.0.1", port=0)
adapter = WaitressServer(server._map, [server])
""",
    "cheroot": """
from cheroot.wsgi import Server
from flask_ctl.servers.cheroot import CherootServer
server = Server(("127.0.0.1", 0), app)
server.prepare()
adapter = CherootServer(server)
server.close = server.stop
""",
    "pywsgi": """
from gevent.pywsgi import WSGIServer
from flask_ctl.servers.pywsgi import PywsgiServer
server = WSGIServer(("127.0.0.1", 0), app)
server.init_socket()
adapter = PywsgiServer(server)
""",
}
"""A server of a package, with its adapter, that listens."""


@pytest.mark.parametrize("code", CLOSED.values(), ids=CLOSED)
def test_a_server_whose_loop_has_closed_its_listener_has_no_backlog_and_no_address(code: str) -> None:
    """The control thread may ask at any moment."""
    look = "print(adapter.backlog(), len(adapter.reached_at()))\n"
    program = f"from flask import Flask\napp = Flask('shop'){code}{look}server.close()\n{look}"
    done = subprocess.run([*PYTHON, "-c", program], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr) == ("0 1\n0 0\n", "")


def test_the_names_of_servers() -> None:
    assert {"werkzeug", "waitress", "cheroot", "pywsgi"} <= set(server_names())


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("127.0.0.1", 80), "http://127.0.0.1:80"),
        (("localhost", "80"), "http://localhost:80"),
        (("::1", 80, 0, 0), "http://[::1]:80"),
        ("/run/http", "unix:/run/http"),
        (b"/run/http", "unix:/run/http"),
    ],
)
def test_an_address_is_shown_as_one_url_whichever_server_listens_there(address: Any, shown: str) -> None:
    assert url(address) == shown
