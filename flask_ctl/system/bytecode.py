"""Stale bytecode that Python would still use.

Python accepts a ``.pyc`` that names the source's size and its time in whole seconds. So an edit within the same second
that keeps the size goes unnoticed. An unchecked hash-based one is never compared (PEP 552; `SourceLoader.get_code`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys

MARGIN_NS = 2 * 10**9
"""Nanoseconds; bytecode that is less than this younger than its source may come from the previous version."""

INSTALLED = {"site-packages", "dist-packages"}
"""Directories whose files only a package manager changes."""

_HEADER = 16
_HASHED, _CHECKED = 1, 2


def remove_stale() -> None:
    """Remove the stale bytecode of the program's own loaded modules: neither Python's nor installed."""
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        source, cached = getattr(spec, "origin", None), getattr(spec, "cached", None)
        if isinstance(source, str) and isinstance(cached, str) and _is_own(source):
            # Either file may be gone; bytecode that can't be removed belongs to another user.
            with contextlib.suppress(OSError):
                if _is_stale(source, cached):
                    os.unlink(cached)


def _is_own(source: str) -> bool:
    return not (INSTALLED & set(source.split(os.sep)) or source.startswith(_STANDARD_LIBRARY))


# `sysconfig` would tell, too, but it loads the variables with which Python was built.
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")


def _is_stale(source: str, cached: str) -> bool:
    with open(cached, "rb") as file:
        header = file.read(_HEADER)
        compiled = os.fstat(file.fileno())
    flags = int.from_bytes(header[4:8], "little")
    if len(header) < _HEADER or header[:4] != importlib.util.MAGIC_NUMBER or flags & _CHECKED:
        return False
    if flags & _HASHED:
        with open(source, "rb") as file:
            return importlib.util.source_hash(file.read()) != header[8:16]
    text = os.stat(source)
    named = int.from_bytes(header[8:12], "little"), int.from_bytes(header[12:16], "little")
    if named != (int(text.st_mtime) & 0xFFFFFFFF, text.st_size & 0xFFFFFFFF):
        # Python notices that itself.
        return False
    # The time of change, which unlike that of modification can't be set to what it was.
    return text.st_ctime_ns > compiled.st_mtime_ns - MARGIN_NS
