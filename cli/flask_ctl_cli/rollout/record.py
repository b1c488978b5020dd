"""What rollouts have done, in files: one JSON document each, in ``$XDG_STATE_HOME/flask-ctl/rollouts``.

A file is replaced as a whole, so a reader finds one state or the next. The process that runs a rollout holds the
flock(2) on the lock file beside it: a record that is not ended and not locked is that of a killed operator.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from flask_ctl import ConfigurationError

from .member import Member

MAX_RECORDS = 100
"""The oldest are removed."""

VERSION = 1

LOCK_TIMEOUT = 0.5
"""Seconds in which a lock that others only look at is free again."""

_FIELDS = {"id", "began", "ended", "end", "method", "options", "rollout", "health", "timeout", "operator", "targets"}

Document = dict[str, Any]


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


class Record:
    """The record of a rollout that this process runs; a context manager that lets others resume it at the end.

    `document` and the `members`, which are its ``targets``, may be changed between two calls of `save`. Raises
    ConfigurationError if it can't be written, or if another process runs that rollout.
    """

    def __init__(self, document: Document, members: Sequence[Member] = ()) -> None:
        self.document = document
        self.members = members
        self.problem = ""
        """Why the last `save` has failed."""
        place = directory()
        self._path = os.path.join(place, f"{document['id']}.json")
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            _check_owner(place)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(_lock_of(self._path), flags, 0o600)
        except OSError as error:
            raise _unwritable(self._path, error) from None
        # `is_running` of another process holds it for a moment.
        deadline = time.monotonic() + LOCK_TIMEOUT
        while not _try_lock(self._lock):
            if time.monotonic() > deadline:
                os.close(self._lock)
                raise ConfigurationError(f"the rollout {document['id']} is run by another process")
            time.sleep(0.01)

    @classmethod
    def new(cls, members: Sequence[Member], **document: Any) -> Record:
        """A record with a new id, written once."""
        now = datetime.now(timezone.utc)
        id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        started = {"version": VERSION, "id": id, "began": _time(), "ended": None, "end": None, **document}
        record = cls(started, members)
        try:
            record._write()
        except OSError as error:
            record.close()
            raise _unwritable(record._path, error) from None
        _remove_old()
        return record

    def save(self) -> None:
        """Write the document; `problem` says why it was not possible, as on a full disk: the rollout goes on."""
        try:
            self._write()
            self.problem = ""
        except OSError as error:
            self.problem = f"the record {self._path} can't be written: {error.strerror}"

    def finish(self, end: str) -> None:
        """Write it for the last time: why the rollout has ended."""
        self.document.update(ended=_time(), end=end)
        self.save()

    def remove(self) -> None:
        """Take back a rollout of which nothing has begun."""
        for name in (self._path, _lock_of(self._path)):
            with contextlib.suppress(OSError):
                os.unlink(name)

    def close(self) -> None:
        """Give up the lock; more than once is fine."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self) -> None:
        self.document["targets"] = [member.as_record() for member in self.members]
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


def load(id: str | None) -> Document:
    """The record with this id, or that begins so; None for the last one. Raises ConfigurationError if there is none."""
    found = [name for name in ids() if id is None or name.startswith(id)]
    if not found:
        which = "no rollout" if id is None else f"no rollout {id}"
        raise ConfigurationError(f"{which} is recorded in {directory()}; flask-ctl rollout history lists them")
    if id is not None and id not in found and len(found) > 1:
        raise ConfigurationError(f"several rollouts begin with {id}: {', '.join(found)}")
    return _read(id if id in found else found[-1])


def ids() -> list[str]:
    """The ids of the recorded rollouts, the oldest first."""
    try:
        names = os.listdir(directory())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"{directory()} can't be read: {error.strerror}") from None
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith("."))


def is_running(id: str) -> bool:
    """Whether a process runs the rollout with this id."""
    try:
        descriptor = os.open(_lock_of(os.path.join(directory(), f"{id}.json")), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def state_of(document: Document) -> str:
    """``running``, ``ended``, or ``abandoned`` if its operator was killed."""
    if is_running(document["id"]):
        return "running"
    return "abandoned" if document["ended"] is None else "ended"


def others_at_work() -> Iterator[Document]:
    """The records of the rollouts that run."""
    for id in ids():
        if is_running(id):
            with contextlib.suppress(ConfigurationError):
                yield _read(id)


def _read(id: str) -> Document:
    path = os.path.join(directory(), f"{id}.json")
    try:
        with open(path) as file:
            document: Document = json.load(file)
        if document["version"] != VERSION:
            raise ConfigurationError(f"{path} was written by another version of flask-ctl")
        if document["id"] != id or not document.keys() >= _FIELDS:
            raise ValueError("it lacks a field, or has the id of another one")
        for target in document["targets"]:
            Member(**target)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no record of a rollout: {error}") from None
    return document


def _remove_old() -> None:
    for id in ids()[:-MAX_RECORDS]:
        if not is_running(id):
            path = os.path.join(directory(), f"{id}.json")
            for name in (path, _lock_of(path)):
                with contextlib.suppress(OSError):
                    os.unlink(name)


def _lock_of(path: str) -> str:
    return path.removesuffix(".json") + ".lock"


def _time() -> str:
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


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
