"""The end of this process: open control sockets are closed as late as possible."""

from __future__ import annotations

import atexit
import sys
from typing import Protocol

from . import logs  # noqa: F401  # whose exit function comes after ours, because it is registered before
from .fork import Step, in_child


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


_open: set[Closable] = set()
_leaving = False


def close_at_exit(resource: Closable) -> None:
    """Have `resource` closed at the end of the process, unless `forget` comes first."""
    _open.add(resource)
    if "multiprocessing" in sys.modules:
        # A multiprocessing child ends by os._exit, without atexit.
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            util.Finalize(resource, resource.close, exitpriority=0)


def is_leaving() -> bool:
    """Whether interpreter shutdown has begun. Leave connections open then: clients take their end for the process's."""
    return _leaving


def forget(resource: Closable) -> None:
    """`resource` is closed already, or is handed over to the next process image."""
    _open.discard(resource)


@atexit.register
def _close_all() -> None:
    # Registered at import, so called after the app's own exit functions: if one of them hangs, status still answers.
    global _leaving
    _leaving = True
    for resource in list(_open):
        resource.close()


in_child(Step.MEMORY, _open.clear)
