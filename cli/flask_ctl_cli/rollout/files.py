"""The records of rollouts in files: one JSON document each, in ``$XDG_STATE_HOME/flask-ctl/rollouts``.

A file is replaced as a whole, so a reader finds one state or the next. The process that runs a rollout holds the
flock(2) on the lock file beside it: a record that is not ended and not locked is that of a killed operator.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence

from flask_ctl import ConfigurationError

from .member import Member
from .record import Archive, Document, Record

MAX_RECORDS = 100
"""The oldest are removed."""

LOCK_TIMEOUT = 0.5
"""Seconds in which a lock that others only look at is free again."""


def directory() -> str:
    """Where the records are. Raises ConfigurationError without a home directory, and where there is no flock(2)."""
    if not hasattr(os, "geteuid"):
        raise ConfigurationError("rollouts need a system with users and flock(2), such as Linux")
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        # A relative path is invalid: XDG Base Directory Specification.
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    if not os.path.isabs(base):
        raise ConfigurationError("no directory for the record of the rollout: set HOME or XDG_STATE_HOME")
    return os.path.join(base, "flask-ctl", "rollouts")


class FileRecord(Record):
    """A record in a file. Raises ConfigurationError if it can't be written, or if another process runs that rollout."""

    def __init__(self, document: Document, members: Sequence[Member] = ()) -> None:
        super().__init__(document, members)
        place = directory()
        self._path = os.path.join(place, f"{document['id']}.json")
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            _check_owner(place)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(_lock_of(self._path), flags, 0o600)
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._is_new = not os.path.exists(self._path)
        # `running` of another process holds it for a moment.
        deadline = time.monotonic() + LOCK_TIMEOUT
        while not _try_lock(self._lock):
            if time.monotonic() > deadline:
                os.close(self._lock)
                raise ConfigurationError(f"the rollout {document['id']} is run by another process")
            time.sleep(0.01)

    def remove(self) -> None:
        for name in (self._path, _lock_of(self._path)):
            with contextlib.suppress(OSError):
                os.unlink(name)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write(self) -> None:
        try:
            self._replace()
        except OSError as error:
            if self._is_new:
                raise _unwritable(self._path, error) from None
            raise ConfigurationError(f"the record {self._path} can't be written: {error.strerror}") from None
        self._is_new = False

    def _replace(self) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(self._path), prefix=".rollout-")
        try:
            with open(descriptor, "w") as file:
                json.dump(self.document, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


class FileArchive(Archive):
    """The records of this machine."""

    @property
    def where(self) -> str:  # type: ignore[override]
        return directory()

    def ids(self) -> list[str]:
        try:
            names = os.listdir(directory())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigurationError(f"{directory()} can't be read: {error.strerror}") from None
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != ".")

    def running(self, ids: Iterable[str]) -> set[str]:
        return {id for id in ids if _is_locked(os.path.join(directory(), f"{id}.json"))}

    def open(self, document: Document, members: Sequence[Member] = ()) -> Record:
        return FileRecord(document, members)

    def check_free(self, members: Sequence[Member], but: str = "") -> None:
        ours = {(member.host, member.socket) for member in members}
        for document in self.others_at_work():
            both = ours & {(target["host"], target["socket"]) for target in document["targets"]}
            if both and document["id"] != but:
                operator = document["operator"]
                raise ConfigurationError(
                    f"the rollout {document['id']} (pid {operator['pid']}, begun {document['began']}) is at work on"
                    f" {len(both)} of these instances; flask-ctl rollout status {document['id']} shows how far it is"
                )

    def _read(self, id: str) -> Document:
        path = os.path.join(directory(), f"{id}.json")
        try:
            with open(path) as file:
                document: Document = json.load(file)
        except OSError as error:
            raise ConfigurationError(f"{path} can't be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigurationError(f"{path} is no record of a rollout: {error}") from None
        return document

    def _remove_old(self) -> None:
        # Of those that began in one second the order is chance, and one may run.
        ids = self.ids()
        ended = (id for id in ids if not self.is_running(id))
        for id in itertools.islice(ended, max(0, len(ids) - MAX_RECORDS)):
            path = os.path.join(directory(), f"{id}.json")
            for name in (path, _lock_of(path)):
                with contextlib.suppress(OSError):
                    os.unlink(name)


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(_lock_of(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def _lock_of(path: str) -> str:
    return path.removesuffix(".json") + ".lock"


def _unwritable(path: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the record of the rollout, {path}, can't be written: {error.strerror}; nothing was asked. XDG_STATE_HOME"
        " names another directory"
    )


def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _check_owner(place: str) -> None:
    """Raises ConfigurationError for a directory into which another user may put links."""
    info = os.lstat(place)
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise ConfigurationError(
            f"{place} belongs to another user, or others can write to it; XDG_STATE_HOME names another directory"
        )
