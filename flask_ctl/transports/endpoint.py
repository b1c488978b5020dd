"""What the listeners have in common whose socket we bind: it is put back when its file is removed, and handed over."""

# Methods that do nothing are the defaults of a port.
# ruff: noqa: B027

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from typing import Any

from ..dispatch.guard import Guard
from ..dispatch.policy import FileAccess
from ..errors import ConfigurationError
from ..system.addresses import Address, prepare_directory
from ..system.handover import inherited
from ..system.native import socket
from .base import Listener

logger = logging.getLogger("flask_ctl")


class Place(ABC):
    """A place to listen at. The defaults are those of a port: there is no file, and the kernel guards it."""

    file: str | None = None
    """The file to remove if nothing listens there any more."""

    @abstractmethod
    def acquire(self) -> socket.socket:
        """A listening socket. Raises ConfigurationError that says what is in the way and what to do."""

    @abstractmethod
    def adopt(self, descriptor: int, lock: int) -> socket.socket:
        """The listening socket that the previous image of this process left. Raises like `acquire`."""

    def check(self) -> None:
        """Raises InsecureConfiguration where `acquire` would."""

    def set_access(self, access: FileAccess) -> None:
        """Be as open as this from now on. Raises ConfigurationError like `acquire`."""

    def hand_over(self) -> int:
        """The lock's descriptor, for `adopt`, or -1; the place is left as it is."""
        return -1

    def obstacle(self) -> str | None:
        """A directory that users with access can't enter, None if there is none."""
        return None

    def in_place(self) -> bool:
        """Whether a client that connects reaches our socket."""
        return True

    def keep_lock(self) -> None:
        """Hold the place's lock where others look for it; called now and then."""

    def vacant(self) -> bool:
        """Whether nothing is there."""
        return False

    def release(self) -> None:
        """Give it up; more than once is fine."""

    def abandon(self) -> None:
        """In a forked child: close its copies of descriptors, and touch nothing else."""


class BoundListener(Listener):
    """A listener with a socket of ours, from `open` to `close`. A subclass serves the clients."""

    def __init__(self, address: Address, place: Place, guard: Guard) -> None:
        self._address = address
        self._place = place
        self._guard = guard
        self._socket: socket.socket | None = None
        self._caller: dict[str, Any] | None = None
        """The client that asked the previous image for a reload, as `export_state` left it."""
        self._complained = False
        self._warned = False

    @property
    def endpoint(self) -> str:
        return str(self._address)

    def check(self) -> None:
        self._place.check()

    def open(self) -> None:
        control = inherited.take_control(self.endpoint)
        if control is not None:
            self._adopt(control)
        else:
            if self._address.path:
                prepare_directory(self._address.path)
            self._socket = self._place.acquire()
        self._warn_of_obstacle()

    def renew_access(self) -> None:
        self._place.set_access(self._guard.policy.file_access())
        self._warn_of_obstacle()

    def close(self) -> None:
        self._close_socket()
        self._place.release()

    def abandon(self) -> None:
        # The place closes its copy of the lock's descriptor by itself.
        self._close_socket()

    def _is_reached(self) -> bool:
        """Whether clients reach our socket. Restores a lock file that has been removed."""
        if self._socket is None:
            return False
        self._place.keep_lock()
        return self._place.in_place()

    def _restore(self) -> bool:
        """Listen anew, unless another process has taken the place; whether there is a new socket."""
        if not self._place.vacant() and not self._place.in_place():
            self._complain("something else is there now")
            return False
        self._close_socket()
        self._place.release()
        try:
            self.open()
        except ConfigurationError as error:
            self._complain(error.message)
            return False
        logger.warning("the control socket %s had been removed; it is back", self._address)
        self._complained = False
        return True

    def _export_socket(self, caller: dict[str, Any] | None) -> dict[str, Any] | None:
        """What `Handover` keeps of it for the next image; None if there is no socket."""
        if self._socket is None:
            return None
        descriptor, self._socket = self._socket.detach(), None
        return {
            "address": self.endpoint,
            "file": self._place.file,
            "socket": descriptor,
            "lock": self._place.hand_over(),
            "caller": caller,
        }

    def _adopt(self, control: dict[str, Any]) -> None:
        try:
            self._socket = self._place.adopt(control["socket"], control["lock"])
        except ConfigurationError:
            if "descriptor" in (control["caller"] or {}):
                os.close(control["caller"]["descriptor"])
            raise
        self._caller = control["caller"]

    def _warn_of_obstacle(self) -> None:
        directory = self._place.obstacle()
        if directory is not None and not self._warned:
            self._warned = True
            logger.warning(
                "%s is open to others by CTL_ALLOW, but they can't all enter %s; give a path in a directory that they"
                " can enter by FLASK_CTL_SOCKET",
                self._address,
                directory,
            )

    def _close_socket(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("the control socket %s was removed and can't be put back: %s", self._address, reason)
