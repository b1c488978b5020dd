"""A queue for flask-ctl's log records, and the thread that passes them to the program's log handlers.

A handler is the program's own code and may block: a write to a pipe without a reader never returns. So handlers are
never called on the control thread, nor while a lock of flask-ctl is held. At most MAX_WAITING records wait. Others
are dropped; one more record reports their number once there is room.
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
"""Seconds to wait for the handlers at the end of the process."""

NAMES = ("flask_ctl", "flask_ctl.audit")


class Relay:
    """Passes records to the handlers of their logger in a thread of its own.

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
        # Its arguments may change before a handler formats them.
        record.msg, record.args = record.getMessage(), None
        self._used = True
        self._queue.put((logger, record))
        self._start()

    def flush(self, timeout: float = END_TIMEOUT) -> bool:
        """Wait until the handlers have processed all records queued so far; False on timeout."""
        if not self._used or threading.get_ident() == self._thread:
            return True
        flushed = threading.Event()
        self._queue.put(flushed)
        return bool(flushed.wait(timeout))

    def renew(self) -> None:
        """In a forked child: it has no such thread, and the parent logs what is queued."""
        self.__init__()  # type: ignore[misc]

    def _start(self) -> None:
        # `next` of a count is atomic, so only one of several threads starts the relay.
        if self._thread or next(self._starts):
            return
        try:
            start_thread(self._run)
        except RuntimeError:
            # The system has no thread left: the next record tries again.
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
        # Raised by a filter of the program, or by a handler without error handling.
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
    """Wait until the handlers have processed all records logged so far; False on timeout."""
    return relay.flush(timeout)


@atexit.register
def end() -> None:
    """At the end of the process: flush the last records, without waiting for a handler that hangs."""
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
            # A stream handler may write to the same stderr that hangs.
            if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
                with contextlib.suppress(OSError, ValueError):
                    handler.flush()
                    handler.close()
        finally:
            handler.lock.release()


in_child(Step.MEMORY, relay.renew)
