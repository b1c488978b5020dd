"""Completion in zsh and fish, by the Tab key on a terminal; bash is in tests/test_completion.py."""

from __future__ import annotations

import pathlib

import pytest
from harness import Serve
from shells import shell


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_tab_key_completes(serve: Serve, short_path: pathlib.Path, name: str) -> None:
    server = serve()
    with shell(name, short_path) as it:
        it.press("flask-ctl pi\t", "flask-ctl ping |ng ")
        it.press("--wai\t", "--wait |t ")
        it.clear()
        it.press("flask-ctl st\t", "(?s)status.*stop")
        it.clear()
        it.press(f"flask-ctl -s {server.socket} call gre\t", "greet |et ")
        it.press("na\t", "name=|me=")
        it.clear()
        it.press("flask-ctl run --server wai\t", "waitress |tress ")
        it.clear()
        server.suspend()
        it.press(f"flask-ctl -s {server.socket} call gre\t\x15echo don''e\r", "done")
        assert "Error" not in it.shown
        assert "Traceback" not in it.shown
