"""A quick end of a process that serves an app: without the last garbage collection."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import stat

_FILE: type = io.IOBase.__base__  # type: ignore[assignment]
"""The base of all file classes. It is not abstract: an abstract one takes ten times as long to ask."""


def exit_quickly() -> None:
    """Skip the garbage collection at the end of this process, which takes longer than the rest of the exit.

    To be called before other exit functions are registered: the last ones to be registered are called first.
    """
    atexit.register(_skip_collection)


def _skip_collection() -> None:
    _flush_files()
    gc.freeze()


def _flush_files() -> None:
    """Flush open files: after `gc.freeze` nothing closes a file in a reference cycle.

    Only regular files: a pipe or socket without a reader must not block the exit.
    """
    for candidate in gc.get_objects():
        if issubclass(type(candidate), _FILE):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if stat.S_ISREG(os.fstat(candidate.fileno()).st_mode):
                    candidate.flush()
