"""The manual pages, as man shows them."""

from __future__ import annotations

import functools
import os
import subprocess

import pytest
from documents import ROOT

MANUAL = ROOT / "share" / "man"
PAGES = sorted(path.stem for path in MANUAL.rglob("*.1"))


@functools.cache
def shown(page: str) -> str:
    """What man prints."""
    environment = {**os.environ, "MANPATH": str(MANUAL), "LANG": "C.UTF-8", "MANWIDTH": "80"}
    done = subprocess.run(["man", "--warnings", page], env=environment, capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_man_shows_a_page_without_a_warning(page: str) -> None:
    assert shown(page).startswith(f"{page.upper()}(1)")
    assert all(section in shown(page) for section in ("NAME", "SYNOPSIS", "OPTIONS"))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "flask-ctl"])
def test_the_page_of_a_command_and_that_of_its_group_name_each_other(page: str) -> None:
    group = max((other for other in PAGES if page.startswith(f"{other}-")), key=len)
    assert f"{page}(1)" in shown(group)
    assert f"{group}(1)" in shown(page)
