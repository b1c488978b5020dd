"""The versions that are declared, that `make test-versions` runs, and that the workflow runs are the same."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import nox
import pytest
from documents import ROOT, load_program
from servers import SERVERS

from flask_ctl.servers.registry import ADAPTERS

PROJECT: dict[str, Any] = nox.project.load_toml(ROOT / "pyproject.toml")


@pytest.fixture(scope="module")
def noxfile() -> Any:
    """The module that nox runs; it makes more interpreters found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.environ["PATH"])
        return load_program(ROOT / "noxfile.py")


def matrix(name: str) -> list[str]:
    """The values of a dimension of the workflow's matrix."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    [values] = re.findall(rf"^ +{name}: (\[.*\])$", text, re.MULTILINE)
    found: list[str] = json.loads(values)
    return found


def test_every_python_that_is_declared_is_run(noxfile: Any) -> None:
    assert noxfile.PYTHONS == matrix("python") == nox.project.python_versions(PROJECT)


def test_the_oldest_python_is_the_one_that_is_required_and_that_the_checks_assume(noxfile: Any) -> None:
    oldest = noxfile.PYTHONS[0]
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_the_lowest_versions_of_every_server_are_run(noxfile: Any) -> None:
    servers = {spec.package for spec in ADAPTERS.values()} - {"werkzeug"}
    assert set(noxfile.SERVERS) == set(noxfile.OF_SERVER) == servers
    assert matrix("group") == ["framework", *noxfile.SERVERS, *noxfile.EXTRAS]


def test_the_lowest_versions_of_every_extra_are_run(noxfile: Any) -> None:
    assert set(noxfile.EXTRAS) == set(noxfile.OF_EXTRA)
    [test] = [each for each in PROJECT["project"]["optional-dependencies"]["test"] if each.startswith("flask-ctl")]
    extras = test.partition("[")[2].rstrip("]").split(",")
    assert len(extras) == len(noxfile.EXTRAS)


def test_the_lowest_versions_of_every_server_are_documented(noxfile: Any) -> None:
    page = " ".join((ROOT / "docs" / "howto" / "servers.md").read_text().split())
    for requirement in noxfile.SERVERS.values():
        assert noxfile._at_lowest(requirement).replace("==", " ") in page


def test_the_tests_of_each_session_are_there(noxfile: Any) -> None:
    named = {*noxfile.ALWAYS, *(name for names, _ in noxfile.OF_SERVER.values() for name in names)}
    named |= {name for names in noxfile.OF_EXTRA.values() for name in names}
    assert {name for name in named if not (ROOT / "tests" / f"{name}.py").exists()} == set()
    for _, expression in noxfile.OF_SERVER.values():
        assert any(part in row for part in expression.split(" or ") for row in SERVERS)
