"""The unit files of systemd in the documentation and the examples."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest
from documents import ROOT, blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
UNITS = [
    *(
        pytest.param(block.file or "shop.service", block.text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page))
        if re.match(r"(# .*\n)?\[(Unit|Service|Socket|Timer)\]", block.text)
    ),
    *(
        pytest.param(path.name, path.read_text(), id=str(path.relative_to(ROOT)))
        for path in sorted((ROOT / "examples").rglob("*"))
        if path.suffix in (".service", ".socket", ".timer")
    ),
]


@pytest.mark.parametrize(("name", "text"), UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, text: str, tmp_path: pathlib.Path) -> None:
    """Programs of the app are stood for by `true`, which is there; a unit that shows only some lines gets a command."""
    text = re.sub(r"^(Exec\w+=[-@:+!]*)/srv/\S+", r"\1/usr/bin/true", text, flags=re.MULTILINE)
    if "[Service]" in text and "ExecStart=" not in text:
        text = text.replace("[Service]\n", "[Service]\nExecStart=/usr/bin/true\n")
    services = re.findall(r"^Service=(.*)$", text, flags=re.MULTILINE) or [name.replace(".socket", ".service")]
    for service in services if name.endswith(".socket") else []:
        (tmp_path / service).write_text("[Service]\nExecStart=/usr/bin/true\n")
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True
    )
    assert (done.stderr, done.returncode) == ("", 0)
