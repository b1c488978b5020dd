"""Each example works, by its own script."""

from __future__ import annotations

import os
import pathlib

import pytest
from documents import ROOT, TIMEOUT, run_shell

EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/run.sh"))


@pytest.mark.full
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_does_what_it_shows(example: pathlib.Path, tmp_path: pathlib.Path) -> None:
    environment = {"TMPDIR": os.environ.get("TMPDIR", "/tmp"), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    output, code = run_shell(["sh", "run.sh"], example, environment, TIMEOUT)
    assert code == 0, output


def test_the_table_of_the_examples_has_each() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    assert [example.name for example in EXAMPLES if f"]({example.name})" not in text] == []
