"""Bytecode that may be older than its source.

Python believes a ``.pyc`` if it names the source's size and its time in whole seconds, so an edit that keeps the
size, in the second of the one before, goes unnoticed (PEP 3147; `SourceLoader.get_code`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys

MARGIN_NS = 2 * 10**9
"""Bytecode that is so little younger than its source may have been compiled from the text before."""


def remove_stale() -> None:
    """Remove what can't be trusted, for the modules of this program and their neighbours."""
    directories = {os.path.dirname(cached) for cached in map(_cached, list(sys.modules.values())) if cached}
    for directory in directories:
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(".pyc") and _is_stale(entry):
                    os.unlink(entry.path)


def _cached(module: object) -> str | None:
    cached = getattr(getattr(module, "__spec__", None), "cached", None)
    return cached if isinstance(cached, str) else None


def _is_stale(bytecode: os.DirEntry[str]) -> bool:
    try:
        source = importlib.util.source_from_cache(bytecode.path)
        # The time of change, which unlike that of modification can't be set to what it was.
        return os.stat(source).st_ctime_ns > bytecode.stat().st_mtime_ns - MARGIN_NS
    except (OSError, ValueError):
        return False
