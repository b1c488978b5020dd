"""Files that commands write: whole ones, and never through what another user has put in their place."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest

from flask_ctl_cli.files import replace_file


def test_a_file_is_replaced_by_a_whole_one_with_the_mode_of_a_new_file(tmp_path: pathlib.Path) -> None:
    path, usual = tmp_path / "stacks.txt", tmp_path / "usual"
    usual.touch()
    for content in (b"first", b"second"):
        replace_file(str(path), content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [path, usual]


def test_nothing_is_written_through_a_link(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even through one at the temporary name, or at the name that is wanted."""
    path, victim = tmp_path / "stacks.txt", tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    replace_file(str(path), b"stacks")
    assert (path.is_symlink(), victim.read_text()) == (False, "precious")
    monkeypatch.setattr(os, "urandom", bytes)
    link = tmp_path / "stacks.txt.00000000.new"
    link.symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(str(path), b"other")
    assert (link.is_symlink(), path.read_text(), victim.read_text()) == (True, "stacks", "precious")


def test_a_file_that_can_not_be_written_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="directory"):
        replace_file(str(tmp_path), b"stacks")
    assert [path.name for path in tmp_path.parent.iterdir() if path.name.endswith(".new")] == []
