"""Standard library modules without gevent's patches, for code that has to run while a greenlet computes.

`gevent.monkey` turns threads into greenlets, and makes locks, sockets and selectors cooperative. The names here stand
for the modules themselves or, once gevent has patched them, for copies with the original content. They check at every
use, because a program may be patched after it has imported flask-ctl.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import queue
    import select
    import selectors
    import socket
    import subprocess
    import threading
    from collections.abc import Callable
    from concurrent.futures import Future
else:

    class _Module:
        """The original module of that name."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(_unpatched(self._name), attribute)

    queue, select, selectors, socket, subprocess, threading = map(
        _Module, ["queue", "select", "selectors", "socket", "subprocess", "threading"]
    )


def is_patched() -> bool:
    """Whether threads of this program are greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def start_thread(run: Callable[[], Any]) -> None:
    """Run it in a daemon thread unknown to `threading`. Takes no lock, so signal handlers may call this."""
    _unpatched("_thread").start_new_thread(run, ())


def new_future() -> Future[Any]:
    """A Future whose lock is real."""
    from concurrent.futures import Future  # no client needs it

    future: Future[Any] = Future()
    future._condition = threading.Condition()
    return future


__all__ = [
    "is_patched",
    "new_future",
    "queue",
    "select",
    "selectors",
    "socket",
    "start_thread",
    "subprocess",
    "threading",
]

_WITH_STATE = {"queue", "selectors", "subprocess", "threading"}
"""Modules whose classes use their own imports, so a copy has to be executed."""

_copies: dict[str, ModuleType] = {}
_import_once = functools.cache(importlib.import_module)


def _unpatched(name: str) -> ModuleType:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched(name):
        return _import_once(name)
    if name not in _copies:
        _copies[name] = _execute(name) if name in _WITH_STATE else _restore(name)
    return _copies[name]


def _execute(name: str) -> ModuleType:
    import importlib.util

    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    vars(copy)["__builtins__"] = {**vars(builtins), "__import__": _import}
    spec.loader.exec_module(copy)
    return copy


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:
    """`__import__` for a copy: the unpatched version of a module that gevent has patched, else the ordinary import."""
    if not level and sys.modules["gevent.monkey"].is_module_patched(name):
        return _unpatched(name)
    return builtins.__import__(name, globals, locals, fromlist, level)


def _restore(name: str) -> ModuleType:
    from gevent.monkey import get_original

    copy = ModuleType(name)
    for attribute in {*vars(importlib.import_module(name)), *_TAKEN_AWAY}:
        with contextlib.suppress(AttributeError):
            setattr(copy, attribute, get_original(name, attribute))
    if name == "socket":
        copy.socket = _socket_class(copy)  # type: ignore[attr-defined]
    return copy


_TAKEN_AWAY = ("epoll", "kqueue", "kevent", "devpoll")
"""What gevent removes from `select` without a replacement."""


def _socket_class(module: Any) -> type:
    class Socket(module.socket):  # type: ignore[misc]
        """Its accept() returns sockets of this class: the original takes the class from the module, now gevent's."""

        __slots__ = ()

        def accept(self) -> tuple[Any, Any]:
            descriptor, address = self._accept()
            return type(self)(self.family, self.type, self.proto, fileno=descriptor), address

    return Socket
