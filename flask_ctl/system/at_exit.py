"""The end of this process: whatever still holds control sockets gives them up, as late as possible."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import stat
import sys
from typing import Protocol

from . import logs  # noqa: F401  # whose exit function comes after ours, because it is registered before
from .fork import Step, in_child


class Closable(Protocol):
    def close(self) -> None: ...


_open: set[Closable] = set()
_leaving = False


def close_at_exit(resource: Closable) -> None:
    """Have it closed at the end of the process, unless it is forgotten before."""
    _open.add(resource)
    if "multiprocessing" in sys.modules:
        # A child of multiprocessing leaves by os._exit, without atexit.
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            util.Finalize(resource, resource.close, exitpriority=0)


def is_leaving() -> bool:
    """Whether the process is about to end: what clients take for its end may be left to the kernel now."""
    return _leaving


def forget(resource: Closable) -> None:
    """It is closed, or is to outlive this image of the process."""
    _open.discard(resource)


@atexit.register
def _close_all() -> None:
    # Registered when the package is imported, so called after the app's own: if one of them hangs, status answers.
    global _leaving
    _leaving = True
    served = bool(_open)
    for resource in list(_open):
        resource.close()
    if served:
        _flush_files()
        # The modules of a Flask app take longer to collect than the whole of the rest of the exit.
        gc.freeze()


def _flush_files() -> None:
    """Write what open files hold back: those in a reference cycle would have been closed by that collection.

    Only regular files: a pipe or a socket that nobody reads must not hold up the end.
    """
    for candidate in gc.get_objects():
        if issubclass(type(candidate), io.IOBase):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if stat.S_ISREG(os.fstat(candidate.fileno()).st_mode):
                    candidate.flush()


in_child(Step.MEMORY, _open.clear)
