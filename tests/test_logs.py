"""Our log records reach the program's handlers by a thread of their own, whatever those do."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator

import pytest
from harness import FLASK, TIMEOUT, Serve, first_quick, until

from flask_ctl.system import logs
from flask_ctl.system.logs import MAX_WAITING, QueuedLogger, Relay


class Handler(logging.Handler):
    """Keeps what it gets, and in which thread; waits for `gate` before each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.texts: list[str] = []
        self.threads: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.gate.wait(TIMEOUT)
        self.texts.append(record.getMessage())
        self.threads.add(threading.get_ident())


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler()
    logger = logging.getLogger("flask_ctl")
    logger.addHandler(handler)
    yield handler
    handler.gate.set()
    logs.flush(TIMEOUT)
    logger.removeHandler(handler)


logger = logging.getLogger("flask_ctl")


def test_no_handler_is_called_in_the_thread_that_logs(handler: Handler) -> None:
    logger.warning("a %s", "record")
    assert logs.flush(TIMEOUT)
    assert handler.texts == ["a record"]
    assert threading.get_ident() not in handler.threads


@pytest.mark.parametrize("name", ["flask_ctl", "flask_ctl.audit"])
def test_all_our_loggers_do_so(name: str) -> None:
    assert isinstance(logging.getLogger(name), QueuedLogger)


def test_a_handler_that_hangs_keeps_nobody_waiting(handler: Handler) -> None:
    handler.gate.clear()
    logger.warning("first")
    logger.warning("second")
    assert not logs.flush(0.01)
    handler.gate.set()
    assert logs.flush(TIMEOUT)
    assert handler.texts == ["first", "second"]


def test_a_record_tells_what_was_true_when_it_was_logged(handler: Handler) -> None:
    changing = ["old"]
    handler.gate.clear()
    logger.warning("%s", changing)
    changing[0] = "new"
    handler.gate.set()
    assert logs.flush(TIMEOUT)
    assert handler.texts == ["['old']"]


def test_what_is_too_much_is_dropped_and_counted_in_one_record(handler: Handler) -> None:
    handler.gate.clear()
    logger.warning("first")
    assert handler.entered.wait(TIMEOUT)
    for number in range(MAX_WAITING + 7):
        logger.warning("%d", number)
    handler.gate.set()
    assert logs.flush(TIMEOUT)
    assert len(handler.texts) == 1 + MAX_WAITING + 1
    assert [text for text in handler.texts if "dropped" in text] == [
        "7 log records were dropped: the handlers are too slow"
    ]


def test_a_handler_that_logs_by_our_logger_does_not_hang(handler: Handler) -> None:
    class Talkative(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "outer":
                logger.warning("inner")
                logs.flush(TIMEOUT)

    talkative = Talkative()
    logger.addHandler(talkative)
    try:
        logger.warning("outer")
        until(lambda: handler.texts == ["outer", "inner"], "both are written")
    finally:
        logger.removeHandler(talkative)


def test_where_no_thread_can_be_started_the_next_record_tries_again(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: object) -> None:
        raise RuntimeError("can't start new thread")

    relay = Relay()
    monkeypatch.setattr(logs, "relay", relay)
    monkeypatch.setattr(logs, "start_thread", refuse)
    logger.warning("first")
    monkeypatch.undo()
    monkeypatch.setattr(logs, "relay", relay)
    logger.warning("second")
    assert relay.flush(TIMEOUT)
    assert handler.texts == ["first", "second"]


def test_a_forked_child_logs_by_a_thread_of_its_own(handler: Handler) -> None:
    handler.gate.clear()
    logger.warning("the parent's")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        handler.gate = threading.Event()
        handler.gate.set()
        handler.texts = []
        logger.warning("the child's")
        logs.flush(TIMEOUT)
        os.write(write, repr(handler.texts).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b'["the child\'s"]'
    os.waitpid(child, 0)
    handler.gate.set()
    assert logs.flush(TIMEOUT)
    assert handler.texts == ["the parent's"]


def fill(descriptor: int) -> None:
    """Leave no room in a pipe, for writers in blocking mode, too."""
    full = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
    with io.FileIO(full, "w") as pipe:
        for size in (65536, 1):
            while pipe.write(b"x" * size) is not None:
                pass


@pytest.mark.parametrize("mode", first_quick(["graceful", "fast", "immediate"]))
def test_a_server_whose_stderr_nobody_reads_answers_and_ends(serve: Serve, mode: str) -> None:
    read, write = os.pipe()
    try:
        command = [*FLASK[:1], "-c", f"import os; os.dup2({write}, 2); " + RUN]
        server = serve(command=command, pass_fds=[write])
        fill(write)
        with server.client() as client:
            # Noted in the audit log, and over with its answer, unlike a command of the app, whose thread goes on.
            client.call("resume")
            assert client.status()["state"] == "running"
            assert client.stop(mode)["outcome"] == "drained"
        assert server.wait() == 0
    finally:
        os.close(read)
        os.close(write)


RUN = """
import runpy, sys
sys.argv = ["flask-ctl", "run", "--app", "sample", "--port", "0"]
sys.path.insert(0, "")
runpy.run_module("flask_ctl_cli", run_name="__main__")
"""
