"""The socket of the service manager, to which a server sends the datagrams of `sd_notify`."""

from __future__ import annotations

import array
import collections
import contextlib
import logging
import os
from collections.abc import Mapping

from .fork import Step, in_child
from .native import socket, threading
from .processes import parent_of
from .sd_notify import HELD_BACK, SOCKET, datagram, socket_address
from .waiting import wait_readable

MAX_KEPT = 16
"""Datagrams that wait for a manager which does not read its socket; the oldest are dropped."""

logger = logging.getLogger("flask_ctl")


class NotifySocket:
    """Sends to the manager, if there is one that has started the process `pid` itself. Any thread may.

    To send never blocks: what the manager's full socket does not take is kept, in order, for `flush`.
    """

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        value = environment.get(HELD_BACK) or environment.get(SOCKET) or ""
        self._address = socket_address(value) if _is_service("SYSTEMD_EXEC_PID", environment, pid) else None
        self.stores = environment.get("FDSTORE", "0") not in ("", "0")
        """Whether the manager says that it keeps descriptors (from version 254)."""
        self.watchdog = 0.0
        """Seconds without a ping after which the manager ends the service; 0 for no limit."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        if self._address is not None and microseconds.isdecimal() and _is_service("WATCHDOG_PID", environment, pid):
            self.watchdog = int(microseconds) / 1e6
        started = environment.get("SYSTEMD_EXEC_PID")
        self.is_main = None if started is None else started == str(os.getpid())
        """Whether this process is the one that systemd has started, which it hears by default; None if not known."""
        self._socket: socket.socket | None = None
        self._kept: collections.deque[tuple[bytes, int]] = collections.deque()
        self._lock = threading.Lock()
        self._complained = False
        if self._address is not None:
            in_child(Step.DESCRIPTORS, self._leave_to_parent)

    @property
    def is_there(self) -> bool:
        """Whether there is a manager to tell."""
        return self._address is not None

    def send(self, fields: Mapping[str, str | int], descriptor: int = -1) -> None:
        """Send one datagram, behind those that are kept; a duplicate of the `descriptor` goes with it.

        Raises OSError if no descriptor is left for that.
        """
        if self._address is None:
            return
        entry = datagram(fields), os.dup(descriptor) if descriptor >= 0 else -1
        with self._lock:
            if len(self._kept) == MAX_KEPT:
                self._drop()
            self._kept.append(entry)
            self._flush()

    def wait_until_done(self, timeout: float) -> bool:
        """Whether the manager has done all that it was told within so many seconds: sd_notify_barrier(3).

        Raises OSError if no descriptors are left for that.
        """
        ours, theirs = os.pipe()
        with open(ours, "rb", 0):
            with open(theirs, "wb", 0):
                self.send({"BARRIER": 1}, theirs)
            # The manager closes its duplicate.
            return bool(wait_readable([ours], timeout))

    def send_now(self, fields: Mapping[str, str | int]) -> None:
        """Send one of those that are repeated: without room it is left out, and pushes none out that is kept."""
        if self._address is None:
            return
        with self._lock:
            self._flush()
            if not self._kept:
                self._kept.append((datagram(fields), -1))
                self._flush()
                self._kept.clear()

    def flush(self) -> None:
        """Send what the manager has not taken before; called now and then."""
        if self._kept:
            with self._lock:
                self._flush()

    def close(self) -> None:
        """Give the descriptor back; `send` opens another one."""
        with self._lock:
            self._abandon()

    def _flush(self) -> None:
        try:
            sock = self._socket = self._socket or socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.setblocking(False)
            while self._kept:
                data, descriptor = self._kept[0]
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
                sock.sendmsg([data], [rights] if descriptor >= 0 else [], 0, self._address)
                self._drop()
        except BlockingIOError:
            """It is behind with its work."""
        except OSError as error:
            if self._kept and self._kept[0][1] >= 0:
                # Descriptors may be what it does not take.
                self._drop()
            # No descriptor is left, or the manager is being restarted.
            if not self._complained:
                self._complained = True
                logger.warning("the service manager can't be told of the server's state: %s", error)

    def _drop(self) -> None:
        _, descriptor = self._kept.popleft()
        if descriptor >= 0:
            os.close(descriptor)

    def _leave_to_parent(self) -> None:
        """In a forked child."""
        while self._kept:
            self._drop()
        self._abandon()

    def _abandon(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()


def _is_service(variable: str, environment: Mapping[str, str], pid: int) -> bool:
    """Whether a process, or its parent, is the one that systemd has started, as the variable tells (from version 248).

    A program that was started by another one of a service has the variables, too.
    """
    started = environment.get(variable)
    return started is None or started in (str(pid), str(os.getppid() if pid == os.getpid() else parent_of(pid)))
