"""A worker's connection with its hub: a real thread that keeps it up, and brings the hub back if it is gone."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from ...errors import RemoteProtocolError
from ...protocol.framing import LineBuffer
from ...system.credentials import peer_credentials
from ...system.fork import Step, in_child
from ...system.native import socket, start_thread, threading
from ...system.waiting import Waker, wait_readable
from .spawn import start_hub

RETRY_INTERVAL, MAX_RETRY_INTERVAL = 0.02, 1.0
"""Seconds between two tries to reach a hub that is about to start: at first, and at the most."""

SEND_TIMEOUT = 5.0
"""Seconds for the hub to read a line; after that the worker closes the connection."""

_CHUNK = 65536

logger = logging.getLogger("flask_ctl")


class HubConnection:
    """Connects to the hub, and again whenever that fails, until `close`. A thread of its own calls the functions.

    `hello` gives the first line of every connection, `report` what has changed since the last report (None if nothing
    has) at every `interval` in seconds. `hear` takes a message of the hub; it raises RemoteProtocolError for one that
    is malformed, and if the hub refuses this worker. It ends when `is_wanted` says that the master is gone.
    """

    def __init__(
        self,
        path: str,
        master: int,
        *,
        hello: Callable[[], bytes],
        report: Callable[[], bytes | None],
        hear: Callable[[bytes], Any],
        interval: Callable[[], float],
        is_wanted: Callable[[], bool],
    ) -> None:
        self._path = path
        self._master = master
        self._hello = hello
        self._report = report
        self._hear = hear
        self._interval = interval
        self._is_wanted = is_wanted
        self._waker = Waker()
        self._outbox: collections.deque[bytes] = collections.deque()
        self._closing = False
        self._sock: socket.socket | None = None
        self._running = threading.Lock()
        self._complained = False
        self._heard = False

    def start(self) -> None:
        """Start the thread."""
        self._running.acquire()
        in_child(Step.DESCRIPTORS, self.abandon)
        start_thread(self._run)

    def send(self, line: bytes) -> None:
        """Send it soon, if the hub can be reached. Any thread, greenlet and signal handler may ask."""
        self._outbox.append(line)
        self.notify()

    def notify(self) -> None:
        """Look soon whether there is something to report."""
        with contextlib.suppress(OSError):
            self._waker.wake()

    def flush(self) -> None:
        """In the link's thread: send what there is to be sent, now. Raises OSError if the hub does not read it."""
        if self._sock is None:
            return
        report = self._report()
        while self._outbox:
            self._sock.sendall(self._outbox.popleft())
        if report is not None:
            self._sock.sendall(report)

    def close(self, timeout: float) -> None:
        """Send what there is to be sent, and end the thread; wait for that for so many seconds. Twice is fine."""
        self._closing = True
        self.notify()
        if self._running.acquire(timeout=timeout):
            self._running.release()

    def abandon(self) -> None:
        """In a forked child, which has no such thread: close its copies of the descriptors."""
        self._closing = True
        self._waker.close()
        if self._sock is not None:
            self._sock.close()

    def _run(self) -> None:
        pause = RETRY_INTERVAL
        try:
            while not self._closing and self._is_wanted():
                if self._run_once():
                    pause = RETRY_INTERVAL
                else:
                    wait_readable([self._waker.fileno()], pause)
                    pause = min(2 * pause, MAX_RETRY_INTERVAL)
        finally:
            self._waker.close()
            self._running.release()

    def _run_once(self) -> bool:
        """Connect, and exchange messages until that fails; whether the hub has sent anything."""
        self._heard = False
        try:
            self._sock = self._connect()
            if self._sock is None:
                return False
            self._exchange(self._sock)
        except OSError as error:
            # Half a line may have been sent, so what follows would make no sense.
            logger.debug("the connection with the hub ends: %s", error)
            return False
        except Exception:
            logger.exception("the connection with the hub failed; the worker connects again")
            return False
        finally:
            if self._sock is not None:
                self._sock.close()
                self._sock = None
        # A hub that has no descriptor left for this worker refuses it, and may have one the next time.
        return self._heard

    def _connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(SEND_TIMEOUT)
            sock.connect(self._path)
            if peer_credentials(sock)[1] == os.geteuid():
                return sock
            self._complain("another user listens there")
        except (FileNotFoundError, ConnectionRefusedError):
            try:
                start_hub(self._path, self._master)
            except OSError as error:
                self._complain(str(error))
        except OSError as error:
            self._complain(str(error))
        sock.close()
        return None

    def _complain(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("no hub at %s, so no control socket: %s", self._path, problem)

    def _exchange(self, sock: socket.socket) -> None:
        buffer = LineBuffer()
        sock.sendall(self._hello())
        while True:
            ready = wait_readable([sock.fileno(), self._waker.fileno()], self._interval())
            if sock.fileno() in ready and not self._receive(sock, buffer):
                return
            # Not before: the answers to what was received have made it readable, too, and are sent below.
            self._waker.clear()
            # Read before the flush: what is sent before `close` is in the outbox by then.
            closing = self._closing
            self.flush()
            if closing:
                self._await_end(sock, buffer)
                return

    def _await_end(self, sock: socket.socket, buffer: LineBuffer) -> None:
        """Wait until the hub has read the final report, and closes. Its last messages are still handled.

        It would read no more once it has failed to send.
        """
        sock.shutdown(socket.SHUT_WR)
        while self._receive(sock, buffer):
            """There may be more."""

    def _receive(self, sock: socket.socket, buffer: LineBuffer) -> bool:
        try:
            data = sock.recv(_CHUNK)
            for line in buffer.feed(data):
                self._hear(line)
                self._heard = True
        except (OSError, RemoteProtocolError) as error:
            logger.debug("the connection with the hub ends: %s", error)
            return False
        return bool(data)
