"""What is written in the documentation works, and what it mentions exists."""

from __future__ import annotations

import os
import pathlib
import re

import click
import pytest
from documents import ROOT, Run, blocks, load_program
from harness import first_quick

from flask_ctl import SETTINGS
from flask_ctl_cli.group import contexts_of
from flask_ctl_cli.main import COMMANDS, cli

generate = load_program(ROOT / "docs" / "generate.py")
pictures = load_program(ROOT / "docs" / "pictures.py")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if any(block.language in ("console", "python") for block in blocks(page))]
"""The README first, which `make test` runs, too."""


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", first_quick(RUN), ids=name_of)
def test_every_program_and_dialogue_of_a_page_does_what_the_page_shows(
    page: pathlib.Path, short_path: pathlib.Path
) -> None:
    directory = short_path / "page"
    directory.mkdir()
    Run(page, directory).check(dict.fromkeys(("XDG_RUNTIME_DIR", "TMPDIR", "HOME"), str(short_path)))


TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
FOREIGN_OPTIONS = """
--addr --base-url --cheaper --ctl-grace --jetstream
    --bind --chdir --debug --graceful-timeout --init --lazy-apps --master --max-requests --no-control-socket --preload
    --no-autorestart --replicas --respawn-interval --retry --retry-connrefused --time --timeout --user --workers
"""
"""Options of other programs that the pages mention."""


def option_names() -> set[str]:
    parent = click.Context(cli)
    commands = [cli, *(context.command for context in contexts_of(cli, COMMANDS, parent))]
    parameters = [parameter for command in commands for parameter in command.get_params(parent)]
    return {option for parameter in parameters for option in parameter.opts if isinstance(parameter, click.Option)}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_option_that_a_page_mentions_exists(page: pathlib.Path) -> None:
    own = set(re.findall(r"^(?:> )?def \w+\(.*?\)", page.read_text(), re.MULTILINE))
    parameters = {f"--{name}" for signature in own for name in re.findall(r"(\w+):", signature)}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", page.read_text()))
    assert mentioned <= option_names() | set(FOREIGN_OPTIONS.split()) | parameters


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_setting_that_a_page_mentions_exists(page: pathlib.Path) -> None:
    mentioned = set(re.findall(r"\b(?:FLASK_)?CTL_[A-Z_]+\b", page.read_text())) - {"FLASK_CTL_COMPLETE"}
    assert mentioned <= {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_link_within_the_documents_leads_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), link
        assert not anchor or anchor in anchors(linked), link


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as code forges and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", pictures.pictures())
def test_a_picture_is_what_its_table_says(name: str) -> None:
    assert (pictures.DIRECTORY / name).read_text() == pictures.pictures()[name], "run `make reference`"


@pytest.mark.parametrize("name", generate.pages())
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert (generate.REFERENCE / name).read_text() == generate.pages()[name], "run `make reference`"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in (ROOT / "docs").rglob("index.md"):
        for entries in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in entries.splitlines() if line and not line.startswith(":")]
            listed |= {os.path.relpath(page.parent / name, ROOT / "docs") for name in names}
    assert listed == {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
