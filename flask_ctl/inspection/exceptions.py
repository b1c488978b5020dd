"""The last distinct exceptions that nothing in the app has handled."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from ..dispatch.redaction import masked_text
from ..protocol.jsonrpc import encode
from ..system.fork import Step, in_child
from ..system.native import threading
from . import events
from .bounds import shortened

MAX_ENTRIES = 50

MAX_BYTES = 256 * 1024
"""Bytes of JSON for all entries of an app."""

MAX_TEXT = 64 * 1024
"""Characters of a text that are searched for secrets."""

MAX_MESSAGE = 500
MAX_TRACEBACK_HEAD, MAX_TRACEBACK_TAIL = 3000, 5000

LOCK_TIMEOUT = 1.0
"""Seconds to wait for another thread that notes an exception; a signal handler may have interrupted this very one."""

logger = logging.getLogger("flask_ctl")

Entry = dict[str, Any]


class ExceptionTable:
    """Exceptions of one app as JSON objects, those that came last at the end; the least recent one makes room.

    Two are the same if they have the same type and came the same way (files and lines). Neither an exception nor a
    frame is kept. Any thread may note; reading takes no lock.
    """

    def __init__(self, root_path: str | None = None) -> None:
        """The app's code is below `root_path`; None if this table only merges others."""
        self._root_path = root_path
        self._entries: dict[str, Entry] = {}
        self._sizes: dict[str, int] = {}
        self._reset_lock()
        in_child(Step.MEMORY, self._reset_lock)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """The exceptions, the last one at the end.

        Each has ``id``, ``type``, ``message`` (of the last time), ``count``, ``first`` and ``last`` (Unix times),
        ``origin`` (request, thread or hook), ``route`` and ``method`` (of the last request, or None), ``where`` (the
        last frame in the app, or None) and ``traceback`` (perhaps of an earlier time).
        """
        return list(self._entries.values())

    def note(self, error: BaseException, origin: str, route: str | None = None, method: str | None = None) -> None:
        """Count an exception that `origin` has ended with; a failure of this very method is logged."""
        try:
            self._note(error, {"origin": origin, "route": route, "method": method})
        except Exception:
            logger.warning("an exception can't be noted for the command exceptions", exc_info=True)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count what another process, or the image before this one, has counted."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            return
        try:
            before = self._entries.pop(entry["id"], None)
            if before is not None:
                older, newer = sorted([before, entry], key=lambda one: one["last"])
                counts = {"count": before["count"] + entry["count"], "first": min(before["first"], entry["first"])}
                entry = {**older, **newer, **counts}
            self._entries[entry["id"]] = dict(entry)
            if entry["id"] not in self._sizes:
                self._sizes[entry["id"]] = len(encode(entry))
            while len(self._entries) > MAX_ENTRIES or sum(self._sizes.values()) > MAX_BYTES:
                oldest = next(iter(self._entries))
                del self._entries[oldest], self._sizes[oldest]
        finally:
            self._lock.release()

    def _note(self, error: BaseException, origin: dict[str, Any]) -> None:
        id, now = _id_of(error), time.time()
        entry = {"id": id, "count": 1, "first": now, "last": now, "message": _message_of(error), **origin}
        known = self._entries.get(id)
        if known is None:
            kind = type(error)
            name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            entry["type"], entry["where"] = name[:MAX_MESSAGE], _place_in(self._root_path, error.__traceback__)
            entry["traceback"] = _traceback_of(error)
        else:
            # Another thread may make room for others at this moment.
            entry |= {name: known[name] for name in ("type", "where", "traceback")}
        self.add(entry)
        if known is None:
            shown = {name: entry[name] for name in ("type", "origin", "route", "method")}
            events.record("exception", {"message": entry["message"], "id": id}, **shown)

    def _reset_lock(self) -> None:
        self._lock = threading.Lock()


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """The entries of several processes, as one table would have them."""
    table = ExceptionTable()
    for entry in sorted(entries, key=lambda entry: entry["last"]):
        table.add(entry)
    return table.entries()


def _id_of(error: BaseException) -> str:
    """The same in every process that runs the same code."""
    # Every process that can note an exception has Flask, which has imported it.
    import hashlib

    kind, frame = type(error), error.__traceback__
    digest = hashlib.sha1(f"{kind.__module__}.{kind.__qualname__}".encode(), usedforsecurity=False)
    while frame is not None:
        digest.update(f"\n{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}".encode(errors="replace"))
        frame = frame.tb_next
    return digest.hexdigest()[:12]


def _message_of(error: BaseException) -> str:
    try:
        text = str(error)[:MAX_TEXT]
    except Exception as problem:
        return f"(its text can't be had: {type(problem).__name__})"
    text = masked_text(text)
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"


def _traceback_of(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    text = masked_text(shortened("".join(lines), MAX_TEXT // 2, MAX_TEXT // 2))
    return shortened(text, MAX_TRACEBACK_HEAD, MAX_TRACEBACK_TAIL)


def _place_in(root_path: str | None, frame: TracebackType | None) -> str | None:
    """The last frame whose code is in this directory, as ``file:line, in function``; None without one."""
    found = None
    while frame is not None and root_path is not None:
        code = frame.tb_frame.f_code
        if code.co_filename.startswith(root_path + "/") and "/site-packages/" not in code.co_filename:
            found = f"{code.co_filename}:{frame.tb_lineno}, in {code.co_name}"
        frame = frame.tb_next
    return found
