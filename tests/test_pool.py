"""The threads of custom commands."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from harness import TIMEOUT, until

from flask_ctl import CommandError
from flask_ctl.dispatch.pool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    with contextlib.closing(Pool(lambda: None, 8)) as pool:
        yield pool


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_what_no_thread_can_be_started_for_is_refused_and_not_counted(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(CommandError, match="can't start new thread; try again later"):
                pool.submit(lambda: "result")
    assert pool.unfinished == 0
    assert pool.submit(lambda: "result").result(TIMEOUT) == "result"
    until(lambda: pool.unfinished == 0, "it is done")


def test_after_its_end_nothing_starts_a_thread(pool: Pool) -> None:
    gate = threading.Event()
    busy = pool.submit(gate.wait)
    pool.close()
    with pytest.raises(CommandError, match="has ended"):
        pool.submit(lambda: "result")
    gate.set()
    assert busy.result(TIMEOUT)


def test_where_no_further_thread_can_be_started_those_that_run_do_the_work(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    first = pool.submit(gate.wait)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        second = pool.submit(lambda: "result")
    gate.set()
    assert second.result(TIMEOUT) == "result"
    assert first.result(TIMEOUT)
