"""System calls that fail once, at their first, second, … call, in the threads of the package alone."""

from __future__ import annotations

import builtins
import errno
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """A function, and what it raises when the system has no more of something."""

    owner: Any
    name: str
    error: BaseException

    def __str__(self) -> str:
        what = errno.errorcode[self.error.errno or 0] if isinstance(self.error, OSError) else "no thread"
        owner = getattr(self.owner, "__qualname__", self.owner.__name__)
        return f"{owner}.{self.name} {what}"


class Arming:
    """A fault at the `nth` call; `came` says whether there was one."""

    def __init__(self, nth: int) -> None:
        self.came = False
        self._left = nth
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        if not threading.current_thread().name.startswith("flask-ctl"):
            return False
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.came = True
                return True
            return False


@contextmanager
def armed(fault: Fault, nth: int) -> Iterator[Arming]:
    """Have the nth call fail, if there are so many in here."""
    arming = Arming(nth)
    own = fault.name in vars(fault.owner)
    real = getattr(fault.owner, fault.name)

    def call(*args: Any, **kwargs: Any) -> Any:
        # What fails inside of Popen leaves its process to Python; that Popen fails is a fault of its own.
        if sys._getframe(1).f_globals.get("__name__") != "subprocess" and arming.is_due():
            # A new one each time: what an exception has been through stays alive with it.
            raise type(fault.error)(*fault.error.args)
        return real(*args, **kwargs)

    setattr(fault.owner, fault.name, call)
    try:
        yield arming
    finally:
        if own:
            setattr(fault.owner, fault.name, real)
        else:
            delattr(fault.owner, fault.name)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _faults() -> list[Fault]:
    no_descriptor: list[tuple[Any, str]] = [
        (os, "eventfd"), (os, "pipe"), (os, "dup"), (os, "open"), (os, "memfd_create"), (os, "scandir"),
        (os, "listdir"), (os, "pidfd_open"), (builtins, "open"), (socket.socket, "_accept"), (socket, "dup"),
        (subprocess, "Popen"),
    ]  # fmt: skip
    no_memory: list[tuple[Any, str]] = [
        (os, "memfd_create"), (os, "stat"), (os, "fstat"), (os, "read"), (os, "readlink"), (os, "set_blocking"),
        (os, "set_inheritable"), (os, "access"), (selectors.DefaultSelector, "register"),
        (selectors.DefaultSelector, "select"), (socket.socket, "_accept"),
        (socket.socket, "recv"), (socket.socket, "send"), (socket.socket, "getsockopt"), (socket.socket, "setblocking"),
    ]  # fmt: skip
    return [
        *(Fault(owner, name, _os_error(errno.EMFILE)) for owner, name in no_descriptor if hasattr(owner, name)),
        *(Fault(owner, name, _os_error(errno.ENOMEM)) for owner, name in no_memory if hasattr(owner, name)),
        Fault(threading.Thread, "start", RuntimeError("can't start new thread")),
    ]


FAULTS = {str(fault): fault for fault in _faults()}
