"""What a wheel contains besides the code: manual pages and completion scripts, as the command line is now."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import zipfile

import pytest
from documents import ROOT, load_program

manual = load_program(ROOT / "docs" / "manual.py")


@pytest.mark.parametrize("name", manual.files())
def test_a_manual_page_or_completion_script_is_what_the_command_line_says(name: str) -> None:
    assert (manual.SHARE / name).read_text() == manual.files()[name], "run `make reference`"


def test_no_page_or_script_of_a_former_command_is_left() -> None:
    assert {str(path.relative_to(manual.SHARE)) for path in manual.SHARE.rglob("*") if path.is_file()} == set(
        manual.files()
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel, built from the sources."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = directory.iterdir()
    with zipfile.ZipFile(path) as archive:
        return archive


def test_a_wheel_has_the_pages_and_scripts_where_an_environment_has_them(wheel: zipfile.ZipFile) -> None:
    found = {name.partition(".data/data/share/")[2] for name in wheel.namelist()}
    assert found - {""} == set(manual.files())


def test_a_wheel_has_the_code_of_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {name for name in wheel.namelist() if "/share/" not in name and ".dist-info/" not in name}
    sources = {str(path.relative_to(root)) for root in (ROOT, ROOT / "cli") for path in _code_in(root)}
    assert modules == sources


def _code_in(root: pathlib.Path) -> list[pathlib.Path]:
    found = [path for package in ("flask_ctl", "flask_ctl_cli") for path in (root / package).rglob("*")]
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]
