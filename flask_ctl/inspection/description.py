"""What a serving process is made of: how it was started, its settings, its limits, its memory."""

from __future__ import annotations

import contextlib
import gc
import shlex
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from ..dispatch.redaction import masked_text
from ..protocol.framing import MAX_FRAME
from ..servers.open_sockets import listening
from ..system.limits import Limit, memory_in_use, process_limits
from ..system.platform import LINUX
from ..system.sockets import backlog
from .bounds import shortened, that_fit

MAX_BYTES = MAX_FRAME // 2
"""Bytes of JSON for the settings, or the routes, of one process."""

MAX_COMMAND = 2000
"""Characters of a command line that are shown."""

_USUAL = {"hash_randomization": (1,), "int_max_str_digits": (-1, 4300), "gil": (1,)}
"""Flags that are not 0 when an interpreter is started without options, by its version."""


class Described(Protocol):
    """An app in a process that serves it."""

    @property
    def settings(self) -> Any:
        """Gives its settings, each with ``name``, ``value`` and ``origin``."""

    @property
    def routes(self) -> Any:
        """Gives its routes, each with ``rule``, ``methods`` and ``endpoint``."""


def described_process(app: Described) -> list[dict[str, Any]]:
    """One object: ``program``, ``settings``, how many of these are ``left_out``, ``limits``, ``memory`` and ``gc``."""
    settings = app.settings()
    shown = that_fit(settings, MAX_BYTES)
    return [
        {
            "program": _program(),
            "settings": shown,
            "left_out": len(settings) - len(shown),
            "limits": [limit._asdict() for limit in (*process_limits(), *_backlogs())],
            "memory": {**memory_in_use(), "blocks": sys.getallocatedblocks()},
            "gc": _garbage_collector(),
        }
    ]


def described_routes(app: Described) -> list[dict[str, Any]]:
    """One object: the ``routes``, and how many of them are ``left_out``."""
    routes = app.routes()
    shown = that_fit(routes, MAX_BYTES)
    return [{"routes": shown, "left_out": len(routes) - len(shown)}]


def _program() -> dict[str, Any]:
    return {
        "command": shortened(masked_text(shlex.join(sys.orig_argv)), MAX_COMMAND, 0),
        "executable": sys.executable,
        "python": ".".join(map(str, sys.version_info[:3])),
        "virtual_environment": sys.prefix if sys.prefix != sys.base_prefix else None,
        "flags": list(_flags()),
    }


def _flags() -> Iterator[str]:
    """What is not as in an interpreter that is started without options: ``dev_mode``, ``optimize=2``, ``-X …``."""
    for name in (name for name in dir(sys.flags) if not name.startswith(("_", "n_"))):
        value = getattr(sys.flags, name)
        if isinstance(value, int) and value not in (0, *_USUAL.get(name, ())):
            yield name if value == 1 else f"{name}={int(value)}"
    yield from (f"-X {name}" if value is True else f"-X {name}={value}" for name, value in sys._xoptions.items())
    yield from (f"-W {option}" for option in sys.warnoptions)


def _backlogs() -> Iterator[Limit]:
    """Connections that wait to be accepted at each TCP address at which the process listens."""
    if not LINUX:
        return
    # If there is no descriptor left the addresses are missing.
    with contextlib.suppress(OSError):
        for listener in listening():
            if (counts := backlog(listener)) is not None:
                host, port = listener.getsockname()[:2]
                yield Limit("backlog", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", *counts)


def _garbage_collector() -> dict[str, Any]:
    stats = gc.get_stats()
    return {
        "enabled": gc.isenabled(),
        "thresholds": list(gc.get_threshold()),
        "counts": list(gc.get_count()),
        "collections": [one["collections"] for one in stats],
        "collected": sum(one["collected"] for one in stats),
        "uncollectable": sum(one["uncollectable"] for one in stats),
        "frozen": gc.get_freeze_count(),
    }
