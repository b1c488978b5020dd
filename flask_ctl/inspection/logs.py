"""The last log records of the process: warnings always, the others from the moment that a client follows them.

The records are taken where a logger passes them to its handlers, `logging.Logger.callHandlers`, which is replaced for
that. A handler of ours would change what the program logs: with a handler at the root logger `logging.basicConfig` does
nothing, Flask adds no handler of its own, and `logging.lastResort` prints nothing; `dictConfig` would remove it, and it
would not see what does not propagate, such as ``gunicorn.error``.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..dispatch.redaction import masked_text
from ..system.fork import Step, in_child
from .ring import Ring

SIZE = 1000
"""Records of a kind that are kept: warnings and above, and the others."""

MAX_MESSAGE = 2048
"""Characters of a message, and of a traceback, of which the end is kept."""

MAX_NAME = 200
"""Characters of the name of a logger, of a thread, and of a request's id."""

CAPTURE = 5.0
"""Seconds for which records below WARNING are taken after a client has asked for them."""

MAX_NAMES = 20
"""Disabled loggers that an answer names."""


class Entry(NamedTuple):
    """A record, as the ring keeps it: nothing of the program's own, which may change, or be kept alive by it."""

    created: float
    level: int
    logger: str
    message: str
    thread: str
    request: str | None
    traceback: str | None


def _bare_entry(record: logging.LogRecord, message: str) -> Entry:
    """An entry with what every record has."""
    cut = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "…"
    name, thread = str(record.name)[:MAX_NAME], str(record.threadName or "")[:MAX_NAME]
    return Entry(float(record.created), int(record.levelno), name, cut, thread, None, None)


@dataclass(frozen=True)
class LogFilter:
    """What a reader wants to see."""

    level: int = 0
    logger: str = ""
    """The name of a logger, which stands for the loggers below it, too."""
    request: str = ""
    grep: str = ""
    since: float = 0.0
    """Seconds since the epoch."""

    def keep(self, entry: Entry) -> bool:
        """Whether the entry is to be seen."""
        return (
            entry.level >= self.level
            and later(entry.created, self.since)
            and (not self.logger or entry.logger == self.logger or entry.logger.startswith(f"{self.logger}."))
            and (not self.request or entry.request == self.request)
            and (not self.grep or self._is_in(entry.message) or self._is_in(entry.traceback or ""))
        )

    def _is_in(self, text: str) -> bool:
        # In what the reader gets, so that nobody can guess a secret letter by letter.
        return self.grep in text and self.grep in masked_text(text)


