"""``.env`` and ``.flaskenv``: `run` reads them as Flask does, a client only its address, from a trusted file."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest
from harness import PYTHON, Program, Serve, run_cli

from flask_ctl_cli.dotenv import socket_from_files


@pytest.fixture
def below(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The parent of the current directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("FLASK_SKIP_DOTENV", raising=False)
    return tmp_path


def write(path: pathlib.Path, text: str, mode: int = 0o644) -> pathlib.Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def found() -> tuple[str | None, list[str]]:
    """The address, and the remarks."""
    remarks: list[str] = []
    return socket_from_files(remarks.append), remarks


@pytest.mark.parametrize(
    ("files", "socket"),
    [
        ({}, None),
        ({".env": "FLASK_CTL_SOCKET=/a.sock\n"}, "/a.sock"),
        ({"../.flaskenv": "export FLASK_CTL_SOCKET='/a b.sock' # ours\n"}, "/a b.sock"),
        ({".flaskenv": "FLASK_CTL_SOCKET=/flaskenv", "../.env": "FLASK_CTL_SOCKET=/env"}, "/env"),
        ({".env": "FLASK_CTL_SOCKET=/near", "../.env": "FLASK_CTL_SOCKET=/far"}, "/near"),
        ({".env": "X=1", "../.env": "FLASK_CTL_SOCKET=/far"}, None),
        ({".env": "X=1", ".flaskenv": "FLASK_CTL_SOCKET=/flaskenv"}, "/flaskenv"),
        ({".env": "FLASK_CTL_SOCKET=", ".flaskenv": "FLASK_CTL_SOCKET=/flaskenv"}, None),
        ({".env": "PLACE=/srv\nFLASK_CTL_SOCKET=${PLACE}/a.sock"}, "/srv/a.sock"),
        ({".env": 'FLASK_CTL_SOCKET=["/a", "/b"]'}, '["/a", "/b"]'),
        ({".env": "# FLASK_CTL_SOCKET=/a\n"}, None),
    ],
)
def test_the_address_is_the_one_that_flask_would_read(
    below: pathlib.Path, files: dict[str, str], socket: str | None
) -> None:
    before = dict(os.environ)
    paths = [write(below / "here" / name, text).resolve() for name, text in files.items()]
    address, remarks = found()
    assert address == socket
    assert remarks == ([] if socket is None else [f"using {socket}, from {remarks[0].split(', from ')[1]}"])
    assert socket is None or any(str(path) in remarks[0] for path in paths)
    assert dict(os.environ) == before


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622])
def test_a_file_that_others_may_write_is_ignored_with_a_warning(below: pathlib.Path, mode: int) -> None:
    path = write(below / "here" / ".env", "FLASK_CTL_SOCKET=/a.sock", mode)
    write(below / "here" / ".flaskenv", "FLASK_CTL_SOCKET=/other.sock")
    address, remarks = found()
    assert address == "/other.sock"
    assert remarks[0] == f"Warning: {path} is ignored: other users may write it; chmod go-w"


def test_a_file_that_others_may_write_but_that_has_no_address_is_no_reason_to_warn(below: pathlib.Path) -> None:
    write(below / "here" / ".env", "FLASK_APP=shop", 0o666)
    assert found() == (None, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["file", "link"])
def test_a_file_or_a_link_of_another_user_is_ignored_with_a_warning(below: pathlib.Path, what: str) -> None:
    path = below / "here" / ".env"
    if what == "link":
        path.symlink_to(write(below / "ours", "FLASK_CTL_SOCKET=/a.sock"))
    else:
        write(path, "FLASK_CTL_SOCKET=/a.sock")
    os.chown(path, 65534, 65534, follow_symlinks=False)
    assert found() == (None, [f"Warning: {path} is ignored: it belongs to user 65534"])


def test_without_python_dotenv_the_file_is_ignored_as_flask_ignores_it(
    below: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(below / "here" / ".env", "FLASK_CTL_SOCKET=/a.sock")
    monkeypatch.setitem(sys.modules, "dotenv", None)
    assert found() == (None, [f"Warning: {path} is ignored: python-dotenv is not installed"])


@pytest.mark.parametrize(("value", "socket"), [("1", None), ("0", "/a.sock"), ("", "/a.sock"), ("False", "/a.sock")])
def test_the_files_are_skipped_as_flask_skips_them(
    below: pathlib.Path, monkeypatch: pytest.MonkeyPatch, value: str, socket: str | None
) -> None:
    write(below / "here" / ".env", "FLASK_CTL_SOCKET=/a.sock")
    monkeypatch.setenv("FLASK_SKIP_DOTENV", value)
    assert found()[0] == socket


def test_a_directory_that_is_gone_has_no_files(below: pathlib.Path) -> None:
    (below / "here").rmdir()
    assert found() == (None, [])


def test_run_reads_every_variable_and_a_client_only_its_address(serve: Serve, program: Program) -> None:
    """The option and the environment take precedence, without a remark."""
    socket = program.directory / "c.sock"
    write(program.directory / ".flaskenv", "FLASK_APP=sample\nFLASK_RUN_PORT=0\n")
    path = write(program.directory / ".env", f"FLASK_CTL_SOCKET={socket}\nFLASK_CTL_SIGNALS=false\n")
    command = ["env", "-u", "FLASK_CTL_SOCKET", *PYTHON, "-m", "flask_ctl_cli", "run"]
    server = serve(command=[*command, "--directory", str(program.directory)], socket=socket)
    assert server.status()["app"] == "sample"
    done = run_cli("ping", cwd=program.directory)
    assert (done.returncode, done.stderr) == (0, f"using {socket}, from {path}\n")
    assert run_cli("ping", "--quiet", cwd=program.directory).stderr == ""
    done = run_cli("ping", "--socket", "/nowhere", cwd=program.directory)
    assert (done.returncode, "using" in done.stderr) == (3, False)
    done = run_cli("ping", cwd=program.directory, env={"FLASK_CTL_SOCKET": "/nowhere"})
    assert (done.returncode, "using" in done.stderr) == (3, False)
    done = run_cli("ping", cwd=program.directory, env={"FLASK_CTL_SOCKET": ""})
    assert (done.returncode, done.stderr) == (0, f"using {socket}\n"), "found in the registry"
    path.chmod(0o666)
    done = run_cli("ping", "--wait", "0.2", cwd=program.directory)
    assert done.returncode == 0
    assert done.stderr.count("is ignored") == 1
