"""A version of a server without an attribute that its adapter uses costs a warning and a feature, never the service."""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
from harness import PYTHON, Serve, Server, get, run_cli, until
from manyworkers import all_there
from servers import SERVERS

from flask_ctl import ControlError
from flask_ctl.servers import reloader, werkzeug
from flask_ctl.servers.attributes import Attributes, lost_without
from flask_ctl.servers.registry import ADAPTERS, load_adapter

SERVERS_FOLDER = pathlib.Path(werkzeug.__file__).parent
MODULES = {
    "werkzeug": ["werkzeug", "werkzeug_server", "reloader"],
    **{name: [name] for name in ADAPTERS if name != "werkzeug"},
}
"""The modules of each adapter."""


@pytest.fixture(autouse=True)
def _inside_of_uwsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that uWSGI makes, with what the adapter wants of it."""
    uwsgi = types.ModuleType("uwsgi")
    names = "masterpid numproc opt sockets version worker_id workers"
    vars(uwsgi).update(dict.fromkeys(names.split(), 0))
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    monkeypatch.setattr("flask_ctl.servers.attributes._reasons", {})


def tables(server: str) -> list[Attributes]:
    """The tables of an adapter."""
    found: list[Attributes] = [load_adapter(server).ATTRIBUTES]
    return [*found, reloader.ATTRIBUTES] if server == "werkzeug" else found


def uses(server: str) -> Iterator[tuple[str, Any, str]]:
    """What is lost, where and without which attribute."""
    for table in tables(server):
        for loss, owners in table.items():
            for owner, names in owners.items():
                for name in names.split():
                    yield loss, owner, name


def without(owner: Any, name: str) -> Any:
    """A copy of a class, module or function in which an attribute or a variable has another name.

    Of a class it has the functions only.
    """
    if isinstance(owner, str):
        owner = sys.modules[owner]
    if isinstance(owner, types.ModuleType):
        module = types.ModuleType(owner.__name__)
        vars(module).update({key: value for key, value in vars(owner).items() if key != name})
        return module
    if isinstance(owner, types.FunctionType):
        return types.FunctionType(renamed(owner.__code__, name), {}, owner.__name__, closure=owner.__closure__)
    functions = [
        types.FunctionType(renamed(value.__code__, name), {}, key, closure=value.__closure__)
        for base in owner.__mro__
        for key, value in vars(base).items()
        if isinstance(value, types.FunctionType) and key != name
    ]
    return type(owner.__name__, (), {function.__name__: function for function in reversed(functions)})


def renamed(code: types.CodeType, name: str) -> types.CodeType:
    def new(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("another" if each == name else each for each in names)

    constants = tuple(renamed(each, name) if isinstance(each, types.CodeType) else each for each in code.co_consts)
    return code.replace(co_names=new(code.co_names), co_varnames=new(code.co_varnames), co_consts=constants)


@pytest.mark.parametrize("server", ADAPTERS)
def test_the_installed_version_has_all_attributes(server: str, caplog: pytest.LogCaptureFixture) -> None:
    assert [lost_without(ADAPTERS[server].package, table) for table in tables(server)] == [set()] * len(tables(server))
    assert caplog.records == []


@pytest.mark.parametrize("server", ADAPTERS)
def test_each_attribute_that_is_missing_is_one_warning_of_server_version_attribute_and_loss(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    package = ADAPTERS[server].package
    for loss, owner, name in uses(server):
        caplog.clear()
        assert lost_without(package, {loss: {without(owner, name): name}}) == {loss}, name
        [record] = caplog.records
        where = owner if isinstance(owner, str) else owner.__name__
        assert record.levelname == "WARNING"
        assert record.getMessage() == f"{package} {version(package)} has no attribute {where}.{name}: {loss}"


def undocumented(module: str) -> set[str]:
    """The attributes of other objects, private or replaced, that a module of an adapter uses and has not made."""
    tree = ast.parse((SERVERS_FOLDER / f"{module}.py").read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    made = {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and node.attr.startswith("_")}
    private = {
        node.attr
        for node in attributes
        if node.attr.startswith("_") and ast.unparse(node.value) not in ("self", "super()", "os", "sys")
    }
    replaced = {
        node.attr
        for node in attributes
        if isinstance(node.ctx, ast.Store) and re.match(r"[A-Za-z]+\.?[A-Z]\w+$|[A-Z]\w+$", ast.unparse(node.value))
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    wrapped = {
        argument.value
        for call in calls
        if ast.unparse(call.func) in ("self._replacements.replace", "getattr")
        for argument in call.args[1:2]
        if isinstance(argument, ast.Constant)
        and isinstance(argument.value, str)
        and (argument.value.startswith("_") or "replace" in ast.unparse(call.func))
    }
    return {name for name in (private - made) | replaced | (wrapped - made) if not name.startswith("__")}


@pytest.mark.parametrize("server", ADAPTERS)
def test_what_an_adapter_reaches_into_is_in_its_table(server: str) -> None:
    listed = {name for _, _, name in uses(server)}
    used = set.union(*map(undocumented, MODULES[server]))
    ours = {"_requested_address", "_given", "_target"}
    # Without it there is no such thread either, as in older versions of cheroot.
    may_be_missing = {"_serve_unservicable"}
    assert used - listed - ours - may_be_missing == set()


Renamed = Callable[[str, str], dict[str, str]]


@pytest.fixture
def with_renamed(tmp_path: pathlib.Path) -> Renamed:
    """The environment with a version of a package in which an attribute has another name everywhere."""

    def copy(package: str, name: str) -> dict[str, str]:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        source = pathlib.Path(spec.origin).parent
        count = 0
        for file in source.rglob("*.*"):
            if file.is_file() and not {"__pycache__", "tests"} & set(file.parts):
                target = tmp_path / package / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                changed = 0
                if file.suffix == ".py":
                    text, changed = re.subn(rf"\b{name}\b", f"new_{name.strip('_')}", file.read_text())
                    count += changed
                if changed:
                    target.write_text(text)
                else:
                    os.symlink(file, target)
        assert count > 0
        return {"PYTHONPATH": str(tmp_path)}

    return copy


def warned(server: Server, package: str, attribute: str) -> None:
    warning = f"{package} {version(package)} has no attribute {attribute}: "
    until(lambda: warning in server.output, lambda: f"{warning} in {server.output}")
    assert "Traceback" not in server.output


UNKNOWN = [
    ("app.run", "werkzeug", "BaseWSGIServer.ssl_context"),
    ("waitress", "waitress", "BaseWSGIServer._map"),
    ("cheroot", "cheroot", "ConnectionManager._from_server_socket"),
    ("pywsgi", "gevent", "WSGIServer._handle"),
]


@pytest.mark.parametrize(("how", "package", "attribute"), UNKNOWN)
def test_without_it_the_app_is_served_and_comes_under_control_at_its_first_request(
    serve: Serve, with_renamed: Renamed, free_port: int, how: str, package: str, attribute: str
) -> None:
    command = [*PYTHON, "-c", PROGRAM, how, str(free_port)]
    server = serve(command=command, env=with_renamed(package, attribute.partition(".")[2]), ready=False)
    until(lambda: answers(free_port), lambda: f"an answer; the output was: {server.output}")
    server.ready()
    assert server.status()["server"]["name"] == "unknown"
    warned(server, package, attribute)
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() in (0, -15)


PROGRAM = """
import sys
import sample
how, port = sys.argv[1], int(sys.argv[2])
if how == "app.run":
    sample.app.run(port=port)
