"""Imports point one way. A test here fails when an arrow turns."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.util
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import flask_ctl

LAYERS = [
    "errors",
    "system",
    "protocol",
    "dispatch",
    "servers",
    "transports",
    "fleet",
    "inspection",
    "lifecycle",
    "client",
    "workers",
    "extension  hub",
    "testing",
    "pytest_plugin",
]
"""The folders, and modules beside them, the lowest first. Each may import only from the rows above its own."""

ALONE = {"protocol": {"errors"}, "system": {"errors"}}
"""What must not know more than this, whatever its row allows."""

WITHOUT_IO = {
    "dispatch.commands",
    "dispatch.dispatcher",
    "dispatch.parameters",
    "errors",
    "lifecycle.state",
    "protocol",
}
IO = {"asyncio", "queue", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}

ONLY_IN = {
    "click": set(),
    "prompt_toolkit": set(),
    "flask_ctl_cli": set(),
    "flask": {"extension", "testing"},
    "werkzeug": {"servers"},
    "waitress": {"servers"},
    "cheroot": {"servers"},
    "gevent": {"servers", "system", "workers"},
    "gunicorn": {"servers"},
    "nats": {"fleet"},
    "psutil": {"system"},
    "zmq": {"client", "transports"},
}
"""Other packages, and the only ones of ours that may import them."""


class Import(NamedTuple):
    """One imported name: where, from which module, and whether when the importing module is loaded."""

    importer: str
    line: int
    module: str
    name: str
    at_load: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.name or self.module} of {self.module}"


def modules_of(package: str) -> dict[str, pathlib.Path]:
    """The files of a package's modules by their full names."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = pathlib.Path(spec.origin).parent
    files = {path.relative_to(root.parent).with_suffix("").parts: path for path in root.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in files.items()}


def imports_of(package: str) -> Iterator[Import]:
    """Every import of a package's modules but those for type checkers."""
    for name, path in modules_of(package).items():
        home = name if path.name == "__init__.py" else name.rpartition(".")[0]
        yield from _imports(ast.parse(path.read_text()), name, home, at_load=True)


