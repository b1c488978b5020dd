"""The default name of an app's socket, which several instances of the app may want.

The first one has it. Each of the others has a name of its own, with its pid. When no instance has the default name any
more, the one whose flock(2) comes first listens there, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import AddressInUse, ConfigurationError
from ..system import locks
from ..system.addresses import other_names, own_path
from ..system.handover import inherited
from .socketfile import remove_dead

logger = logging.getLogger("flask_ctl")

Listen = Callable[[str], Any]
"""Listens at a path. Raises ConfigurationError, AddressInUse for one that another instance has."""


class DefaultName:
    """The default socket of an app as one instance has it: the plain name, a name of its own, or both.

    `pid` is the instance's, the one that `status` tells; that of a master, if a `hub` listens. Belongs to the control
    thread once that runs.
    """

    def __init__(self, path: str, pid: int, *, hub: bool = False) -> None:
        self.path = path
        self.own = own_path(path, pid)
        self._master = pid if hub else None
        self._has_plain = self._has_own = False

    def open(self, listen: Listen) -> None:
        """Listen at the plain name, or if another instance has that, at our own. Raises ConfigurationError.

        Sockets that the previous image of this process left are taken, both names if there are two.
        """
        for path in other_names(self.path):
            # What we have inherited must not be opened before it is ours.
            if not inherited.leaves(path):
                remove_dead(path)
        self._claim(listen)
        if not self._has_plain or inherited.leaves(self.own):
            listen(self.own)
            self._has_own = True

    def tend(self, listen: Listen) -> bool:
        """Called now and then: whether we listen at the plain name from now on, as no other instance does."""
        if self._has_plain:
            return False
        try:
            self._claim(listen)
        except ConfigurationError as error:
            logger.debug("%s can't be taken over: %s", self.path, error.message)
        return self._has_plain

    def close(self) -> None:
        """After the end of listening: remove the files of our own name, which is never used again."""
        if self._has_own:
            remove_dead(self.own)

    def _claim(self, listen: Listen) -> None:
        if not inherited.leaves(self.path) and locks.held_by_others(self.path, self._master):
            return
        try:
            listen(self.path)
        except AddressInUse as error:
            logger.debug("%s", error.message)
        else:
            self._has_plain = True
