"""The program's threads, as a stop and a reload look at them."""

from __future__ import annotations

import queue
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, thread
from typing import Any

import pytest
from harness import TIMEOUT

from flask_ctl.system.threads import busy_executor_threads


def test_a_thread_of_an_executor_is_busy_while_it_runs_an_item_or_has_one_in_its_queue() -> None:
    began, gate = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        gate.wait(TIMEOUT)

    with ThreadPoolExecutor(1, "worker-of-the-test") as pool:
        pool.submit(int).result(TIMEOUT)
        pool.submit(work)
        assert began.wait(TIMEOUT)
        assert "worker-of-the-test_0" in busy_executor_threads()
        gate.set()
    assert "worker-of-the-test_0" not in busy_executor_threads()


def test_executors_that_start_threads_meanwhile_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    queues: weakref.WeakKeyDictionary[threading.Thread, Any] = weakref.WeakKeyDictionary()
    kept = [threading.Thread()]

    class Looked(weakref.ref):  # type: ignore[type-arg]
        def __call__(self) -> Any:
            kept.append(threading.Thread())
            queues[kept[-1]] = queue.SimpleQueue()
            return super().__call__()

    queues.data[Looked(kept[0])] = queue.SimpleQueue()  # type: ignore[attr-defined]
    monkeypatch.setattr(thread, "_threads_queues", queues)
    assert busy_executor_threads() == []
    assert len(kept) > 1
