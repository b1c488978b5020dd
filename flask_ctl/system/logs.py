"""Our log records on their way to the program's handlers: a queue, and a thread that calls those.

A handler is the program's own code, and may take any time: a pipe that nobody reads holds it up for ever. So none of
them is called on the control thread, or under a lock of ours. At most MAX_WAITING records wait; how many had to be
dropped is told in one more record, once there is room.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import logging
import sys
from typing import Any

from .fork import Step, in_child
from .native import queue, start_thread, threading

MAX_WAITING = 1000
"""Records."""

END_TIMEOUT = 1.0
"""Seconds that the end of the process waits for the handlers."""

NAMES = ("flask_ctl", "flask_ctl.audit")


class Relay:
    """Hands records over to the handlers of their logger, in a thread of its own.

    The thread starts with the first record. `put` takes no lock, so that signal handlers may log.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[logging.Logger, logging.LogRecord] | Any] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._dropped = self._told = 0
        self._starts = itertools.count()
        self._thread = 0
        self._used = False

    def put(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Queue a record; it is dropped, and counted, if too many wait."""
        if self._queue.qsize() >= MAX_WAITING:
            self._dropped = next(self._numbers)
            return
        # What its arguments are now may be something else by then.
        record.msg, record.args = record.getMessage(), None
        self._used = True
        self._queue.put((logger, record))
        self._start()

    def flush(self, timeout: float = END_TIMEOUT) -> bool:
        """Wait until the handlers have had what is queued now; False if they did not take it in time."""
        if not self._used or threading.get_ident() == self._thread:
            return True
        flushed = threading.Event()
        self._queue.put(flushed)
        return bool(flushed.wait(timeout))

    def renew(self) -> None:
        """In a forked child: the thread is not there, and what is queued is the parent's to log."""
        self.__init__()  # type: ignore[misc]

    def _start(self) -> None:
        # `next` of a count is one step, so that only one of several threads starts it.
        if self._thread or next(self._starts):
            return
        try:
            start_thread(self._run)
        except RuntimeError:
            # No more threads can be had: the next record tries again.
            self._starts = itertools.count()

    def _run(self) -> None:
        self._thread = threading.get_ident()
        threading.current_thread().name = "flask-ctl-log"
        while True:
            item = self._queue.get()
            if isinstance(item, tuple):
                _hand_over(*item)
                self._tell_dropped()
            else:
                item.set()

    def _tell_dropped(self) -> None:
        count = self._dropped - self._told
        if count > 0 and self._queue.qsize() < MAX_WAITING // 2:
            self._told += count
            _report(f"{count} log records were dropped: the handlers are too slow", logging.WARNING)


class QueuedLogger(logging.Logger):
    """A logger whose filters and handlers are called in the relay's thread."""

    def handle(self, record: logging.LogRecord) -> None:
        relay.put(self, record)


def _hand_over(logger: logging.Logger, record: logging.LogRecord) -> None:
    try:
        logging.Logger.handle(logger, record)
    except Exception:
        # A filter of the program's, or a handler that does not handle its own errors.
        if logger.name != NAMES[0]:
            _report(f"a record of {logger.name} could not be written", logging.ERROR, sys.exc_info())
        elif logging.raiseExceptions:
            sys.excepthook(*sys.exc_info())


def _report(text: str, level: int, exc_info: Any = None) -> None:
    """Log something in the relay's own thread."""
    logger = logging.getLogger(NAMES[0])
    _hand_over(logger, logger.makeRecord(logger.name, level, __file__, 0, text, (), exc_info))


relay = Relay()

for _name in NAMES:
    logging.getLogger(_name).__class__ = QueuedLogger


def flush(timeout: float = END_TIMEOUT) -> bool:
    """Wait until the handlers have had what was logged up to now; False if they did not take it in time."""
    return relay.flush(timeout)


@atexit.register
def end() -> None:
    """At the end of the process: the last records; a handler that hangs must not hold that end up."""
    if relay.flush():
        return
    # logging.shutdown() would wait for the lock of the handler that hangs, and the interpreter for that of stderr.
    atexit.unregister(logging.shutdown)
    _close_handlers()
    sys.stderr = io.StringIO()


def _close_handlers() -> None:
    """What logging.shutdown() does, without the handlers that are in use."""
    for reference in reversed(list(getattr(logging, "_handlerList", []))):
        handler = reference()
        if handler is None or handler.lock is None or not handler.lock.acquire(blocking=False):
            continue
        try:
            # A stream handler has the same stderr, perhaps, and that is what hangs.
            if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
                with contextlib.suppress(OSError, ValueError):
                    handler.flush()
                    handler.close()
        finally:
            handler.lock.release()


in_child(Step.MEMORY, relay.renew)
