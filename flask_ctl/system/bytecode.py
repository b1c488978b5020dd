"""Bytecode that Python would use although its source has changed.

Python believes a ``.pyc`` if it names the source's size and its time in whole seconds, so an edit that keeps the
size, in the second of the one before, goes unnoticed; an unchecked one is never compared (PEP 552;
`SourceLoader.get_code`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import sysconfig

MARGIN_NS = 2 * 10**9
"""Bytecode that is so little younger than its source may have been compiled from the text before."""

INSTALLED = {"site-packages", "dist-packages"}
"""Directories whose files a package manager changes, and nobody else."""

_HEADER = 16
_HASHED, _CHECKED = 1, 2


def remove_stale() -> None:
    """Remove it for the loaded modules that are this program's own: neither Python's nor installed."""
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        source, cached = getattr(spec, "origin", None), getattr(spec, "cached", None)
        if isinstance(source, str) and isinstance(cached, str) and _is_own(source):
            # Either may be gone; what can't be removed belongs to somebody else.
            with contextlib.suppress(OSError):
                if _is_stale(source, cached):
                    os.unlink(cached)


def _is_own(source: str) -> bool:
    return not (INSTALLED & set(source.split(os.sep)) or source.startswith(_STANDARD_LIBRARY))


_STANDARD_LIBRARY = tuple({os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")})


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
