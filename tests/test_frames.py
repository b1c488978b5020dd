"""The frames of a refused reload: those of the app are shown, the others are counted."""

from __future__ import annotations

import json

import pytest
from harness import MODES, Program, Serve, run_cli

from flask_ctl_cli.frames import without_foreign_frames

HEAD = "Traceback (most recent call last):\n"
FLASK = '  File "/srv/shop/.venv/lib/python3.12/site-packages/flask/cli.py", line 251, in load\n    __import__(name)\n'
IMPORTLIB = '  File "<frozen importlib._bootstrap>", line 488, in _call_with_frames_removed\n'
LIB = '  File "/usr/lib/python3.12/runpy.py", line 88, in _run_code\n    exec(code, run_globals)\n'
OURS = '  File "/srv/shop/app.py", line 7, in <module>\n    1 / 0\n    ~~^~~\n'
DEEP = '  File "/srv/shop/lib/deep.py", line 3, in f\n    f()\n  [Previous line repeated 990 more times]\n'
RELATIVE = '  File "app.py", line 7, in <module>\n'
END = "ZeroDivisionError: division by zero\n"
SYNTAX = '  File "/usr/lib/python3.12/broken.py", line 3\n    def f(:\n          ^\nSyntaxError: invalid syntax\n'
CAUSE = "\nDuring handling of the above exception, another exception occurred:\n\n"


def hidden(count: str) -> str:
    return f"({count} outside of /srv/shop hidden; --json has all)\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HEAD + FLASK + IMPORTLIB + OURS + END, HEAD + OURS + END + hidden("2 frames")),
        (HEAD + OURS + LIB + END, HEAD + OURS + END + hidden("1 frame")),
        (HEAD + LIB + DEEP + END, HEAD + DEEP + END + hidden("1 frame")),
        (HEAD + LIB + RELATIVE + END, HEAD + RELATIVE + END + hidden("1 frame")),
        (
            "a log line\n" + HEAD + LIB + OURS + END + CAUSE + HEAD + LIB + OURS + SYNTAX,
            "a log line\n" + HEAD + OURS + END + CAUSE + HEAD + OURS + SYNTAX + hidden("2 frames"),
        ),
        (HEAD + OURS + END, HEAD + OURS + END),
        (HEAD + LIB + END, HEAD + LIB + END),
        (SYNTAX, SYNTAX),
        ("", "\n"),
    ],
    ids=["a package", "a package last", "a recursion", "a relative path", "a chain", "only ours", "none of ours",
         "no frame", "nothing"],
)  # fmt: skip
def test_only_the_frames_below_the_directory_are_shown(text: str, shown: str) -> None:
    assert without_foreign_frames(text, "/srv/shop") == shown


def test_in_the_root_directory_python_and_packages_are_foreign_all_the_same() -> None:
    shown = without_foreign_frames(HEAD + LIB + FLASK + OURS + END, "/")
    assert shown == HEAD + OURS + END + "(2 frames outside of / hidden; --json has all)\n"


def test_without_a_directory_as_from_an_older_server_all_frames_are_shown() -> None:
    assert without_foreign_frames(HEAD + LIB + OURS + END, "") == HEAD + LIB + OURS + END


def test_a_refused_reload_shows_the_frames_of_the_app_and_all_as_json(serve: Serve, program: Program) -> None:
    server = serve(command=MODES["flask run"], cwd=program.directory)
    program.edit("new", "def ask() -> None:\n    1 / 0\nask()")
    done = run_cli("reload", "-s", server.socket)
    frames = [line for line in done.stderr.splitlines() if line.startswith('  File "')]
    assert [f'File "{program.file}"' in line for line in frames] == [True, True]
    assert f"frames outside of {program.directory.resolve()} hidden" in done.stderr
    assert "Error: the new code was refused" in done.stderr
    document = json.loads(run_cli("reload", "-s", server.socket, "--json").stdout)
    assert document["error"]["data"]["traceback"].count('  File "') > 5
