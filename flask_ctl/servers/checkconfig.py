"""gunicorn's ``--check-config``, which is the preflight of its new code: it loads the app, and binds nothing.

At a reload with other addresses the master closes its listeners, binds all addresses anew, and ends if it can't. Old
workers still listen then, so an address that stays is taken, too.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from ..system.preflight import preflighting, served
from .urls import try_to_bind


def written(configuration: Any) -> list[str]:
    """The addresses of a gunicorn configuration, in a form that can be compared."""
    return [str(address) for address in configuration.address]


class ConfigCheck:
    """In a preflight: whether gunicorn could bind the addresses of the configuration with which it loads the app."""

    def __init__(self) -> None:
        self._configuration: Any = None

    def look(self) -> None:
        """Find the configuration on the stack, while the app is loaded."""
        if preflighting:
            self._configuration = self._configuration or _configuration()

    def check(self) -> None:
        """Raises OSError if the master would not get the addresses that the new configuration asks for."""
        configuration = self._configuration
        if configuration is not None and written(configuration) != served:
            for address in configuration.address:
                try_to_bind(address, shared=configuration.reuse_port)


def _configuration() -> Any:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "gunicorn.app.base" and "self" in frame.f_locals:
            return getattr(frame.f_locals["self"], "cfg", None)
        frame = frame.f_back
    return None
