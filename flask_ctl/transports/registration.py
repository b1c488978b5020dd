"""An instance's own file in the registry: how it comes, is kept up to date, and goes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, replace
from typing import Any

from ..errors import ConfigurationError
from ..system import locks
from ..system.addresses import default_directories, prepare_directory
from ..system.directory import current_directory
from ..system.files import try_lock
from ..system.fork import Step, in_child
from ..system.platform import HAS_UNIX_SOCKETS
from .registry import MAX_APPS, MAX_TEXT, SUFFIX, Claims, remove_dead

MAX_TRIES, RETRY_INTERVAL = 20, 0.001
"""Tries to lock a new file, which another process may be about to remove as dead; seconds between them."""

logger = logging.getLogger("flask_ctl")


class Registration:
    """An instance's file in the registry, from the first `renew` to `close`. Belongs to one thread at a time.

    A hub gives the pid of its `master`, and the `path`, which is the same for each hub of that master.
    """

    def __init__(self, path: str | None = None, master: int | None = None) -> None:
        self.path = path
        self._given = path
        self._bytes = [locks.SERVER, *([] if master is None else [locks.hub_byte(master)])]
        self._lock = -1
        self._closed = False
        self._written: Claims | None = None
        self._complained = self._pruned = False
        # Closing a child's copy leaves the locks with the parent.
        in_child(Step.DESCRIPTORS, self._drop)

    def inherit(self, entry: dict[str, Any] | None) -> None:
        """Go on with the file of the previous image of this process, if there is one."""
        if entry is not None:
            self.path, self._lock = entry["path"], entry["lock"]
            # If it fails, `renew` tries again.
            with contextlib.suppress(OSError, ConfigurationError):
                self._take_bytes(self._lock)

    def renew(self, claims: Claims | None = None) -> None:
        """Register, or bring the entry up to date; called now and then. What fails is tried again the next time.

        Without `claims` the text stays as it is.
        """
        if self._closed or not HAS_UNIX_SOCKETS:
            return
        try:
            if self._lock < 0 or not self._is_in_place():
                self._enter(claims)
            else:
                # The program may have opened and closed the file, which releases the locks: fcntl(2).
                self._take_bytes(self._lock)
            if claims is not None and claims != self._written:
                self._write(self._lock, claims)
        except (OSError, ConfigurationError) as error:
            level = logging.DEBUG if self._complained else logging.INFO
            self._complained = True
            logger.log(level, "flask-ctl ls does not show this instance: %s", error)

    def export_state(self) -> dict[str, Any] | None:
        """What `inherit` of the next image takes; the file is left as it is. None if there is none."""
        lock, self._lock = self._lock, -1
        return {"path": self.path, "lock": lock} if lock >= 0 else None

    def close(self, remove: bool = True) -> None:
        """Remove the file, unless others of the server go on with it; more than once is fine."""
        self._closed = True
        if self._lock >= 0 and remove and self._is_in_place():
            with contextlib.suppress(OSError):
                os.unlink(self.path or "")
        self._drop()

    def _enter(self, claims: Claims | None) -> None:
        """Make the file and lock it. Its text comes before the locks, so that no reader finds a running one without."""
        self._drop()
        self.path = _free_path() if self._given is None else self._given
        prepare_directory(self.path)
        for _ in range(MAX_TRIES):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(self.path, flags, 0o600)
            try:
                # Who removes dead files holds the lock meanwhile.
                if try_lock(lock) and locks.same_file(self.path, lock):
                    self._written = None
                    with contextlib.suppress(OSError):
                        if claims is not None:
                            self._write(lock, claims)
                        elif not os.fstat(lock).st_size:
                            self._write(lock, Claims(cwd=current_directory()))
                    self._take_bytes(lock)
                    self._lock = lock
                    self._prune()
                    return
            except FileNotFoundError:
                pass
            except (OSError, ConfigurationError):
                locks.close(lock)
                raise
            locks.close(lock)
            time.sleep(RETRY_INTERVAL)
        raise ConfigurationError(f"{self.path} is locked by another process")

    def _take_bytes(self, lock: int) -> None:
        if not all(locks.take(lock, byte) for byte in self._bytes):
            raise ConfigurationError(f"{self.path} is locked by another process")

    def _prune(self) -> None:
        """Once, remove what instances have left that were killed, where all of them have their files."""
        directory = os.path.dirname(self.path or "")
        if not self._pruned and directory in default_directories():
            self._pruned = True
            remove_dead(directory)

    def _write(self, lock: int, claims: Claims) -> None:
        apps = claims.apps[:MAX_APPS]
        while len(line := _line(replace(claims, apps=apps))) > MAX_TEXT and apps:
            apps = apps[: len(apps) // 2]
        if len(apps) < len(claims.apps):
            logger.warning("flask-ctl ls shows only %d of the %d apps of this instance", len(apps), len(claims.apps))
        # One call, so that a reader gets a whole line. What a longer text has left behind the line does not count.
        if os.pwrite(lock, line, 0) != len(line):
            raise OSError("only a part of the entry was written")
        self._written = claims

    def _is_in_place(self) -> bool:
        try:
            return self.path is not None and locks.same_file(self.path, self._lock)
        except OSError:
            return False

    def _drop(self) -> None:
        if self._lock >= 0:
            locks.close(self._lock)
            self._lock = -1


def entry_path(hub_path: str) -> str:
    """The file of a master's server in the registry, by the socket of its hub."""
    return hub_path.removesuffix(".hub") + SUFFIX


def _line(claims: Claims) -> bytes:
    return json.dumps(asdict(claims)).encode() + b"\n"


def _free_path() -> str:
    """A path for a new file, in a directory that is ours alone. Raises ConfigurationError if there is none."""
    problem = ConfigurationError("there is no runtime directory")
    for directory in default_directories():
        path = os.path.join(directory, f"{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}")
        try:
            prepare_directory(path)
        except ConfigurationError as error:
            problem = error
        else:
            return path
    raise problem
