"""What the pytest plugin costs a suite that does not use it, and what `live_app` costs a test."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from benchmarks.measuring import Figure, compare, duration, elapsed
from benchmarks.running import clean_environment, scratch_directory

TESTS = 200

PLAIN = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:flask")
"""Without what other packages that are installed here would do."""

PLUGIN_GOAL = 1.05

LIVE_GOAL = 0.010
"""Seconds a test, beside the construction of the app."""

SUITE = """
import flask, pytest

@pytest.fixture
def app():
    return flask.Flask("shop")

@pytest.mark.parametrize("number", range({tests}))
def test(number, {fixture}):
    pass
"""


def plugin(rounds: int) -> list[Figure]:
    """A run of one test without fixtures, with the plugin and without it."""
    with scratch_directory() as scratch:
        suite = scratch / "test_nothing.py"
        suite.write_text("def test(): pass\n")
        compared = compare(
            max(rounds, 15),
            lambda: elapsed(lambda: _run(suite)),
            lambda: elapsed(lambda: _run(suite, "-p", "no:flask_ctl")),
        )
    return [
        Figure.ratio(
            "pytest with the plugin installed and not used",
            "`pytest -p no:flask_ctl`",
            compared,
            PLUGIN_GOAL,
            "it imports one module.",
        )
    ]


def live_app(rounds: int) -> list[Figure]:
    """A test that takes `live_app`, beside one that only makes the app."""
    with scratch_directory() as scratch:
        with_server, without = scratch / "test_live.py", scratch / "test_app.py"
        with_server.write_text(SUITE.format(tests=TESTS, fixture="live_app"))
        without.write_text(SUITE.format(tests=TESTS, fixture="app"))
        compared = compare(
            rounds,
            lambda: elapsed(lambda: _run(with_server)) / TESTS,
            lambda: elapsed(lambda: _run(without)) / TESTS,
        )
    more = compared.ours - compared.theirs
    return [
        Figure(
            "a test with `live_app`, of function scope",
            duration(compared.ours),
            "a test with the app alone",
            duration(compared.theirs),
            f"+ {duration(more)}",
            f"{compared.same:.2f} ×",
            f"≤ + {duration(LIVE_GOAL)}",
            more <= LIVE_GOAL,
            "a server, its control thread and the threads that a stop needs start and end.",
        )
    ]


def _run(suite: pathlib.Path, *options: str) -> None:
    plain = {name: value for name, value in clean_environment().items() if not name.startswith("PYTEST_")}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PLAIN, *options, str(suite)],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=suite.parent,
        env={**plain, "PATH": os.environ["PATH"]},
    )
