"""Levels of loggers that operators have set for a time, and log files that are opened anew.

A lease holds in each process that serves. The functions that touch loggers and handlers run in the app's own threads:
they take locks of the `logging` package.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..system.native import threading

MAX_LOGGERS = 100
"""Loggers that one process tells of, if none is named."""


@dataclass(frozen=True)
class Lease:
    """A level for a logger ("" is the root) until a moment of the system's monotonic clock.

    `number` is greater than that of each lease before; `by` asked for it, at `since` (RFC 3339).
    """

    number: int
    logger: str
    level: int
    until: float
    since: str
    by: dict[str, Any]


class _LeasedLevel(int):
    """The level that a lease has set: where another object stands, even of the same value, it was set by the app."""


class _Held(NamedTuple):
    before: int
    level: _LeasedLevel
    number: int


class LogLevels:
    """The leases of this process. Of the leases of one logger the last one that has not expired sets its level.

    With the last one the level from before comes back, unless the app has set another one meanwhile: then these leases
    are void.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._changed = False
        self._given: Sequence[Lease] = ()
        self._leases: Sequence[Lease] = ()
        self._held: dict[str, _Held] = {}
        self._void: set[int] = set()

    def due(self) -> bool:
        """Whether a lease has expired: `expire` has something to do."""
        now = time.monotonic()
        return any(lease.until <= now for lease in self._leases)

    def hold(self, leases: Iterable[Lease]) -> None:
        """Have these leases hold, in the order of their numbers, and no other ones."""
        self._given = sorted(leases, key=lambda lease: lease.number)
        self.expire()

    def expire(self) -> None:
        """End the leases that have expired."""
        self._changed = True
        # Nobody waits: a greenlet that did would not let the other one go on. Who is at work does it once more.
        while self._changed and self._busy.acquire(blocking=False):
            try:
                self._changed = False
                self._set_levels(self._given)
            finally:
                self._busy.release()

    def _set_levels(self, given: Sequence[Lease]) -> None:
        self._notice_changes()
        now = time.monotonic()
        self._void &= {lease.number for lease in given}
        self._leases = [lease for lease in given if lease.until > now and lease.number not in self._void]
        last = {lease.logger: lease for lease in self._leases}
        for name in list(self._held.keys() - last.keys()):
            logging.getLogger(name).setLevel(self._held.pop(name).before)
        for name, lease in last.items():
            self._apply(name, lease)

    def describe(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """``logger``, ``level`` and ``note`` of these loggers; by default of the root and of those with a level."""
        known = dict(logging.Logger.manager.loggerDict)
        if names is None:
            with_level = (name for name, one in known.items() if isinstance(one, logging.Logger) and one.level)
            names = ["", *sorted(with_level)][:MAX_LOGGERS]
        return [_described(name, known) for name in names]

    def _notice_changes(self) -> None:
        """The leases of a logger whose level is not the one that was set are void."""
        for name, held in list(self._held.items()):
            if logging.getLogger(name).level is not held.level:
                self._void |= {lease.number for lease in self._leases if lease.logger == name}
                del self._held[name]

    def _apply(self, name: str, lease: Lease) -> None:
        logger, held = logging.getLogger(name), self._held.get(name)
        if held is None or held.number != lease.number:
            level = _LeasedLevel(lease.level)
            self._held[name] = _Held(logger.level if held is None else held.before, level, lease.number)
            logger.setLevel(level)


levels = LogLevels()
"""Of this process."""


def _described(name: str, known: dict[str, Any]) -> dict[str, Any]:
    # A logger that is not there yet has the level of the next one above it.
    above = name
    while above and not isinstance(known.get(above), logging.Logger):
        above = above.rpartition(".")[0]
    logger = known[above] if above else logging.getLogger()
    level = logger.getEffectiveLevel()
    return {"logger": name or "root", "level": logging.getLevelName(level), "note": _note(name, above, logger, level)}


def _note(name: str, above: str, logger: logging.Logger, level: int) -> str:
    """Why records of that level may not be seen, though the logger lets them through."""
    if above != name:
        return "no logger of this name has been used yet"
    if logger.disabled:
        return "the logger is disabled"
    lowest = min((handler.level for handler in _handlers_for(logger)), default=logging.WARNING)
    return f"its handlers take nothing below {logging.getLevelName(lowest)}" if lowest > level else ""


def _handlers_for(logger: logging.Logger) -> Iterator[logging.Handler]:
    following: logging.Logger | None = logger
    while following is not None:
        yield from following.handlers
        following = following.parent if following.propagate else None


def reopen_logs() -> list[dict[str, Any]]:
    """Open the file of each handler anew; each ``file``, and the ``error`` if that failed: then the old one stays."""
    # The package's own list, of weak references, has those behind queues and other handlers, too.
    handlers = [reference() for reference in list(logging._handlerList)]  # type: ignore[attr-defined]
    return [_reopen(handler) for handler in handlers if isinstance(handler, logging.FileHandler) and handler.stream]


def _reopen(handler: logging.FileHandler) -> dict[str, Any]:
    handler.acquire()
    try:
        stream = _appending(handler)
        old = handler.setStream(stream)
        if old is not None:
            old.close()
    except (OSError, ValueError) as error:
        return {"file": handler.baseFilename, "error": str(error)}
    else:
        return {"file": handler.baseFilename, "error": None}
    finally:
        handler.release()


def _appending(handler: logging.FileHandler) -> Any:
    """The handler's file, opened anew. Its own mode may be "w", and the file still be the same."""
    mode = handler.mode
    handler.mode = mode.replace("w", "a").replace("x", "a")
    try:
        return handler._open()
    finally:
        handler.mode = mode


def log_levels(leases: Iterable[dict[str, Any]], loggers: Sequence[str] | None) -> list[dict[str, Any]]:
    """Have the leases hold, and describe loggers."""
    levels.hold(Lease(**lease) for lease in leases)
    return levels.describe(loggers)


CHORES: dict[str, Callable[..., list[dict[str, Any]]]] = {"log_levels": log_levels, "reopen_logs": reopen_logs}
"""What each serving process can be asked to do in a thread of the app's; each answers a list of JSON objects."""