else:
    sample.control.run(port=port, server=how)
"""


def answers(port: int) -> bool:
    try:
        return get(("127.0.0.1", port), "/") == (200, b"hello")
    except OSError:
        return False


NOT_RELOADABLE = [
    ("waitress", "waitress", "Adjustments.unix_socket"),
    ("cheroot", "cheroot", "HTTPServer.resolve_real_bind_addr"),
]


@pytest.mark.parametrize(("row", "package", "attribute"), NOT_RELOADABLE)
def test_without_what_only_a_reload_needs_the_reload_is_refused_with_the_reason(
    serve: Serve, with_renamed: Renamed, row: str, package: str, attribute: str
) -> None:
    server = serve(command=SERVERS[row].command, env=with_renamed(package, attribute.partition(".")[2]))
    warned(server, package, attribute)
    with pytest.raises(ControlError, match=f"{package} {version(package)} has no attribute {attribute}"):
        server.reload()
    assert server.get("/") == (200, b"hello")
    assert server.client().stop()["outcome"] == "drained"


def test_under_a_reloader_that_is_not_known_the_app_is_served_without_control(
    serve: Serve, with_renamed: Renamed, free_port: int
) -> None:
    program = f"import sample; sample.app.run(port={free_port}, debug=True, exclude_patterns=['*'])"
    server = serve(command=[*PYTHON, "-c", program], env=with_renamed("werkzeug", "trigger_reload"), ready=False)
    until(lambda: answers(free_port), lambda: f"an answer; the output was: {server.output}")
    warned(server, "werkzeug", "ReloaderLoop.trigger_reload")
    assert run_cli("status", "--socket", server.socket).returncode == 3
    assert answers(free_port)


def test_gunicorn_serves_without_control_when_its_workers_can_not_be_noticed(
    serve: Serve, with_renamed: Renamed, free_port: int
) -> None:
    command = [word.replace("127.0.0.1:0", f"127.0.0.1:{free_port}") for word in SERVERS["gunicorn sync"].command]
    server = serve(command=command, env=with_renamed("gunicorn", "booted"), ready=False)
    until(lambda: answers(free_port), lambda: f"an answer; the output was: {server.output}")
    warned(server, "gunicorn", "Worker.booted")
    assert run_cli("status", "--socket", server.socket).returncode == 3
    assert answers(free_port)
    server.process.terminate()
    assert server.wait() == 0


@pytest.mark.full
def test_gunicorn_is_under_control_without_its_handlers_of_aborts(serve: Serve, with_renamed: Renamed) -> None:
    row = SERVERS["gunicorn sync"]
    server = all_there(serve(command=row.command, env=with_renamed("gunicorn", "handle_quit")), row.workers)
    warned(server, "gunicorn", "Worker.handle_quit")
    assert server.reload()["generation"] == 2
    assert server.client().stop()["outcome"] == "drained"


@pytest.mark.full
def test_granian_is_not_reloaded_without_a_preflight_that_can_not_be_made(start: Serve, with_renamed: Renamed) -> None:
    server = start(SERVERS["granian"], env=with_renamed("granian", "callback_loader"))
    warned(server, "granian", "wrap_target.callback_loader")
    with pytest.raises(ControlError, match="no preflight is possible"):
        server.reload()
    assert server.get("/") == (200, b"hello")
    assert server.client().stop()["outcome"] == "drained"
