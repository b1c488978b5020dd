"""A reload removes bytecode that Python would use although it is stale, of the program's own modules alone."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import py_compile
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import flask
import pytest

from flask_ctl.system.bytecode import remove_stale

MODES = py_compile.PycInvalidationMode
Make = Callable[..., tuple[pathlib.Path, str]]
"""Makes a module; its source and its bytecode."""


def cached_of(module: ModuleType) -> str:
    """The path of its bytecode."""
    spec = module.__spec__
    assert spec is not None
    assert spec.cached is not None
    return spec.cached


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a module below a directory, with bytecode of some kind, and loads it."""

    def make(directory: str = "", mode: MODES = MODES.TIMESTAMP) -> tuple[pathlib.Path, str]:
        place = tmp_path / directory
        place.mkdir(parents=True, exist_ok=True)
        source = place / "part_of_test.py"
        source.write_text("VALUE = 1\n")
        py_compile.compile(str(source), invalidation_mode=mode)
        monkeypatch.syspath_prepend(str(place))
        importlib.invalidate_caches()
        loaded = importlib.import_module("part_of_test")
        return source, cached_of(loaded)

    yield make
    sys.modules.pop("part_of_test", None)


def age(path: str, seconds: int) -> None:
    """Make a file older than it is, as far as that can be set."""
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * 10**9))


def test_what_may_have_been_compiled_from_the_text_before_goes(module: Make) -> None:
    source, cached = module()
    stat = os.stat(source)
    source.write_text("VALUE = 2\n")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    remove_stale()
    assert not os.path.exists(cached)


def test_what_python_would_not_use_stays(module: Make) -> None:
    source, cached = module()
    source.write_text("VALUE = 1000\n")
    remove_stale()
    assert os.path.exists(cached), "the size differs"


def test_an_unchecked_hash_goes_if_it_is_wrong(module: Make) -> None:
    source, cached = module(mode=MODES.UNCHECKED_HASH)
    remove_stale()
    assert os.path.exists(cached), "it is right"
    source.write_text("VALUE = 2\n")
    remove_stale()
    assert not os.path.exists(cached)


def test_a_checked_hash_stays(module: Make) -> None:
    source, cached = module(mode=MODES.CHECKED_HASH)
    source.write_text("VALUE = 2\n")
    remove_stale()
    assert os.path.exists(cached)


@pytest.mark.parametrize("directory", ["lib/site-packages", "lib/python3/dist-packages"])
def test_what_is_installed_stays(module: Make, directory: str) -> None:
    _, cached = module(directory)
    age(cached, 10)
    remove_stale()
    assert os.path.exists(cached)


@pytest.mark.parametrize("package", [flask, json], ids=["Flask", "the standard library"])
def test_neither_packages_nor_the_standard_library_lose_theirs(package: ModuleType) -> None:
    cached = cached_of(package)
    before = os.path.exists(cached)
    remove_stale()
    assert os.path.exists(cached) == before


def test_a_module_without_a_source_or_bytecode_is_passed_over(module: Make) -> None:
    source, cached = module()
    source.unlink()
    remove_stale()
    os.unlink(cached)
    remove_stale()