class LogRecorder:
    """Takes the records of the whole process, from `begin` on."""

    def __init__(self) -> None:
        self.ring = new_ring(SIZE)
        self.request_id: Callable[[], str | None] = lambda: None
        """The id that the request which this thread serves has been given by its client."""
        self._takes = False
        self._began: float | None = None
        self._captures = False
        self._captured_since = 0.0
        self._capture_ends = 0.0
        in_child(Step.MEMORY, self._forget)

    @property
    def began(self) -> float | None:
        """When it began, in seconds since the epoch; None if it has not."""
        return self._began

    def begin(self, size: int) -> None:
        """Take records from now on, `size` of a kind; 0 for none. Does nothing if it has begun."""
        if self._takes or size == 0:
            return
        self._takes = True
        if self._began is None:
            self._began = time.time()
        if size != SIZE:
            before, self.ring = self.ring, new_ring(size)
            self.ring.restore_state(before.export_state(sys.maxsize), lambda fields: Entry(*fields))
        call_handlers = logging.Logger.callHandlers

        def take_and_call(logger: logging.Logger, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING or self._captures:
                self.take(record)
            call_handlers(logger, record)

        logging.Logger.callHandlers = take_and_call  # type: ignore[method-assign, assignment]

    def take(self, record: logging.LogRecord) -> None:
        """Keep a record, as it is at this moment. Never raises: the program only wants to log."""
        try:
            entry = self._entry(record)
        except Exception as error:
            # A logging call with arguments that do not fit; the program's handlers report it where it is.
            text = repr(record.msg) if type(record.msg) is str else "a message"
            entry = _bare_entry(record, f"{text} can't be formatted: {type(error).__name__}")
        self.ring.append(entry)

    def _entry(self, record: logging.LogRecord) -> Entry:
        message, request = str(record.getMessage()), self.request_id()
        return _bare_entry(record, message)._replace(
            request=None if request is None else str(request)[:MAX_NAME], traceback=_traceback(record)
        )

    def capture(self) -> None:
        """A client follows: take records of every level for CAPTURE seconds more."""
        if not self._captures:
            self._captured_since = time.time()
            self._captures = True
        self._capture_ends = time.monotonic() + CAPTURE

    def tick(self) -> None:
        """Called every other second: nobody may follow any longer."""
        if self._captures and time.monotonic() > self._capture_ends:
            self._captures = False

    def export_state(self, limit: int) -> dict[str, Any]:
        """What the next image of this process keeps, of `limit` bytes as JSON at most."""
        return {"began": self._began, "ring": self.ring.export_state(limit)}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Continue with what the previous image has exported."""
        self._began = state["began"]
        self.ring.restore_state(state["ring"], lambda fields: Entry(*fields))

    def describe(self) -> dict[str, Any]:
        """Since when records are kept, and what can't be seen."""
        return {
            "kept_since": {
                "WARNING": _since(self._began if self._takes else None, self.ring, 1),
                "INFO": _since(self._captured_since or None, self.ring, 0),
            },
            "root_level": logging.getLevelName(logging.getLogger().getEffectiveLevel()),
            "disabled": disabled_loggers()[:MAX_NAMES],
        }

    def _forget(self) -> None:
        # What the parent has logged is the parent's to show.
        self.ring.clear()
        self._captures = False


def new_ring(size: int) -> Ring:
    """A ring for entries, of which `size` warnings and as many others stay."""
    return Ring(size, size, shelf=lambda entry: int(entry[1] >= logging.WARNING))


def _since(began: float | None, ring: Ring, shelf: int) -> str | None:
    oldest = ring.oldest(shelf) if ring.is_full(shelf) else None
    at = began if oldest is None else oldest[0]
    return None if at is None else as_time(at)


def _traceback(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    # The logging package has imported it.
    import traceback

    text = "".join(traceback.format_exception(*record.exc_info, limit=-20)).rstrip()
    if len(text) <= MAX_MESSAGE:
        return text
    # Whole lines only: of half a name it would not be known that its value is a secret.
    _, newline, lines = text[-MAX_MESSAGE:].partition("\n")
    return f"…\n{lines}" if newline else text[text.rfind("\n") + 1 :][:MAX_MESSAGE] + "…"


def disabled_loggers() -> list[str]:
    """The loggers that are switched off, as `dictConfig` does with those that it is not told about."""
    loggers = list(logging.Logger.manager.loggerDict.items())
    return sorted(name for name, logger in loggers if isinstance(logger, logging.Logger) and logger.disabled)


def later(at: float, since: float) -> bool:
    """Whether a time is later than another one that may have been rounded off to the millisecond, as `as_time` does."""
    return int(at * 1000) > round(since * 1000)


def as_time(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def as_item(entry: Any) -> dict[str, Any]:
    """An entry as a client gets it, without secrets."""
    created, level, logger, message, thread, request, traceback = entry
    item = {
        "time": as_time(created),
        "level": logging.getLevelName(level),
        "logger": logger,
        "message": masked_text(message),
        "thread": thread,
    }
    if request is not None:
        item["request"] = request
    if traceback is not None:
        item["traceback"] = masked_text(traceback)
    return item


recorder = LogRecorder()
"""Of this process."""
