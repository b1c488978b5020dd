"""`make demo` and `make test`: what they install, and that they work wherever the sources are."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

PYTHON = """#!/bin/sh
# Stands for Python: "makes" an environment, and notes what is installed.
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/ruff" ;;
    "-m pip install "*) for last; do :; done; echo "$last" >>installed ;;
esac
"""


class Clone:
    """A directory with our Makefile, where only what is installed is noted."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, directory)
        (directory / "examples" / "quickstart").mkdir(parents=True)
        (directory / "examples" / "quickstart" / "demo.sh").touch()
        python = directory / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)

    def make(self, target: str) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            ["make", f"PYTHON={self.directory}/python", target],
            cwd=self.directory, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def installed(self) -> list[str]:
        path = self.directory / "installed"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def clone(tmp_path: pathlib.Path) -> Clone:
    return Clone(tmp_path)


ALL = ".[test,lint,bench,versions]"


def test_the_demo_installs_the_package_and_what_it_needs_only_and_says_so(clone: Clone) -> None:
    assert "flask-ctl and the packages that it needs" in clone.make("demo")
    assert clone.installed == ["."]


def test_the_tests_install_the_rest_after_the_demo(clone: Clone) -> None:
    for target in ("demo", "test", "demo", "test"):
        clone.make(target)
    assert clone.installed == [".", ALL]


def test_the_demo_installs_nothing_after_the_tests(clone: Clone) -> None:
    for target in ("test", "demo", "test"):
        clone.make(target)
    assert clone.installed == [".", ALL]


def test_other_requirements_are_installed_anew(clone: Clone) -> None:
    clone.make("test")
    os.utime(clone.directory / "pyproject.toml", (2**31, 2**31))
    clone.make("demo")
    assert clone.installed == [".", ALL, "."]


AS_ANOTHER_USER = """
import sys
import flask_ctl
from harness import as_user
assert flask_ctl.__file__.startswith(sys.argv[1])

def act():
    from flask_ctl_cli import main
    sys.argv[1:] = ["stop", "--json", "--socket", "/nowhere/x.sock"]
    try:
        main()
    except SystemExit as error:
        return f"exit code {error.code}".encode()

print(as_user(65534, 65534, (), act).decode())
"""


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_tests_can_become_another_user_in_a_clone_that_others_can_not_enter(tmp_path: pathlib.Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir(mode=0o700)
    for name in ("flask_ctl", "cli", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join(str(clone / name) for name in (".", "cli", "tests"))
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, str(clone)],
        cwd=clone, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.endswith("exit code 3\n"), done.stderr
