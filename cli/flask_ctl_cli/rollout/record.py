"""What rollouts have done: one JSON document each, in an archive. `files` has that of this machine."""

from __future__ import annotations

import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from flask_ctl import ConfigurationError, ControlError

from ..settings import settings
from .member import Member

VERSION = 1

_FIELDS = {"id", "began", "ended", "end", "method", "options", "rollout", "health", "timeout", "operator", "targets"}

Document = dict[str, Any]


class Record(ABC):
    """The record of a rollout that this process runs; a context manager that lets others resume it at the end.

    `document` and the `members`, which are its ``targets``, may be changed between two calls of `save`.
    """

    def __init__(self, document: Document, members: Sequence[Member]) -> None:
        self.document = document
        self.members = members
        self.problem = ""
        """Why the last `save` has failed."""
        self.lost = ""
        """Why this process must not go on with the rollout."""
        self.on_lost: Callable[[str], Any] = lambda reason: None
        """Called, in any thread, when it must not go on, with the reason."""

    def save(self) -> None:
        """Write the document; `problem` says why it was not possible, as on a full disk: the rollout goes on."""
        try:
            self.write()
            self.problem = ""
        except ControlError as error:
            self.problem = error.message

    def write(self) -> None:
        """Write the document. Raises ControlError."""
        self.document["targets"] = [member.as_record() for member in self.members]
        self._write()

    def finish(self, end: str) -> None:
        """Write it for the last time: why the rollout has ended."""
        self.document.update(ended=now(), end=end)
        self.save()

    @abstractmethod
    def remove(self) -> None:
        """Take back a rollout of which nothing has begun."""

    @abstractmethod
    def close(self) -> None:
        """Let others resume it; more than once is fine."""

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _write(self) -> None:
        """Write the document. Raises ControlError."""


class Archive(ABC):
    """Where records are. Every method raises ControlError where it can't be used."""

    where = ""
    """For messages."""
    program = "flask-ctl rollout"
    """The command for its records."""

    @abstractmethod
    def ids(self) -> list[str]:
        """The ids of the recorded rollouts, the oldest first."""

    @abstractmethod
    def running(self, ids: Iterable[str]) -> set[str]:
        """Those of the rollouts with these ids that somebody runs."""

    @abstractmethod
    def open(self, document: Document, members: Sequence[Member] = ()) -> Record:
        """Run the rollout of this document. Raises ConfigurationError if somebody else does."""

    @abstractmethod
    def check_free(self, members: Sequence[Member], but: str = "") -> None:
        """Raises ConfigurationError if a rollout, other than that with the id `but`, is at work on one of these."""

    @abstractmethod
    def _read(self, id: str) -> Document:
        """What is there. Raises ConfigurationError."""

    @abstractmethod
    def _remove_old(self) -> None:
        """Leave the last records."""

    def new(self, members: Sequence[Member], **document: Any) -> Record:
        """A record with a new id, written once."""
        id = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        started = {"version": VERSION, "id": id, "began": now(), "ended": None, "end": None, **document}
        started["targets"] = [member.as_record() for member in members]
        record = self.open(started, members)
        try:
            record.write()
            try:
                self._remove_old()
            except ControlError as error:
                settings().say(f"old records are not removed: {error.message}")
        except BaseException:
            record.close()
            raise
        return record

    def read(self, id: str) -> Document:
        """The record with this id. Raises ConfigurationError if there is none, or it is another thing."""
        document = self._read(id)
        try:
            if document["version"] != VERSION:
                raise ConfigurationError(f"the record {id} was written by another version of flask-ctl")
            if document["id"] != id or not document.keys() >= _FIELDS:
                raise ValueError("it lacks a field, or has the id of another one")
            for target in document["targets"]:
                Member(**target)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{id} in {self.where} is no record of a rollout: {error}") from None
        return document

    def load(self, id: str | None) -> Document:
        """The record with this id, or that begins so; None for the last one. Raises ConfigurationError."""
        found = [name for name in self.ids() if id is None or name.startswith(id)]
        if not found and id is None:
            raise ConfigurationError("no rollout has been begun")
        if not found:
            raise ConfigurationError(f"no rollout {id} is recorded in {self.where}; {self.program} history lists them")
        if id is not None and id not in found and len(found) > 1:
            raise ConfigurationError(f"several rollouts begin with {id}: {', '.join(found)}")
        return self.read(id if id in found else found[-1])

    def is_running(self, id: str) -> bool:
        """Whether somebody runs the rollout with this id."""
        return bool(self.running([id]))

    def state_of(self, document: Document) -> str:
        """``running``, ``ended``, or ``abandoned`` if its operator was killed."""
        return self.states_of([document])[0]

    def states_of(self, documents: Sequence[Document]) -> list[str]:
        """That of each."""
        running = self.running([document["id"] for document in documents])
        return [
            "running" if document["id"] in running else "abandoned" if document["ended"] is None else "ended"
            for document in documents
        ]

    def others_at_work(self) -> Iterator[Document]:
        """The records of the rollouts that run."""
        for id in self.ids():
            if self.is_running(id):
                with contextlib.suppress(ConfigurationError):
                    yield self.read(id)


def now() -> str:
    """The time, as in records (RFC 3339)."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
