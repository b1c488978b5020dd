"""A control socket that systemd has opened, and keeps when this process has ended."""

from __future__ import annotations

import logging

from ..errors import AddressInUse, ConfigurationError
from ..system.activation import activation
from ..system.native import socket
from .socketfile import BACKLOG, SocketFile

logger = logging.getLogger("flask_ctl")


class ActivatedSocket(SocketFile):
    """The file, its owner and its mode are systemd's, by the socket unit; ours are the lock beside it, and the clients.

    The kernel tells clients who has called listen(2) last, which is to be the process that answers.
    """

    file = None

    def acquire(self) -> socket.socket:
        """The socket, listening for this process. Raises AddressInUse if another one has the lock."""
        try:
            if self._lock < 0:
                self._take_lock()
        except AddressInUse:
            raise
        except (OSError, ConfigurationError) as error:
            logger.warning("%s has no lock file; --kill-after will be refused: %s", self.path, error)
            self._drop_lock()
        listener = activation.duplicate("control")
        listener.setblocking(False)
        listener.listen(BACKLOG)
        return listener

    def in_place(self) -> bool:
        """It is not put back: only systemd can open another one."""
        return True

    def release(self) -> None:
        """Give up the lock; more than once is fine."""
        self._drop_lock()

    def _set_access(self) -> None:
        """SocketMode=, SocketUser= and SocketGroup= have set it."""
