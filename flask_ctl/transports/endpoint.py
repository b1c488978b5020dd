"""A listening socket at an address: opened, put back when its file is removed, handed over at a reload."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from ..dispatch.policy import FileAccess
from ..errors import ConfigurationError
from ..system.addresses import Address, prepare_directory
from ..system.handover import inherited
from ..system.native import socket

logger = logging.getLogger("flask_ctl")


class Place:
    """A place to listen at. The defaults are those of a port: there is no file, and the kernel guards it."""

    def acquire(self) -> socket.socket:
        """A listening socket. Raises ConfigurationError that says what is in the way and what to do."""
        raise NotImplementedError

    def adopt(self, descriptor: int, lock: int) -> socket.socket:
        """The listening socket that the previous image of this process left. Raises like `acquire`."""
        raise NotImplementedError

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


class Endpoint:
    """The socket at one address, from `open` to `close`.

    `caller` is the client that has asked the previous image for a reload, as `export_state` of its listener left it.
    """

    def __init__(self, address: Address, place: Place) -> None:
        self.address = address
        self.socket: socket.socket | None = None
        self.caller: dict[str, Any] | None = None
        self._place = place
        self._complained = False
        self._warned = False

    def check(self) -> None:
        """Raises InsecureConfiguration where `open` would."""
        self._place.check()

    def open(self) -> None:
        """Listen. Raises ConfigurationError, with the remedy, where that is not possible."""
        control = inherited.take_control(str(self.address))
        if control is not None:
            self._adopt(control)
        else:
            if self.address.path:
                prepare_directory(self.address.path)
            self.socket = self._place.acquire()
        self._warn_of_obstacle()

    def set_access(self, access: FileAccess) -> None:
        """Open the socket to other users, or close it. Raises ConfigurationError where that is not possible."""
        self._place.set_access(access)
        self._warn_of_obstacle()

    def tend(self) -> bool:
        """Called now and then: whether clients reach our socket. Restores a lock file that has been removed."""
        if self.socket is not None:
            self._place.keep_lock()
        return self.in_place()

    def in_place(self) -> bool:
        """Whether clients reach our socket."""
        return self.socket is not None and self._place.in_place()

    def restore(self) -> bool:
        """Listen anew, unless another process has taken the place; whether there is a new socket."""
        if not self._place.vacant() and not self._place.in_place():
            self._complain("something else is there now")
            return False
        self.close()
        try:
            self.open()
        except ConfigurationError as error:
            self._complain(error.message)
            return False
        logger.warning("the control socket %s had been removed; it is back", self.address)
        self._complained = False
        return True

    def export_state(self, caller: dict[str, Any] | None) -> dict[str, Any] | None:
        """What `Handover` keeps of it for the next image; None if there is no socket."""
        if self.socket is None:
            return None
        descriptor, self.socket = self.socket.detach(), None
        return {
            "address": str(self.address),
            "file": self.address.path or None,
            "socket": descriptor,
            "lock": self._place.hand_over(),
            "caller": caller,
        }

    def close(self) -> None:
        """Give up the address; more than once is fine."""
        self._close_socket()
        self._place.release()

    def abandon(self) -> None:
        """In a forked child: close its copy of the socket's descriptor. The place closes that of its lock by itself."""
        self._close_socket()

    def _adopt(self, control: dict[str, Any]) -> None:
        try:
            self.socket = self._place.adopt(control["socket"], control["lock"])
        except ConfigurationError:
            if "descriptor" in (control["caller"] or {}):
                os.close(control["caller"]["descriptor"])
            raise
        self.caller = control["caller"]

    def _warn_of_obstacle(self) -> None:
        directory = self._place.obstacle()
        if directory is not None and not self._warned:
            self._warned = True
            logger.warning(
                "%s is open to others by CTL_ALLOW, but they can't all enter %s; give a path in a directory that they"
                " can enter by FLASK_CTL_SOCKET",
                self.address,
                directory,
            )

    def _close_socket(self) -> None:
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.close()
        self.socket = None

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("the control socket %s was removed and can't be put back: %s", self.address, reason)
