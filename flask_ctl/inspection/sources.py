"""Lines of source files, for the frames of a stack."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable

from ..dispatch.redaction import masked_text
from ..system.program import program
from ..system.reserve import reserve

MAX_FILES = 200
"""Files that are read for one answer."""

MAX_FILE = 1024 * 1024
"""Bytes of a file; a line behind them is not shown."""

MAX_READ = 4 * MAX_FILE
"""Bytes that are read for one answer; a file for which there is no room left is not read."""

MAX_LINE = 200
"""Characters of a line."""


class Sources:
    """The given lines of files, for one answer: reads each file once, and keeps only those lines.

    A file that has been changed since the code was loaded is not read: its lines may be others than those that run.
    """

    def __init__(self, lines: Iterable[tuple[str, int | None]]) -> None:
        self._wanted: dict[str, set[int]] = {}
        for path, number in lines:
            self._wanted.setdefault(path, set()).add(number or 0)
        self._files: dict[str, dict[int, bytes]] = {}
        self._room = MAX_READ
        self._loaded_at = time.time() - (time.monotonic() - program.loaded_at)

    def line(self, path: str, number: int) -> str | None:
        """The line without its indentation and without secrets, None if it is not known."""
        wanted = self._wanted.get(path, set())
        if path not in self._files:
            lines = self._read(path) if wanted and len(self._files) < MAX_FILES else []
            self._files[path] = {each: lines[each - 1] for each in wanted if 0 < each <= len(lines)}
        line = self._files[path].get(number, b"")
        return masked_text(line.decode(errors="replace").strip()[:MAX_LINE]) or None

    def _read(self, path: str) -> list[bytes]:
        if not os.path.isabs(path):
            return []
        try:
            # Not for a FIFO, which would block.
            descriptor = reserve.retry(lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return []
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or info.st_ctime > self._loaded_at:
                return []
            size = min(info.st_size, MAX_FILE)
            if size > self._room:
                return []
            self._room -= size
            return os.read(descriptor, size).splitlines()
        except OSError:
            return []
        finally:
            os.close(descriptor)