def _imports(node: ast.AST, importer: str, home: str, at_load: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(importer, node.lineno, alias.name, "", at_load)
    elif isinstance(node, ast.ImportFrom):
        module = importlib.util.resolve_name("." * node.level + (node.module or ""), home)
        for alias in node.names:
            yield Import(importer, node.lineno, module, alias.name, at_load)
    at_load = at_load and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _imports(child, importer, home, at_load)


OURS = modules_of("flask_ctl")
CLI = modules_of("flask_ctl_cli")
IMPORTS = list(imports_of("flask_ctl"))
CLI_IMPORTS = list(imports_of("flask_ctl_cli"))
ROW = {unit: row for row, units in enumerate(LAYERS) for unit in units.split()}


def target(item: Import) -> str:
    """The module that an import loads: `from . import x` may mean the module x or a name of the package."""
    module = f"{item.module}.{item.name}"
    return module if module in OURS or module in CLI else item.module


def unit(module: str) -> str:
    """The module or package right below flask_ctl that a module belongs to; empty for flask_ctl itself."""
    return module.partition(".")[2].partition(".")[0]


def inside() -> Iterator[tuple[Import, str, str]]:
    """The imports of one unit of flask_ctl by another, with the names of both."""
    for item in IMPORTS:
        ends = unit(item.importer), unit(target(item))
        if target(item) in OURS and ends[0] != ends[1]:
            yield item, *ends


def complain(items: list[Import]) -> str:
    return "\n".join(map(str, items))


def test_every_module_has_its_place_in_the_layers() -> None:
    assert {unit(module) for module in OURS} - {""} == set(ROW)


def test_imports_lead_to_lower_layers_only() -> None:
    wrong = [item for item, importer, imported in inside() if importer and ROW[importer] <= ROW.get(imported, 99)]
    assert not wrong, complain(wrong)


def test_the_package_itself_loads_nothing_of_it_until_a_name_is_used() -> None:
    wrong = [item for item, importer, _ in inside() if not importer]
    assert not wrong, complain(wrong)


@pytest.mark.parametrize("module", ALONE)
def test_the_core_knows_little(module: str) -> None:
    wrong = [item for item, importer, imported in inside() if importer == module and imported not in ALONE[module]]
    assert not wrong, complain(wrong)


@pytest.mark.parametrize("module", sorted(WITHOUT_IO))
def test_the_core_has_neither_sockets_nor_threads_nor_clocks(module: str) -> None:
    wrong = [
        item
        for item in IMPORTS
        if f"{item.importer}.".startswith(f"flask_ctl.{module}.") and item.module.partition(".")[0] in IO
    ]
    assert not wrong, complain(wrong)


@pytest.mark.parametrize("package", ONLY_IN)
def test_another_package_is_imported_only_where_it_belongs(package: str) -> None:
    importers = [item for item in IMPORTS if item.module.partition(".")[0] == package]
    wrong = [item for item in importers if unit(item.importer) not in ONLY_IN[package]]
    assert not wrong, complain(wrong)


PATCHED = {"queue", "select", "selectors", "socket", "subprocess", "threading"}
"""What gevent changes; the control thread, and what it shares with others, takes it from `native`."""

AS_THE_PROGRAM_HAS_IT = (
    "client",
    "extension",
    "servers",
    "system.native",
    "system.processes",
    "system.credentials",
    "system.sockets",
    "system.waiting",
    "system.threads",
    "testing",
    "transports.memory",
)
"""Clients, the loops of HTTP servers, and what looks at the program's own threads."""


def test_the_control_thread_uses_nothing_that_gevent_patches() -> None:
    wrong = [
        item
        for item in IMPORTS
        if item.module in PATCHED and not item.importer.removeprefix("flask_ctl.").startswith(AS_THE_PROGRAM_HAS_IT)
    ]
    assert not wrong, complain(wrong)


def test_only_the_registry_of_forks_asks_python_for_calls_in_a_forked_child() -> None:
    callers = {name for name, path in OURS.items() if "os.register_at_fork(" in path.read_text()}
    assert callers == {"flask_ctl.system.fork"}


@pytest.mark.parametrize("imports", [IMPORTS, CLI_IMPORTS], ids=["flask_ctl", "flask_ctl_cli"])
def test_no_modules_import_each_other_while_they_are_loaded(imports: list[Import]) -> None:
    graph: dict[str, set[str]] = {}
    for item in imports:
        if item.at_load and target(item) != item.importer:
            graph.setdefault(item.importer, set()).add(target(item))
    graphlib.TopologicalSorter(graph).prepare()


def test_the_command_line_knows_only_public_names() -> None:
    used = [item for item in CLI_IMPORTS if item.module.partition(".")[0] == "flask_ctl"]
    assert used
    wrong = [item for item in used if item.module != "flask_ctl" or item.name not in flask_ctl.__all__]
    assert not wrong, complain(wrong)


# Public names


def for_type_checkers() -> dict[str, str]:
    """The names that flask_ctl imports for type checkers, and their modules."""
    tree = ast.parse(OURS["flask_ctl"].read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {
        alias.name: str(statement.module)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_the_list_of_public_names_is_sorted_and_without_doubles() -> None:
    assert flask_ctl.__all__ == sorted(set(flask_ctl.__all__))


@pytest.mark.parametrize("name", flask_ctl.__all__)
def test_every_public_name_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(f"flask_ctl.{for_type_checkers()[name]}")
    assert getattr(flask_ctl, name) is getattr(module, name)
    assert name in dir(flask_ctl)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    assert for_type_checkers() == flask_ctl._MODULES
    assert set(flask_ctl._MODULES) == set(flask_ctl.__all__)


def test_what_errors_lists_is_there() -> None:
    errors = importlib.import_module("flask_ctl.errors")
    assert [name for name in errors.__all__ if not hasattr(errors, name)] == []


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flask_ctl' has no attribute 'Kontrol'"):
        _ = flask_ctl.Kontrol


HEAVY = ["flask", "werkzeug", "zmq", "psutil", "importlib.metadata"]


@pytest.mark.parametrize("module", ["flask_ctl", "flask_ctl.client.client", "flask_ctl_cli"])
def test_a_client_starts_without_what_only_a_server_needs(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
