"""The manual pages, as man shows them."""

from __future__ import annotations

import os
import subprocess

import pytest
from documents import ROOT

MANUAL = ROOT / "share" / "man"
PAGES = sorted(path.stem for path in MANUAL.rglob("*.1"))


@pytest.mark.parametrize("page", PAGES)
def test_man_shows_a_page_without_a_warning(page: str) -> None:
    environment = {**os.environ, "MANPATH": str(MANUAL), "LANG": "C.UTF-8", "MANWIDTH": "80"}
    done = subprocess.run(["man", "--warnings", page], env=environment, capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith(f"{page.upper()}(1)")
    assert all(section in done.stdout for section in ("NAME", "SYNOPSIS", "OPTIONS"))


def test_the_page_of_flask_ctl_names_all_others() -> None:
    text = (MANUAL / "man1" / "flask-ctl.1").read_text().replace("\\", "")
    assert [page for page in PAGES if page not in text] == []
