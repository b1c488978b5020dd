"""What users and packagers get: `make release-check`."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv

import pytest
from documents import ROOT, Run, blocks, run_shell

OUTSIDE = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "VIRTUAL_ENV") and not name.startswith(("MAKE", "MFLAGS", "PYTEST_", "COV"))
}
"""The environment of a user, without what make and pytest add."""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The directory with an sdist, and with the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(directory), str(ROOT)], env=OUTSIDE, check=True)
    return directory


@pytest.fixture(scope="module")
def sources(dist: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The unpacked sdist."""
    directory = tmp_path_factory.mktemp("sdist")
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(directory)
    [unpacked] = directory.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def user(dist: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has installed the wheel, and has nothing else of ours."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=True)
    [wheel] = dist.glob("*.whl")
    subprocess.run([directory / "bin" / "python", "-m", "pip", "install", "-q", wheel], env=OUTSIDE, check=True)
    return {"PATH": f"{directory}/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": OUTSIDE.get("TMPDIR", "/tmp")}


def test_the_index_can_show_what_is_uploaded(dist: pathlib.Path) -> None:
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()], check=True)


def test_the_sdist_has_every_file_of_the_repository_and_no_other(sources: pathlib.Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    assert found == {*tracked.splitlines(), "PKG-INFO"}


@pytest.mark.timeout(300)
def test_the_quickstart_of_the_readme_works_with_the_wheel_alone(
    user: dict[str, str], tmp_path: pathlib.Path, short_path: pathlib.Path
) -> None:
    page = tmp_path / "quickstart.md"
    [app, dialogue] = [
        next(block for block in blocks(ROOT / "README.md") if block.language == language)
        for language in ("python", "console")
    ]
    page.write_text(f"```python\n{app.text}```\n```console\n{dialogue.text}```\n")
    directory = short_path / "page"
    directory.mkdir()
    Run(page, directory).check({**user, **dict.fromkeys(("XDG_RUNTIME_DIR", "TMPDIR", "HOME"), str(short_path))})


@pytest.mark.timeout(300)
def test_the_demo_works_with_the_wheel_alone(user: dict[str, str], tmp_path: pathlib.Path) -> None:
    shutil.copytree(ROOT / "examples" / "quickstart", tmp_path / "quickstart")
    output, code = run_shell(["sh", "quickstart/demo.sh"], tmp_path, user, 200)
    codes = [line for line in output.splitlines() if line.startswith("(exit code")]
    assert code == 0, output
    assert codes == [f"(exit code {each})" for each in (0, 0, 0, 2, 0, 7, 0, 3, 6)], output
    assert str(ROOT) not in output


@pytest.mark.timeout(3600)
def test_the_tests_of_the_sdist_pass(sources: pathlib.Path) -> None:
    """Those that ARGS names, in an environment of the sdist's own; the output is shown."""
    arguments = os.environ["SDIST_TESTS"]
    subprocess.run(
        ["make", "test", f"PYTHON={sys.executable}", f"ARGS={arguments}"], cwd=sources, env=OUTSIDE, check=True
    )
